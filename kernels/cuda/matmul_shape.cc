#include "absl/strings/str_cat.h"
#include "kernels/cuda/matmul.h"

namespace blockserve::cuda {

absl::Status ValidateMatmul(const MatmulShape& shape, int64_t max_rows) {
  if (shape.n < 1 || shape.k < 1 || shape.n % kElementPadding != 0 ||
      shape.k % kElementPadding != 0 || max_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a product of up to ", max_rows,
                                                   " rows, k = ", shape.k, ", n = ", shape.n,
                                                   ": k and n are multiples of ", kElementPadding));
  }
  if (shape.output == ElementType::kBf16 && shape.type == ElementType::kF32) {
    return absl::InvalidArgumentError("a product of float32 with results in bfloat16");
  }
  return absl::OkStatus();
}

}  // namespace blockserve::cuda
