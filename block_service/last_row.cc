#include "block_service/last_row.h"

#include <utility>

namespace blockserve {

void RecentSteps::Add(std::shared_ptr<const float[]> contexts) {
  Step step;
  if (steps_.size() == most_) {
    Step& oldest = steps_.front();
    for (LastRow* row : oldest.rows) {
      if (row != nullptr) row->Assign(row->values_);
    }
    step = std::move(oldest);  // for its memory
    steps_.pop_front();
  }
  step.contexts = std::move(contexts);
  step.rows.clear();
  steps_.push_back(std::move(step));
}

void RecentSteps::Keep(absl::Span<const float> values, LastRow& row) {
  row.Leave();
  Step& step = steps_.back();
  row.values_ = values;
  row.step_ = &step;
  row.index_ = step.rows.size();
  step.rows.push_back(&row);
}

void LastRow::Assign(absl::Span<const float> values) {
  own_.assign(values.begin(), values.end());
  Leave();
  values_ = own_;
}

void LastRow::Clear() {
  Leave();
  own_ = {};
  values_ = {};
}

}  // namespace blockserve
