#include "model/arithmetic.h"

#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

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

std::string ArithmeticNames(bool cuda, absl::string_view last) {
  std::vector<absl::string_view> names;
  for (const Arithmetic arithmetic : kAllArithmetics) {
    if (IsCuda(arithmetic) == cuda) names.push_back(ArithmeticName(arithmetic));
  }
  const absl::string_view last_name = names.back();
  names.pop_back();
  return absl::StrCat(absl::StrJoin(names, ", "), last, last_name);
}

absl::StatusOr<Arithmetic> ParseArithmetic(absl::string_view name) {
  for (const Arithmetic arithmetic : kAllArithmetics) {
    if (name == ArithmeticName(arithmetic)) return arithmetic;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "arithmetic is \"", name.substr(0, 60), "\"; known are auto, ",
      ArithmeticNames(/*cuda=*/false, " and "), "; ", ArithmeticNames(/*cuda=*/true, " and ")));
}

}  // namespace blockserve
