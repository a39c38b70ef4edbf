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
// Elements from one row of `n` activations to the next: an odd number of cache lines, so that the
// rows of a tile do not share sets of the first-level cache.
inline constexpr int64_t RowStride(int64_t n) { return PadToPanel(n) | kPanelWidth; }

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

// How weights are stored, and so what multiplies them.
enum class WeightFormat {
  kF32,      // float32
  kBf16,     // bfloat16, widened to float32
  kBf16Dot,  // bfloat16, for dot products of bfloat16 pairs
  kInt8,     // 8-bit integers with one scale for each output
};

// Sums of so many products of 8-bit integers fit int32, whatever the integers are.
inline constexpr int64_t kMaxInt8Inputs = int64_t{1} << 17;

// W [n, k] of y = x W^T + bias. Panels of 16 outputs; outputs beyond n are zero.
//   kF32:  [n / 16][k][16] float
//   kBf16, kBf16Dot: [n / 16][ceil(k / 2)][16] uint32, the low half for the even inner index, the
//          high half for the odd one: one load and two operations give two inner steps at any
//          vector width
//   kInt8: [n / 16][ceil(k / 4)][16][4] int8 in [-127, 127]; W[o, i] is scales()[o] times that
class PackedMatrix {
 public:
  PackedMatrix() = default;

  // Rounds to nearest, ties to even. Runs on `pool`, whose turn the caller holds. Errors:
  // RESOURCE_EXHAUSTED naming the bytes; INVALID_ARGUMENT for kInt8 with a k above kMaxInt8Inputs.
  static absl::StatusOr<PackedMatrix> Pack(const MatrixSource& source, int64_t n, int64_t k,
                                           WeightFormat format, ThreadPool& pool);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  WeightFormat format() const { return format_; }
  int64_t num_panels() const { return (n_ + kPanelWidth - 1) / kPanelWidth; }
  // From one panel to the next: whole cache lines.
  int64_t panel_bytes() const { return Lines(format_, k_) * kPanelWidth * 4; }
  const char* panel_data() const { return panels_.as<char>(); }
  const float* bias() const { return bias_.as<float>(); }  // [n padded to 16], zero without bias
  // kInt8 only, [n padded to 16]: the scale of an output, and 128 times the sum of its weights.
  const float* scales() const { return scales_.as<float>(); }
  const int32_t* offsets() const { return offsets_.as<int32_t>(); }
  int64_t size_bytes() const {
    return panels_.size_bytes() + bias_.size_bytes() + scales_.size_bytes() + offsets_.size_bytes();
  }

 private:
  // Cache lines of a panel: groups of inner steps of 16 outputs.
  static int64_t Lines(WeightFormat format, int64_t k);

  int64_t n_ = 0;
  int64_t k_ = 0;
  WeightFormat format_ = WeightFormat::kF32;
  AlignedBuffer panels_;
  AlignedBuffer bias_;
  AlignedBuffer scales_;
  AlignedBuffer offsets_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_PACKED_MATRIX_H_
