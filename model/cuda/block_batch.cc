#include "model/cuda/block_batch.h"

#include <algorithm>
#include <cstring>

namespace blockserve {
namespace {

int64_t Align(int64_t bytes) { return (bytes + 15) / 16 * 16; }

// 4 MiB of tables in one copy are enough.
constexpr int64_t kMostUsualEntries = int64_t{1} << 20;

}  // namespace

BlockIoLayout::BlockIoLayout(int32_t block_length, int32_t rows) {
  tokens = Align(rows * static_cast<int64_t>(sizeof(cuda::SequenceRow)));
  wanted = Align(tokens + int64_t{rows} * block_length * 4);
  tables = Align(wanted + int64_t{rows} * 4);
}

int64_t PageTableCapacity(int64_t num_pages, int32_t page_blocks, int32_t max_rows,
                          int64_t usual_blocks) {
  const int64_t usual_pages =
      std::min((usual_blocks + page_blocks - 1) / page_blocks, kMostUsualEntries / max_rows);
  return std::max(num_pages, max_rows * std::max<int64_t>(usual_pages, 1));
}

BlockBatch::BlockBatch(int32_t block_length, int32_t page_blocks, int32_t max_rows,
                       int64_t table_capacity)
    : block_length_(block_length),
      page_blocks_(page_blocks),
      max_rows_(max_rows),
      table_capacity_(table_capacity) {
  rows_.reserve(max_rows);
  tokens_.reserve(int64_t{max_rows} * block_length);
  wanted_.reserve(max_rows);
  tables_.reserve(table_capacity);
}

void BlockBatch::Clear() {
  rows_.clear();
  tokens_.clear();
  wanted_.clear();
  tables_.clear();
  single_ = true;
  leading_singles_ = 0;
  last_position_ = 0;
}

int64_t BlockBatch::Add(const BlockChunk& chunk, int64_t first) {
  const int64_t blocks = static_cast<int64_t>(chunk.tokens.size()) / block_length_ - first;
  const int64_t room = table_capacity_ - static_cast<int64_t>(tables_.size());
  // Positions before this one have an entry for their page.
  const int64_t first_position = chunk.first_block + first;
  const int64_t within_tables = room * page_blocks_ - first_position;
  const int64_t count = std::min({blocks, int64_t{max_rows_} - num_rows(), within_tables});
  if (count <= 0) return 0;
  if (count > 1) single_ = false;
  if (single_) ++leading_singles_;
  const int32_t pages_begin = static_cast<int32_t>(tables_.size());
  const int64_t pages = (first_position + count - 1) / page_blocks_ + 1;
  tables_.insert(tables_.end(), chunk.pages.begin(), chunk.pages.begin() + pages);
  const absl::Span<const int32_t> tokens =
      chunk.tokens.subspan(first * block_length_, count * block_length_);
  tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = first_position + i;
    if (position >= chunk.first_context) wanted_.push_back(num_rows());
    rows_.push_back({static_cast<int32_t>(position), pages_begin});
  }
  last_position_ = std::max(last_position_, first_position + count - 1);
  return count;
}

int64_t BlockBatch::Pack(int32_t layout_rows, const BlockIoLayout& layout, uint8_t* io) const {
  const auto copy = [io](int64_t offset, const auto& values) {
    if (!values.empty()) std::memcpy(io + offset, values.data(), values.size() * sizeof(values[0]));
  };
  copy(layout.sequence_rows, rows_);
  copy(layout.tokens, tokens_);
  copy(layout.wanted, wanted_);
  copy(layout.tables, tables_);
  const int64_t own = num_rows();
  auto* rows = reinterpret_cast<cuda::SequenceRow*>(io + layout.sequence_rows);
  std::fill(rows + own, rows + layout_rows, cuda::SequenceRow());
  auto* tokens = reinterpret_cast<int32_t*>(io + layout.tokens);
  std::fill(tokens + own * block_length_, tokens + int64_t{layout_rows} * block_length_, 0);
  return layout.tables + static_cast<int64_t>(tables_.size() * sizeof(int32_t));
}

}  // namespace blockserve
