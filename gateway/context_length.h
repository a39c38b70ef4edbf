// That a request was refused because the model cannot hold so long a text, carried by its status:
// clients of OpenAI's interface cut their texts by it.
#ifndef BLOCKSERVE_GATEWAY_CONTEXT_LENGTH_H_
#define BLOCKSERVE_GATEWAY_CONTEXT_LENGTH_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace blockserve {

inline constexpr absl::string_view kContextLengthPayload = "blockserve.v1/context-length-exceeded";

// `why` begins with the field. `most_tokens`: what the model can hold, whatever the alignment. The
// words that follow are those of OpenAI and vLLM: litellm and others read them, and not the code.
inline absl::Status ContextLengthExceeded(absl::string_view why, int64_t most_tokens) {
  absl::Status status = absl::InvalidArgumentError(
      absl::StrCat(why, ": this model's maximum context length is ", most_tokens, " tokens"));
  status.SetPayload(kContextLengthPayload, absl::Cord());
  return status;
}

inline bool IsContextLengthExceeded(const absl::Status& status) {
  return status.GetPayload(kContextLengthPayload).has_value();
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CONTEXT_LENGTH_H_
