// Matrix products, by cuBLASLt or by kernels of our own.
#ifndef BLOCKSERVE_KERNELS_CUDA_MATMUL_H_
#define BLOCKSERVE_KERNELS_CUDA_MATMUL_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/runtime.h"

namespace blockserve::cuda {

// Buffers of a product hold a multiple of so many rows.
inline constexpr int64_t kMatmulRowTile = 64;
inline int64_t PadRows(int64_t rows) {
  return (rows + kMatmulRowTile - 1) / kMatmulRowTile * kMatmulRowTile;
}

enum class MatmulMode {
  // cuBLASLt with one algorithm for all numbers of rows, which depends on the shape, the device and
  // the library alone (matmul_pinning.h): neither split nor joined sums. A row's bits depend on the
  // row alone.
  kPinned,
  // The algorithm that cuBLASLt prefers for each number of rows, sums in parts included: not
  // batch-invariant. Runs on streams that have WorkspaceBytes.
  kFastest,
  // Own kernels (matmul_tiles.h) for bfloat16, without any library: a row's bits depend on the row
  // and the device's tensor cores alone, and small numbers of rows have small tiles.
  kOwn,
};

// y [rows, n] = x [rows, k] W^T + bias, or y += that; sums in float32, rounded once.
struct MatmulShape {
  int64_t n = 0;  // multiples of kElementPadding: pad W with zero rows and columns
  int64_t k = 0;
  ElementType type = ElementType::kF32;    // of x and W
  ElementType output = ElementType::kF32;  // of y and bias
  bool bias = false;
  bool accumulate = false;  // y += …, the residual stream
  bool gelu = false;        // of the sum and the bias, the exact form; where HasGelu(mode)
};

// cuBLASLt's epilogue is the tanh approximation, which is another function.
inline bool HasGelu(MatmulMode mode) { return mode == MatmulMode::kOwn; }

// Workspace that products may use: what NVIDIA advises for Hopper. Pinned ones use none, since a
// sum that is taken in one piece needs none.
constexpr int64_t WorkspaceBytes(MatmulMode mode) {
  return mode == MatmulMode::kFastest ? int64_t{32} << 20 : 0;
}

// One product, ready to run. Immutable: several threads and streams may run it.
class MatmulPlan {
 public:
  virtual ~MatmulPlan() = default;

  const MatmulShape& shape() const { return shape_; }
  // x [PadRows(rows), k], w [n, k], bias [n] or nullptr as the shape says, y [PadRows(rows), n];
  // row-major without gaps, each at a multiple of 16 bytes. Rows from `rows` on are computed from
  // whatever lies there and may become anything. On a stream of KernelLaunch::kEarly W is written
  // by nothing: own products read it before earlier work has ended. INVALID_ARGUMENT where the
  // stream's workspace is smaller than WorkspaceBytes of the mode.
  absl::Status Run(const void* x, const void* w, const void* bias, void* y, int64_t rows,
                   const Stream& stream) const;
  // E.g. "algorithm 66, tile 20, stages 35": for logs and benchmark records.
  virtual std::string description() const = 0;

 protected:
  // Runs have at most `max_piece` rows, a multiple of kMatmulRowTile; more rows are several runs.
  MatmulPlan(const MatmulShape& shape, MatmulMode mode, int64_t max_rows, int64_t max_piece)
      : shape_(shape), mode_(mode), max_rows_(max_rows), max_piece_(max_piece) {}

  int64_t max_rows() const { return max_rows_; }

 private:
  virtual absl::Status RunPiece(const void* x, const void* w, const void* bias, void* y,
                                int64_t rows, const Stream& stream) const = 0;

  MatmulShape shape_;
  MatmulMode mode_;
  int64_t max_rows_;
  int64_t max_piece_;
};

// What computes products, in one mode.
class MatmulLibrary {
 public:
  // For the current device. FAILED_PRECONDITION where the mode needs cuBLASLt and there is none of
  // the version built for: it is loaded here, a program starts without it.
  static absl::StatusOr<std::shared_ptr<const MatmulLibrary>> Load(MatmulMode mode);
  virtual ~MatmulLibrary() = default;

  MatmulMode mode() const { return mode_; }
  // With its version, if it has one: for logs and benchmark records.
  virtual std::string name() const = 0;
  // For up to `max_rows` rows. INVALID_ARGUMENT for a shape outside the contract,
  // FAILED_PRECONDITION where cuBLASLt has no algorithm for it.
  absl::StatusOr<std::unique_ptr<const MatmulPlan>> Plan(const MatmulShape& shape,
                                                         int64_t max_rows) const;

 protected:
  explicit MatmulLibrary(MatmulMode mode) : mode_(mode) {}

 private:
  // Of a shape within the contract.
  virtual absl::StatusOr<std::unique_ptr<const MatmulPlan>> MakePlan(const MatmulShape& shape,
                                                                     int64_t max_rows) const = 0;

  MatmulMode mode_;
};

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_MATMUL_H_
