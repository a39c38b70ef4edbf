// What ends a choice, told from its tokens: for a stream that goes on, whose tokens came from the
// client and not from a token worker.
#ifndef BLOCKSERVE_GATEWAY_OUTPUT_END_H_
#define BLOCKSERVE_GATEWAY_OUTPUT_END_H_

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "blockserve/v1/generation.pb.h"
#include "gateway/generation.h"
#include "gateway/text_output.h"

namespace blockserve {

// Gives `tokens`, the output so far of one choice of `request`, to `text`, which has had none: it
// then holds back what the gateway that wrote them held back. Returns the choice's end (all but
// its number) where the last token brings it. INVALID_ARGUMENT, saying what does not fit, where the
// request cannot have had these tokens: some follow the end, or a stop token came too early.
absl::StatusOr<std::optional<v1::Finished>> ReplayOutput(const GenerationRequest& request,
                                                         absl::Span<const int32_t> tokens,
                                                         TextOutput& text);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_OUTPUT_END_H_
