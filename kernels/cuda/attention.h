// Causal attention: over pages of keys and values (block decoder), and inside one block of tokens
// (token decoder). The contract of row_kernels.h holds: a query's bits do not depend on the other
// queries of a launch, on how positions are spread over launches (prefill in chunks of any size, or
// decoding), nor on the page size.
//
// Scores are q k / sqrt(d), softmax and weighted sum in float32; over pages of bfloat16, on tensor
// cores, q and the weights are rounded to bfloat16 too. Positions are taken in tiles of a fixed
// size from 0 on, whatever the query's position and the page size; a tile's maximum and sums are
// joined with the running ones in ascending order.
#ifndef BLOCKSERVE_KERNELS_CUDA_ATTENTION_H_
#define BLOCKSERVE_KERNELS_CUDA_ATTENTION_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/runtime.h"

namespace blockserve::cuda {

inline constexpr int32_t kAttentionTile = 128;
inline constexpr int32_t kMaxHeadSize = 128;

// One position of a sequence in a batch.
struct SequenceRow {
  int32_t position = -1;    // attends to 0 .. position; negative: no row, nothing is read or stored
  int32_t pages_begin = 0;  // of the sequence's page table, in `page_tables`
};

// Takes rows of attention.query_key_value apart: rotates q and k (half-split pairing), scales q,
// stores k and v in the row's page.
struct SplitQkvArgs {
  int64_t rows = 0;
  const void* qkv = nullptr;  // [rows, qkv_stride] layout.type: q, k, v of head 0, of head 1, …
  int64_t qkv_stride = 0;
  const SequenceRow* sequence_rows = nullptr;  // [rows], on the device
  const int32_t* page_tables = nullptr;        // on the device
  KvLayout layout;
  void* kv = nullptr;          // pages of this layer
  int32_t rotary_dims = 0;     // even
  const float* cos = nullptr;  // [positions, rotary_dims / 2], on the device
  const float* sin = nullptr;
  float q_scale = 1;
  float* q = nullptr;  // [rows, heads * layout.head_stride()]
};
absl::Status SplitQkv(const SplitQkvArgs& args, StreamHandle stream);

// After SplitQkv of all rows.
struct BlockAttentionArgs {
  int64_t rows = 0;
  const float* q = nullptr;                    // as SplitQkvArgs
  const SequenceRow* sequence_rows = nullptr;  // [rows], on the device
  const int32_t* page_tables = nullptr;
  KvLayout layout;
  const void* kv = nullptr;
  void* out = nullptr;     // [rows, out_stride] layout.type: head h at h * head_size
  int64_t out_stride = 0;  // padding is left as it is; rows that are none become zero
  // 1 for decoding; kAttentionQueries for prefill: so many consecutive rows, or more, share what
  // they read of keys and values, where they are consecutive positions of one sequence. Either is
  // right for any rows, with the same bits.
  int32_t queries_per_block = 1;
};
inline constexpr int32_t kAttentionQueries = 8;
absl::Status BlockAttention(const BlockAttentionArgs& args, StreamHandle stream);

// Positions of a block that the token decoder's attention can hold.
inline constexpr int32_t kMaxTokenPositions = 128;

// Rotation, keys and values and attention of the token decoder in one kernel. Slots run in step:
// row s * rows_per_slot + i is the position first_index + i of slot s, for all slots.
struct TokenAttentionArgs {
  int64_t slots = 0;
  int32_t rows_per_slot = 1;
  int32_t first_index = 0;    // positions 0 .. first_index - 1 are in the slots' pages
  const void* qkv = nullptr;  // [slots * rows_per_slot, qkv_stride], as SplitQkvArgs
  int64_t qkv_stride = 0;
  KvLayout layout;             // page s is slot s; page_blocks <= kMaxTokenPositions
  void* kv = nullptr;          // pages of this layer
  int32_t rotary_dims = 0;     // even
  const float* cos = nullptr;  // [page_blocks, rotary_dims / 2], on the device
  const float* sin = nullptr;
  float q_scale = 1;
  void* out = nullptr;  // [slots * rows_per_slot, out_stride] layout.type; padding is left
  int64_t out_stride = 0;
};
absl::Status TokenAttention(const TokenAttentionArgs& args, StreamHandle stream);

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_ATTENTION_H_
