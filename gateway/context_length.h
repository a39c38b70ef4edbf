// That a request was refused because the model cannot hold so long a text, carried by its status:
// clients of OpenAI's interface cut their texts by it.
#ifndef BLOCKSERVE_GATEWAY_CONTEXT_LENGTH_H_
#define BLOCKSERVE_GATEWAY_CONTEXT_LENGTH_H_

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"

namespace blockserve {

inline constexpr absl::string_view kContextLengthPayload = "blockserve.v1/context-length-exceeded";

inline absl::Status WithContextLengthExceeded(absl::Status status) {
  status.SetPayload(kContextLengthPayload, absl::Cord());
  return status;
}

inline bool IsContextLengthExceeded(const absl::Status& status) {
  return status.GetPayload(kContextLengthPayload).has_value();
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CONTEXT_LENGTH_H_
