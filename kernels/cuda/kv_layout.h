// How the keys and values of one layer lie in a KV page on the device.
#ifndef BLOCKSERVE_KERNELS_CUDA_KV_LAYOUT_H_
#define BLOCKSERVE_KERNELS_CUDA_KV_LAYOUT_H_

#include <cstdint>

#include "kernels/cuda/element_type.h"

namespace blockserve::cuda {

// A page is [heads][2: keys, values][page_blocks][head_stride] elements: what one head reads of a
// page is two contiguous pieces, and every row of them begins at a multiple of 16 bytes. Elements
// from head_size to head_stride are zero, as they were allocated: nothing else is written there.
// Rows that were not written may hold anything.
struct KvLayout {
  int32_t num_heads = 0;
  int32_t head_size = 0;
  int32_t page_blocks = 0;
  ElementType type = ElementType::kF32;

  int64_t head_stride() const { return (head_size + 7) / 8 * 8; }
  int64_t rows_stride() const { return page_blocks * head_stride(); }  // from keys to values
  int64_t page_stride() const { return num_heads * 2 * rows_stride(); }
  int64_t page_bytes() const { return page_stride() * ElementBytes(type); }
};

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_KV_LAYOUT_H_
