#include "gateway/http/event_id.h"

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace blockserve {
std::string HttpEventId::ToString() const {
  if (tokens.size() > kMaxResumableChoices) return request_id;
  std::string id = absl::StrCat(request_id, ":", absl::Hex(seed), ":", tiers, prompts, ":");
  for (size_t i = 0; i < tokens.size(); ++i) absl::StrAppend(&id, i == 0 ? "" : ",", tokens[i]);
  return id;
}

absl::StatusOr<HttpEventId> ParseEventId(absl::string_view text) {
  const absl::Status bad =
      absl::InvalidArgumentError("Last-Event-ID: is not the id of an event of this interface");
  HttpEventId id;
  // A request's id may have colons.
  const auto cut = [&text](absl::string_view& part) {
    const size_t colon = text.rfind(':');
    if (colon == absl::string_view::npos) return false;
    part = text.substr(colon + 1);
    text = text.substr(0, colon);
    return true;
  };
  absl::string_view tokens, tiers, seed;
  if (!cut(tokens) || !cut(tiers) || !cut(seed) || tiers.empty() || text.empty()) return bad;
  if (!absl::SimpleHexAtoi(seed, &id.seed)) return bad;
  id.request_id = std::string(text);
  id.tiers = std::string(tiers.substr(0, HttpEventId::kHashDigits));
  id.prompts = std::string(tiers.substr(id.tiers.size()));
  for (const absl::string_view count : absl::StrSplit(tokens, ',')) {
    int64_t number = 0;
    if (!absl::SimpleAtoi(count, &number) || number < 0) return bad;
    id.tokens.push_back(number);
  }
  return id;
}

}  // namespace blockserve
