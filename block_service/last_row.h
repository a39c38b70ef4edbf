// The context row of each sequence's last block, which a call that is repeated is answered with.
//
// A row is hardly ever asked for, and a copy of each would be a good part of what a step costs the
// engine's thread. So the results of the last steps are kept as a whole, and a row is copied only
// where its sequence has had no step since then.
#ifndef BLOCKSERVE_BLOCK_SERVICE_LAST_ROW_H_
#define BLOCKSERVE_BLOCK_SERVICE_LAST_ROW_H_

#include <cstddef>
#include <deque>
#include <memory>
#include <vector>

#include "absl/types/span.h"

namespace blockserve {

class LastRow;

// The results of the last steps. Not thread-safe. Must outlive the rows that it keeps.
class RecentSteps {
 public:
  // Keeps the results of so many steps: at least 1.
  explicit RecentSteps(size_t steps) : most_(steps) {}
  RecentSteps(const RecentSteps&) = delete;
  RecentSteps& operator=(const RecentSteps&) = delete;

  // A step has given `contexts`. What is still wanted of the oldest one is copied.
  void Add(std::shared_ptr<const float[]> contexts);
  // From now on `row` is `values`, which lie in the results of the last step added.
  void Keep(absl::Span<const float> values, LastRow& row);

 private:
  friend class LastRow;
  struct Step {
    std::shared_ptr<const float[]> contexts;
    std::vector<LastRow*> rows;  // that lie in them; null: not any more
  };
  const size_t most_;
  std::deque<Step> steps_;  // the oldest first; their addresses are stable
};

class LastRow {
 public:
  LastRow() = default;
  ~LastRow() { Leave(); }
  LastRow(const LastRow&) = delete;
  LastRow& operator=(const LastRow&) = delete;

  // [D]; empty where the row is not known. Valid until the next step is added, or the row changed.
  absl::Span<const float> values() const { return values_; }
  // Takes a copy of its own.
  void Assign(absl::Span<const float> values);
  // The row is not known; its memory is given back.
  void Clear();

 private:
  friend class RecentSteps;
  void Leave() {
    if (step_ != nullptr) step_->rows[index_] = nullptr;
    step_ = nullptr;
  }

  absl::Span<const float> values_;
  std::vector<float> own_;
  RecentSteps::Step* step_ = nullptr;  // whose results `values_` lie in; null: in `own_`
  size_t index_ = 0;                   // of this among the step's rows
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_LAST_ROW_H_
