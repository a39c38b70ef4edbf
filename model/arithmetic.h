// Names of arithmetics (docs/architecture.md, determinism).
#ifndef BLOCKSERVE_MODEL_ARITHMETIC_H_
#define BLOCKSERVE_MODEL_ARITHMETIC_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

enum class Arithmetic {
  kF32,   // float32 weights, KV and arithmetic
  kBf16,  // bfloat16 weights, KV and context rows, widened; float32 arithmetic
};

absl::string_view ArithmeticName(Arithmetic arithmetic);
// "f32", "bf16". Errors: INVALID_ARGUMENT listing the names. "auto" is resolved by the caller, who
// knows the checkpoint's dtype (ResolveArithmetic in model/checkpoint.h).
absl::StatusOr<Arithmetic> ParseArithmetic(absl::string_view name);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_ARITHMETIC_H_
