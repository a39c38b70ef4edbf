// What the attention files share: rotation, runs of rows, and the addresses of keys and values.
#ifndef BLOCKSERVE_KERNELS_CUDA_HEAD_ROWS_H_
#define BLOCKSERVE_KERNELS_CUDA_HEAD_ROWS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_math.h"

namespace blockserve::cuda {

// Element c of a head's row `x`, rotated: half-split pairing on the first `dims` elements. cos and
// sin are the table's row of the position.
template <typename T>
__device__ inline float RotatedElement(const T* x, int c, int dims, const float* cos,
                                       const float* sin) {
  const float value = ToFloat(x[c]);
  if (c >= dims) return value;
  const int half = dims / 2;
  if (c < half) return __fmaf_rn(value, cos[c], -(ToFloat(x[c + half]) * sin[c]));
  return __fmaf_rn(value, cos[c - half], ToFloat(x[c - half]) * sin[c - half]);
}

// KvLayout as kernels use it, in elements.
struct KvStrides {
  int32_t page_blocks = 0;
  int32_t page_shift = -1;  // its logarithm, where it has one: divisions are slow
  int32_t head_stride = 0;
  int64_t rows_stride = 0;
  int64_t page_stride = 0;

  explicit KvStrides(const KvLayout& layout)
      : page_blocks(layout.page_blocks),
        head_stride(static_cast<int32_t>(layout.head_stride())),
        rows_stride(layout.rows_stride()),
        page_stride(layout.page_stride()) {
    if ((page_blocks & (page_blocks - 1)) != 0) return;
    for (page_shift = 0; 1 << page_shift < page_blocks;) ++page_shift;
  }

  __device__ int32_t PageOf(int32_t position) const {
    return page_shift >= 0 ? position >> page_shift : position / page_blocks;
  }
  // Of the keys of a head in a page; the values are rows_stride after them.
  __device__ int64_t KeysOffset(int64_t page, int head) const {
    return page * page_stride + head * 2 * rows_stride;
  }
};

// How many of rows[row, end), from `row` on, are consecutive positions of one sequence.
__device__ inline int ConsecutiveRows(const SequenceRow* rows, int64_t row, int64_t end) {
  const SequenceRow first = rows[row];
  int count = 1;
  while (row + count < end) {
    const SequenceRow next = rows[row + count];
    if (next.pages_begin != first.pages_begin || next.position != first.position + count) break;
    ++count;
  }
  return count;
}

inline absl::Status CheckHeads(const char* name, const KvLayout& layout, int32_t rotary_dims,
                               int64_t qkv_stride) {
  if (layout.num_heads < 1 || layout.num_heads > 0xffff || layout.head_size < 1 ||
      layout.head_size > kMaxHeadSize || layout.page_blocks < 1 || rotary_dims < 0 ||
      rotary_dims > layout.head_size || rotary_dims % 2 != 0 ||
      qkv_stride < int64_t{3} * layout.num_heads * layout.head_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": ", layout.num_heads, " heads of ", layout.head_size, " (at most ", kMaxHeadSize,
        "), ", rotary_dims, " rotated, pages of ", layout.page_blocks, ", stride ", qkv_stride));
  }
  return absl::OkStatus();
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_HEAD_ROWS_H_
