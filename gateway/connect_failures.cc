#include "gateway/connect_failures.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace blockserve {
namespace {

// What gRPC 1.51 says before what matters, and where nobody listens. Should other versions say
// otherwise, lines are longer, and one who left is told of.
constexpr absl::string_view kPreamble = "failed to connect to all addresses; last error: ";
constexpr absl::string_view kNobodyListens = "Failed to connect to remote host";

// One line of printable ASCII: it may come from a stranger.
std::string Reason(const absl::Status& status) {
  std::string reason(absl::StripPrefix(status.message(), kPreamble));
  for (char& c : reason) {
    if (absl::ascii_isspace(static_cast<unsigned char>(c))) c = ' ';
    if (!absl::ascii_isprint(static_cast<unsigned char>(c))) c = '?';
  }
  absl::RemoveExtraAsciiWhitespace(&reason);
  if (reason.size() > ConnectFailures::kMostReasonBytes) {
    reason.resize(ConnectFailures::kMostReasonBytes);
    reason += "...";
  }
  return reason;
}

}  // namespace

std::string ConnectFailures::Lost(absl::string_view tier, absl::string_view address,
                                  const absl::Status& status, bool left, absl::Time now) {
  away_since_ = std::min(away_since_, now);
  if (now - away_since_ < kQuiet) return "";
  if (left && absl::StrContains(status.message(), kNobodyListens)) return "";
  std::string reason = Reason(status);
  if (status.ok()) reason = "it ends the stream without a hello";
  std::string text;
  if (status.code() == absl::StatusCode::kUnimplemented) {
    text = absl::StrCat("what listens at ", address, " is no ", tier);
    if (!reason.empty()) absl::StrAppend(&text, ": ", reason);
  } else {
    if (reason.empty()) reason = absl::StatusCodeToString(status.code());
    text = absl::StrCat(tier, " at ", address, " cannot be reached: ", reason);
  }
  std::erase_if(said_, [&](const Line& line) { return now - line.at >= kRepeat; });
  const bool told =
      std::any_of(said_.begin(), said_.end(), [&](const Line& line) { return line.text == text; });
  if (told || said_.size() >= kMostLines) return "";
  said_.push_back({text, now});
  return text;
}

}  // namespace blockserve
