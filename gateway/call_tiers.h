// Which workers serve a call over HTTP: the same for all of it, and for a stream that goes on.
#ifndef BLOCKSERVE_GATEWAY_CALL_TIERS_H_
#define BLOCKSERVE_GATEWAY_CALL_TIERS_H_

#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace blockserve {

// Of the ids of the model and of both tiers' arithmetics: equal ones write the same. FNV-1a,
// folded.
inline std::string HashOfTiers(absl::string_view model_id, absl::string_view block_numeric_id,
                               absl::string_view token_numeric_id) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : absl::StrCat(model_id, "/", block_numeric_id, "/", token_numeric_id)) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  return absl::StrCat(absl::Hex(static_cast<uint32_t>(hash ^ (hash >> 32)), absl::kZeroPad8));
}

// For the core a call may be several requests, one for each prompt and one more to score what is
// echoed. While an upgrade is half-way, each by itself could be bound to other workers.
struct CallTiers {
  // HashOfTiers of those that serve it; empty: the first request that is bound chooses them. The
  // loop's alone, once the call has been handed to the core.
  std::string hash;
  bool wrote_stream = false;  // they wrote the stream that goes on (Last-Event-ID)
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CALL_TIERS_H_
