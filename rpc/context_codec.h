// Context embeddings on the wire: rows of float32 in memory, bytes of float32 or bfloat16 (little
// endian, row-major) in messages.
#ifndef BLOCKSERVE_RPC_CONTEXT_CODEC_H_
#define BLOCKSERVE_RPC_CONTEXT_CODEC_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "blockserve/v1/tier.pb.h"

namespace blockserve {

// Bytes of one value; 0 for a type that is not known.
size_t ContextValueBytes(v1::ContextType type);

// Appends `values` to `bytes`. To bfloat16 they are rounded to nearest, ties to even; NaN stays
// NaN. Values that are bfloat16 already (as the engines' are with bf16 arithmetics) lose nothing.
// `type` must be known.
void AppendContexts(absl::Span<const float> values, v1::ContextType type, std::string& bytes);

// Reads `values.size()` values. INVALID_ARGUMENT where the type is not known, or where `bytes` is
// not exactly so many values.
absl::Status DecodeContexts(absl::string_view bytes, v1::ContextType type,
                            absl::Span<float> values);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_CONTEXT_CODEC_H_
