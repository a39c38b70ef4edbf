// Names of arithmetics (docs/architecture.md, determinism).
#ifndef BLOCKSERVE_MODEL_ARITHMETIC_H_
#define BLOCKSERVE_MODEL_ARITHMETIC_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

enum class Arithmetic {
  kF32,   // float32 weights (bfloat16 ones of a checkpoint stay so), KV and arithmetic
  kBf16,  // bfloat16 weights, KV and context rows, widened; float32 arithmetic
  // As kBf16, but matrix products round their inputs to bfloat16 too and add several products at
  // once, by AMX or AVX512-BF16. The bits are those of the instruction.
  kBf16Dot,
  // 8-bit integers in matrix products, one scale for each output and for each input row; embedding
  // tables, KV and context rows bfloat16; the rest float32.
  kInt8,
  // On a CUDA device. Their bits are of one kind of device and one version of its libraries, which
  // the numeric id tells apart.
  kCudaF32,   // float32 weights, KV and arithmetic
  kCudaBf16,  // bfloat16 weights, KV, context rows and inputs of products; sums float32
  // As kCudaBf16, with products by kernels of our own: no cuBLASLt, whose version changes no bit.
  kCudaBf16Own,
  // As kCudaBf16, with whichever matrix product is fastest for the number of rows: not
  // batch-invariant, so a response may depend on the requests beside it.
  kCudaBf16Fast,
};

inline constexpr Arithmetic kAllArithmetics[] = {
    Arithmetic::kF32,         Arithmetic::kBf16,        Arithmetic::kBf16Dot,
    Arithmetic::kInt8,        Arithmetic::kCudaF32,     Arithmetic::kCudaBf16,
    Arithmetic::kCudaBf16Own, Arithmetic::kCudaBf16Fast};

// Whether embedding tables, KV and context rows are bfloat16.
inline bool StoresBf16(Arithmetic arithmetic) {
  return arithmetic != Arithmetic::kF32 && arithmetic != Arithmetic::kCudaF32;
}
inline bool IsCuda(Arithmetic arithmetic) { return arithmetic >= Arithmetic::kCudaF32; }
// Whether a row's bits are the same in any batch (docs/architecture.md, determinism).
inline bool IsBatchInvariant(Arithmetic arithmetic) {
  return arithmetic != Arithmetic::kCudaBf16Fast;
}

absl::string_view ArithmeticName(Arithmetic arithmetic);
// For messages, the CPU's or those of CUDA devices: "f32, bf16, bf16dot or int8", with `last`
// before the last one.
std::string ArithmeticNames(bool cuda, absl::string_view last);
// Errors: INVALID_ARGUMENT listing the names. "auto" is resolved by the caller, who knows device
// and checkpoint (ChooseEngine in model/device.h).
absl::StatusOr<Arithmetic> ParseArithmetic(absl::string_view name);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_ARITHMETIC_H_
