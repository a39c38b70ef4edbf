// Positions of the block decoder as they travel to a device: rows, tokens and page tables in one
// copy.
#ifndef BLOCKSERVE_MODEL_CUDA_BLOCK_BATCH_H_
#define BLOCKSERVE_MODEL_CUDA_BLOCK_BATCH_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/attention.h"
#include "model/engine.h"

namespace blockserve {

// Byte offsets in the buffer of a batch of `rows` positions. The tables come last: they may be of
// any length, so that nothing else moves with it.
struct BlockIoLayout {
  BlockIoLayout() = default;
  BlockIoLayout(int32_t block_length, int32_t rows);

  int64_t sequence_rows = 0;  // [rows] cuda::SequenceRow
  int64_t tokens = 0;         // [rows, L] int32
  int64_t wanted = 0;         // [rows] int32: rows whose contexts are wanted, ascending
  int64_t tables = 0;         // int32 page tables, one after the other
};

// Entries of page tables that a batch must have room for: what `max_rows` sequences of
// `usual_blocks` blocks need, within reason, and one sequence that owns every page.
int64_t PageTableCapacity(int64_t num_pages, int32_t page_blocks, int32_t max_rows,
                          int64_t usual_blocks);

// Collects the positions of chunks up to so many rows and entries of page tables. A chunk may be
// spread over several batches: its keys and values are in the pages for the next one.
class BlockBatch {
 public:
  BlockBatch() = default;
  BlockBatch(int32_t block_length, int32_t page_blocks, int32_t max_rows, int64_t table_capacity);

  void Clear();
  // Adds blocks of the chunk from its block `first` (counted in the chunk) on; returns how many.
  // Fewer than all of them, perhaps none: run the batch, then go on.
  int64_t Add(const BlockChunk& chunk, int64_t first);

  bool empty() const { return rows_.empty(); }
  int32_t num_rows() const { return static_cast<int32_t>(rows_.size()); }
  int32_t num_wanted() const { return static_cast<int32_t>(wanted_.size()); }
  // Every sequence has one position, whose context is wanted.
  bool decodes() const { return single_ && wanted_.size() == rows_.size(); }
  // How many of the first rows are each the only one of their chunk here.
  int32_t leading_singles() const { return leading_singles_; }
  int64_t last_position() const { return last_position_; }

  // Writes the batch to host memory as one of `layout_rows` rows; those beyond its own are none.
  // Returns the bytes in use.
  int64_t Pack(int32_t layout_rows, const BlockIoLayout& layout, uint8_t* io) const;

 private:
  int32_t block_length_ = 1;
  int32_t page_blocks_ = 1;
  int32_t max_rows_ = 0;
  int64_t table_capacity_ = 0;
  std::vector<cuda::SequenceRow> rows_;
  std::vector<int32_t> tokens_;
  std::vector<int32_t> wanted_;
  std::vector<int32_t> tables_;
  bool single_ = true;
  int32_t leading_singles_ = 0;
  int64_t last_position_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_BLOCK_BATCH_H_
