// Names of arithmetics (docs/architecture.md, determinism).
#ifndef BLOCKSERVE_MODEL_ARITHMETIC_H_
#define BLOCKSERVE_MODEL_ARITHMETIC_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

enum class Arithmetic {
  kF32,   // float32 weights, KV and arithmetic
  kBf16,  // bfloat16 weights, KV and context rows, widened; float32 arithmetic
  // As kBf16, but matrix products round their inputs to bfloat16 too and add pairs of products at
  // once: AVX512-BF16 only.
  kBf16Dot,
  // 8-bit integers in matrix products, one scale for each output and for each input row; embedding
  // tables, KV and context rows bfloat16; the rest float32.
  kInt8,
};

// Whether embedding tables, KV and context rows are bfloat16.
inline bool StoresBf16(Arithmetic arithmetic) { return arithmetic != Arithmetic::kF32; }

absl::string_view ArithmeticName(Arithmetic arithmetic);
// "f32", "bf16", "bf16dot", "int8". Errors: INVALID_ARGUMENT listing the names. "auto" is resolved
// by the caller, who knows the checkpoint's dtype (ResolveArithmetic in model/checkpoint.h).
absl::StatusOr<Arithmetic> ParseArithmetic(absl::string_view name);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_ARITHMETIC_H_
