#include "model/arithmetic.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace blockserve {

absl::string_view ArithmeticName(Arithmetic arithmetic) {
  switch (arithmetic) {
    case Arithmetic::kF32:
      return "f32";
    case Arithmetic::kBf16:
      return "bf16";
    case Arithmetic::kBf16Dot:
      return "bf16dot";
    case Arithmetic::kInt8:
      return "int8";
    case Arithmetic::kCudaF32:
      return "cuda-f32";
    case Arithmetic::kCudaBf16:
      return "cuda-bf16";
    case Arithmetic::kCudaBf16Own:
      return "cuda-bf16-own";
    case Arithmetic::kCudaBf16Fast:
      return "cuda-bf16-fast";
  }
  return "unknown";
}

absl::StatusOr<Arithmetic> ParseArithmetic(absl::string_view name) {
  for (const Arithmetic arithmetic : kAllArithmetics) {
    if (name == ArithmeticName(arithmetic)) return arithmetic;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("arithmetic is \"", name.substr(0, 60),
                   "\"; known are auto, f32, bf16, bf16dot, int8, "
                   "cuda-f32, cuda-bf16, cuda-bf16-own and cuda-bf16-fast"));
}

}  // namespace blockserve
