// How the keys and values of one layer lie in a KV page.
#ifndef BLOCKSERVE_KERNELS_CPU_KV_LAYOUT_H_
#define BLOCKSERVE_KERNELS_CPU_KV_LAYOUT_H_

#include <cstdint>

#include "kernels/cpu/packed_matrix.h"

namespace blockserve {

// One page holds `page_blocks` positions of all heads, head after head. For each head:
//   keys,   [ceil(page_blocks / 16)][head_size][16 positions] float, or for bf16
//           [ceil(page_blocks / 16)][ceil(head_size / 2)][16 positions] uint32 with the even
//           dimension in the low half: scores are computed for 16 positions at a time. Pages of
//           fewer than 16 positions (a block of the token decoder) have so many in place of 16:
//           loads of 16 lanes then see what comes after, too
//   values, [page_blocks][head_size padded to 16] float, or for bf16
//           [ceil(page_blocks / 2)][head_size padded to 16] uint32 with the even position in the
//           low half: outputs are computed for 16 dimensions at a time
// Lanes of positions that were not written hold anything; their scores are masked.
struct KvLayout {
  int32_t num_heads = 0;
  int32_t head_size = 0;
  int32_t page_blocks = 0;
  bool bf16 = false;

  int64_t head_stride() const { return PadToPanel(head_size); }  // elements of a row of q or values
  int64_t key_groups() const { return (page_blocks + kPanelWidth - 1) / kPanelWidth; }
  // Positions from one dimension, or pair of dimensions, to the next.
  int64_t key_lanes() const { return page_blocks < kPanelWidth ? page_blocks : kPanelWidth; }
  int64_t key_group_bytes() const {
    return (bf16 ? (head_size + 1) / 2 : head_size) * key_lanes() * 4;
  }
  // A row of values is one position, or two of bf16.
  int64_t value_rows() const { return bf16 ? (page_blocks + 1) / 2 : page_blocks; }
  int64_t value_row_bytes() const { return head_stride() * 4; }
  // Where the row of a position of the page begins, in bytes from the first.
  int64_t value_row(int64_t local) const { return (bf16 ? local / 2 : local) * value_row_bytes(); }
  int64_t keys_bytes() const { return (key_groups() * key_group_bytes() + 63) / 64 * 64; }
  int64_t head_bytes() const {
    return keys_bytes() + value_rows() * value_row_bytes();  // rows of whole cache lines
  }
  int64_t page_bytes() const { return num_heads * head_bytes(); }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_KV_LAYOUT_H_
