// Ids of the events of a stream, with which a client goes on that lost its connection.
#ifndef BLOCKSERVE_GATEWAY_HTTP_EVENT_ID_H_
#define BLOCKSERVE_GATEWAY_HTTP_EVENT_ID_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

// A client that lost its connection sends its request again with the last id that it has
// (Last-Event-ID): everything is generated again, and what it has is left out.
struct HttpEventId {
  static constexpr size_t kHashDigits = 8;  // hexadecimal, of each of the two

  std::string request_id;
  uint64_t seed = 0;
  std::string tiers;  // HashOfTiers
  // A hash of the prompts' tokens and stop strings: the same text may be other tokens
  // where the tokenizer or the chat format is another. Empty: the id of an older gateway, which is
  // not checked for it.
  std::string prompts;
  std::vector<int64_t> tokens;  // of each choice, those generated so far

  // "REQUEST:SEED:TIERS:TOKENS", the seed in hexadecimal, the two hashes one after the other, the
  // tokens by commas. Of more choices than kMaxResumableChoices "REQUEST" alone: counts of all of
  // them in every event would be most of what is sent.
  std::string ToString() const;
};

inline constexpr size_t kMaxResumableChoices = 64;

// INVALID_ARGUMENT naming Last-Event-ID; so too of an id that is "REQUEST" alone.
absl::StatusOr<HttpEventId> ParseEventId(absl::string_view text);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_EVENT_ID_H_
