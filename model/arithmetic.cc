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
  }
  return "unknown";
}

absl::StatusOr<Arithmetic> ParseArithmetic(absl::string_view name) {
  for (const Arithmetic arithmetic : {Arithmetic::kF32, Arithmetic::kBf16}) {
    if (name == ArithmeticName(arithmetic)) return arithmetic;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("arithmetic is \"", name.substr(0, 60), "\"; known are auto, f32 and bf16"));
}

}  // namespace blockserve
