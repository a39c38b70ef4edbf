// For clients that want fewer and larger events than a block each
// (GenerateRequest.stream_interval).
#ifndef BLOCKSERVE_GATEWAY_GATHERING_SINK_H_
#define BLOCKSERVE_GATEWAY_GATHERING_SINK_H_

#include <cstdint>
#include <memory>

#include "gateway/generation.h"

namespace blockserve {

// Moves the tokens, text and log-probabilities of `more`, which follow those of `output`, behind
// them.
void AppendOutput(v1::Output more, v1::Output& output);

// A sink before `sink`: it is told the first block of each choice at once, later ones when they are
// `tokens` tokens together, and what is left before the choice's end, or before the error that ends
// the stream. Joined blocks are an Output as if they were one block; its worker is that of the
// last. `sink` itself where that changes nothing.
std::shared_ptr<GenerationSink> Gathering(std::shared_ptr<GenerationSink> sink, int32_t tokens,
                                          int32_t choices);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_GATHERING_SINK_H_
