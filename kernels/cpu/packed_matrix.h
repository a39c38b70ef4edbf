// A weight matrix in the order in which the matrix product reads it.
#ifndef BLOCKSERVE_KERNELS_CPU_PACKED_MATRIX_H_
#define BLOCKSERVE_KERNELS_CPU_PACKED_MATRIX_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "common/thread_pool.h"
#include "kernels/aligned_buffer.h"

namespace blockserve {

// Types of elements in checkpoints.
enum class ElementType { kF32, kF16, kBf16 };
int64_t ElementBytes(ElementType type);
// Element `index` of an array that need not be aligned.
float LoadElement(ElementType type, const uint8_t* data, int64_t index);

// Outputs of one panel, and the virtual vector width of every kernel.
inline constexpr int64_t kPanelWidth = 16;
inline constexpr int64_t PadToPanel(int64_t n) {
  return (n + kPanelWidth - 1) / kPanelWidth * kPanelWidth;
}

// A matrix as a checkpoint stores it.
struct MatrixSource {
  ElementType type = ElementType::kF32;
  const uint8_t* data = nullptr;  // [n, k] row-major, not necessarily aligned
  // > 1: a one-dimensional convolution, stored as [n, k / kernel_size, kernel_size] and applied to
  // kernel_size input rows laid end to end: inner index j * (k / kernel_size) + e of the product is
  // element [e, j] of the row.
  int64_t kernel_size = 1;
  const uint8_t* bias = nullptr;  // [n] of bias_type, or nullptr
  ElementType bias_type = ElementType::kF32;
};

// W [n, k] of y = x W^T + bias. Panels of 16 outputs; outputs beyond n are zero.
//   f32:  [n / 16][k][16] float
//   bf16: [n / 16][ceil(k / 2)][16] uint32, the low half for the even inner index, the high half
//   for
//         the odd one: one load and two operations give two inner steps at any vector width
class PackedMatrix {
 public:
  PackedMatrix() = default;

  // Rounds to bf16 (nearest, ties to even) when `bf16`. Runs on `pool`, whose turn the caller
  // holds. Errors: RESOURCE_EXHAUSTED naming the bytes.
  static absl::StatusOr<PackedMatrix> Pack(const MatrixSource& source, int64_t n, int64_t k,
                                           bool bf16, ThreadPool& pool);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  bool bf16() const { return bf16_; }
  int64_t num_panels() const { return (n_ + kPanelWidth - 1) / kPanelWidth; }
  // Elements (float or uint32) from one panel to the next.
  int64_t panel_stride() const { return (bf16_ ? (k_ + 1) / 2 : k_) * kPanelWidth; }
  // num_panels() panels of panel_stride() elements.
  const char* panel_data() const { return panels_.as<char>(); }
  const float* bias() const { return bias_.as<float>(); }  // [n padded to 16], zero without bias
  int64_t size_bytes() const { return panels_.size_bytes() + bias_.size_bytes(); }

 private:
  int64_t n_ = 0;
  int64_t k_ = 0;
  bool bf16_ = false;
  AlignedBuffer panels_;
  AlignedBuffer bias_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_PACKED_MATRIX_H_
