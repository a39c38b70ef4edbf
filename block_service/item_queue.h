// What a sequence has been asked and has not answered yet.
#ifndef BLOCKSERVE_BLOCK_SERVICE_ITEM_QUEUE_H_
#define BLOCKSERVE_BLOCK_SERVICE_ITEM_QUEUE_H_

#include <cstddef>
#include <utility>
#include <vector>

#include "block_service/block_item.h"

namespace blockserve {

// First in, first out. Nearly always it holds one item or none: it keeps its memory, and takes none
// while it goes on like that. Not thread-safe.
class ItemQueue {
 public:
  bool empty() const { return first_ == items_.size(); }
  size_t size() const { return items_.size() - first_; }
  size_t capacity() const { return items_.capacity(); }  // items, those that were taken included
  // The oldest. References are valid until the next push_back.
  BlockWorkItem& front() { return items_[first_]; }
  const BlockWorkItem& front() const { return items_[first_]; }
  const BlockWorkItem* begin() const { return items_.data() + first_; }
  const BlockWorkItem* end() const { return items_.data() + items_.size(); }
  BlockWorkItem* begin() { return items_.data() + first_; }
  BlockWorkItem* end() { return items_.data() + items_.size(); }

  void push_back(BlockWorkItem&& item) {
    // What was taken makes room before more memory does: each item is moved once at most on
    // average.
    if (items_.size() == items_.capacity() && first_ >= items_.size() - first_) {
      items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(first_));
      first_ = 0;
    }
    items_.push_back(std::move(item));
  }
  void pop_front() {
    items_[first_++].call = {};  // its tokens
    if (first_ < items_.size()) return;
    items_.clear();
    first_ = 0;
  }

 private:
  std::vector<BlockWorkItem> items_;  // those before `first_` were taken
  size_t first_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_ITEM_QUEUE_H_
