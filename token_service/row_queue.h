// Which rows a token worker decodes next, and what the others are told: a bounded queue with
// priorities, deadlines and cancellation. Policy alone: no gRPC, no threads, no clock.
#ifndef BLOCKSERVE_TOKEN_SERVICE_ROW_QUEUE_H_
#define BLOCKSERVE_TOKEN_SERVICE_ROW_QUEUE_H_

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "token_service/decode_row.h"

namespace blockserve {

// A connection of a gateway, numbered by this process; never 0.
using StreamId = uint64_t;

struct QueuedRow {
  StreamId stream = 0;
  uint64_t id = 0;  // the gateway's, unique in the stream
  absl::Time deadline = absl::InfiniteFuture();
  uint32_t priority = 2;           // 1 high, 2 normal, 3 batch; others count as normal
  std::unique_ptr<DecodeRow> row;  // not looked at here
};

struct RowQueueOptions {
  int32_t max_rows = 64;           // of a batch
  int32_t max_queued_rows = 1024;  // that wait; more are refused
  // A row is overtaken by at most so many later rows of the next higher priority (twice as many of
  // the highest, if it is of the lowest): urgent work goes first, and nothing waits for ever.
  int32_t head_start_rows = 256;
};

// Every row submitted comes to one end: refused by Submit, told by Cancel, dropped with its stream,
// expired, or in a batch. Not thread-safe.
class RowQueue {
 public:
  explicit RowQueue(const RowQueueOptions& options) : options_(options) {}

  // Not OK is the row's answer: RESOURCE_EXHAUSTED (the queue is full), UNAVAILABLE (draining),
  // DEADLINE_EXCEEDED, INVALID_ARGUMENT (a row of this stream with this id waits already).
  absl::Status Submit(QueuedRow row, absl::Time now);

  // Moves those of the stream's rows that wait to `cancelled`, to be answered CANCELLED, in one
  // pass over the queue. Others, being decoded, done or unknown, are left alone.
  void Cancel(StreamId stream, absl::Span<const uint64_t> ids, std::vector<QueuedRow>& cancelled);

  // The stream's waiting rows are dropped; there is nobody to answer.
  void CloseStream(StreamId stream);

  // Moves the rows to decode next to `batch` (at most max_rows), and those whose time is over to
  // `expired`, to be answered DEADLINE_EXCEEDED. The batch is running until FinishBatch is told of
  // so many rows; several may be.
  void TakeBatch(absl::Time now, std::vector<QueuedRow>& batch, std::vector<QueuedRow>& expired);
  void FinishBatch(int32_t rows) { running_ -= rows; }

  // From now on every new row is refused.
  void StartDraining() { draining_ = true; }
  bool draining() const { return draining_; }

  // Takes all that wait out of the queue.
  std::vector<QueuedRow> TakeAll();

  int32_t waiting() const { return static_cast<int32_t>(ids_.size()); }
  int32_t running() const { return running_; }
  bool idle() const { return ids_.empty() && running_ == 0; }

 private:
  struct Entry {
    int64_t turn;  // lower ones go first
    QueuedRow row;
  };
  static constexpr int kLevels = 3;

  static int Level(uint32_t priority) { return priority == 1 ? 0 : priority == 3 ? 2 : 1; }
  // Moves the waiting rows for which `which` holds to `out`, in order of priority and arrival.
  template <class Which>
  void Remove(const Which& which, std::vector<QueuedRow>& out);

  const RowQueueOptions options_;
  std::array<std::deque<Entry>, kLevels> levels_;           // each in order of `turn`
  absl::flat_hash_set<std::pair<StreamId, uint64_t>> ids_;  // of the rows in levels_
  absl::Time earliest_deadline_ = absl::InfiniteFuture();   // none that waits is earlier
  int64_t arrivals_ = 0;
  int32_t running_ = 0;
  bool draining_ = false;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_ROW_QUEUE_H_
