// What every library of products shares: the contract's checks, and runs in pieces.
#include "kernels/cuda/matmul.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/matmul_libraries.h"

namespace blockserve::cuda {

absl::StatusOr<std::shared_ptr<const MatmulLibrary>> MatmulLibrary::Load(MatmulMode mode) {
  return mode == MatmulMode::kOwn ? LoadOwnMatmul() : LoadCublasLt(mode);
}

absl::StatusOr<std::unique_ptr<const MatmulPlan>> MatmulLibrary::Plan(const MatmulShape& shape,
                                                                      int64_t max_rows) const {
  if (shape.n < 1 || shape.k < 1 || shape.n % kElementPadding != 0 ||
      shape.k % kElementPadding != 0 || max_rows < 1) {
    return absl::InvalidArgumentError(absl::StrCat("a product of up to ", max_rows,
                                                   " rows, k = ", shape.k, ", n = ", shape.n,
                                                   ": k and n are multiples of ", kElementPadding));
  }
  if (shape.output == ElementType::kBf16 && shape.type == ElementType::kF32) {
    return absl::InvalidArgumentError("a product of float32 with results in bfloat16");
  }
  if (shape.gelu && !HasGelu(mode_)) {
    return absl::InvalidArgumentError(absl::StrCat("a product with GELU by ", name()));
  }
  return MakePlan(shape, max_rows);
}

absl::Status MatmulPlan::Run(const void* x, const void* w, const void* bias, void* y, int64_t rows,
                             const Stream& stream) const {
  if (rows < 0 || rows > max_rows_) {
    return absl::InvalidArgumentError(
        absl::StrCat("a product of ", rows, " rows, planned for ", max_rows_));
  }
  if ((bias != nullptr) != shape_.bias) {
    return absl::InvalidArgumentError("a product's bias is not as its shape says");
  }
  if (stream.workspace().size_bytes() < WorkspaceBytes(mode_)) {
    return absl::InvalidArgumentError(absl::StrCat("a product that may use ", WorkspaceBytes(mode_),
                                                   " bytes of workspace, on a stream with ",
                                                   stream.workspace().size_bytes()));
  }
  const auto* x_bytes = static_cast<const uint8_t*>(x);
  auto* y_bytes = static_cast<uint8_t*>(y);
  absl::Status status;
  for (int64_t row = 0; row < rows && status.ok(); row += max_piece_) {
    status = RunPiece(x_bytes + row * shape_.k * ElementBytes(shape_.type), w, bias,
                      y_bytes + row * shape_.n * ElementBytes(shape_.output),
                      std::min(rows - row, max_piece_), stream);
  }
  return status;
}

}  // namespace blockserve::cuda
