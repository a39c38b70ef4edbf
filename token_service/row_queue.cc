#include "token_service/row_queue.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace blockserve {

absl::Status RowQueue::Submit(QueuedRow row, absl::Time now) {
  if (draining_) return absl::UnavailableError("the worker is draining");
  if (row.deadline <= now) return absl::DeadlineExceededError("no time was left on arrival");
  if (waiting() >= options_.max_queued_rows) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the worker's queue of ", options_.max_queued_rows, " rows is full"));
  }
  if (!ids_.insert({row.stream, row.id}).second) {
    return absl::InvalidArgumentError(absl::StrCat("id: a row ", row.id, " waits already"));
  }
  earliest_deadline_ = std::min(earliest_deadline_, row.deadline);
  const int level = Level(row.priority);
  const int64_t turn = arrivals_++ + int64_t{level} * options_.head_start_rows;
  levels_[level].push_back({turn, std::move(row)});
  return absl::OkStatus();
}

template <class Which>
void RowQueue::Remove(const Which& which, std::vector<QueuedRow>& out) {
  for (std::deque<Entry>& level : levels_) {
    auto keep = level.begin();
    for (Entry& entry : level) {
      if (which(entry.row)) {
        ids_.erase({entry.row.stream, entry.row.id});
        out.push_back(std::move(entry.row));
      } else {
        if (&*keep != &entry) *keep = std::move(entry);
        ++keep;
      }
    }
    level.erase(keep, level.end());
  }
}

void RowQueue::Cancel(StreamId stream, absl::Span<const uint64_t> ids,
                      std::vector<QueuedRow>& cancelled) {
  absl::flat_hash_set<uint64_t> waiting;
  for (const uint64_t id : ids) {
    if (ids_.contains({stream, id})) waiting.insert(id);
  }
  if (waiting.empty()) return;
  Remove([&](const QueuedRow& row) { return row.stream == stream && waiting.contains(row.id); },
         cancelled);
}

void RowQueue::CloseStream(StreamId stream) {
  std::vector<QueuedRow> removed;
  Remove([&](const QueuedRow& row) { return row.stream == stream; }, removed);
}

std::vector<QueuedRow> RowQueue::TakeAll() {
  std::vector<QueuedRow> all;
  Remove([](const QueuedRow&) { return true; }, all);
  return all;
}

void RowQueue::TakeBatch(absl::Time now, std::vector<QueuedRow>& batch,
                         std::vector<QueuedRow>& expired) {
  if (earliest_deadline_ <= now) {
    Remove([&](const QueuedRow& row) { return row.deadline <= now; }, expired);
    earliest_deadline_ = absl::InfiniteFuture();
    for (const std::deque<Entry>& level : levels_) {
      for (const Entry& entry : level) {
        earliest_deadline_ = std::min(earliest_deadline_, entry.row.deadline);
      }
    }
  }
  while (!ids_.empty() && static_cast<int32_t>(batch.size()) < options_.max_rows) {
    std::deque<Entry>* first = nullptr;
    for (std::deque<Entry>& level : levels_) {
      if (!level.empty() && (first == nullptr || level.front().turn < first->front().turn)) {
        first = &level;
      }
    }
    QueuedRow& row = first->front().row;
    ids_.erase({row.stream, row.id});
    batch.push_back(std::move(row));
    first->pop_front();
  }
  running_ += static_cast<int32_t>(batch.size());
}

}  // namespace blockserve
