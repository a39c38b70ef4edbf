// The thread that decodes: takes batches from the queue, keeps the engine supplied with them, hands
// the answers out.
#ifndef BLOCKSERVE_TOKEN_SERVICE_TOKEN_WORKER_H_
#define BLOCKSERVE_TOKEN_SERVICE_TOKEN_WORKER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/busy_meter.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/ordered_handoff.h"
#include "common/progress.h"
#include "model/engine.h"
#include "token_service/row_queue.h"
#include "token_service/token_metrics.h"

namespace blockserve {

struct RowAnswer {
  StreamId stream = 0;
  uint64_t id = 0;
  absl::Status status;             // OK: `result` is the block
  std::unique_ptr<DecodeRow> row;  // as asked; may be null unless OK
  TokenRowResult result;
};

struct WorkerLoad {
  uint64_t steps = 0;  // since the start
  int32_t waiting = 0;
  int32_t running = 0;  // rows of the batches under way, or whose answers are on their way
  float busy_share = 0;
  bool draining = false;
};

// Thread-safe.
class TokenWorker {
 public:
  // Called without a lock, on one of the worker's threads, one call at a time and in the order of
  // decoding.
  using Deliver = std::function<void(std::vector<RowAnswer> answers)>;

  // Starts the thread. `engine` is used by it alone until Stop; it and `clock` must outlive this.
  TokenWorker(const RowQueueOptions& options, TokenEngine& engine, const Clock& clock,
              Deliver deliver, const TokenMetrics& metrics = {});
  ~TokenWorker();

  // Rows that are refused come back as answers; the others are delivered later.
  std::vector<RowAnswer> Submit(std::vector<QueuedRow> rows);
  // Those that were waiting come back as answers (CANCELLED).
  std::vector<RowAnswer> Cancel(StreamId stream, absl::Span<const uint64_t> ids);
  // Nothing is delivered for its waiting rows.
  void CloseStream(StreamId stream);

  // New rows are refused, those that wait come back as answers (UNAVAILABLE); those being decoded
  // are finished.
  std::vector<RowAnswer> StartDraining();
  // True as soon as no row is in hand and every answer was delivered; false when that took longer.
  bool WaitUntilIdle(absl::Duration timeout);

  // Finishes the step that runs, answers what waits UNAVAILABLE, ends the thread. Idempotent.
  void Stop();

  WorkerLoad load() const;
  // Of the worker's thread; outlives the worker.
  std::shared_ptr<const Progress> progress() const { return progress_; }

 private:
  struct Batch {
    std::vector<QueuedRow> queued;
    std::vector<TokenRow> rows;  // views of `queued`
    std::vector<TokenRowResult> results;
    absl::Time begin;
  };

  void Run();
  // Whether what waits is to be started now: at once where nothing is under way.
  bool MayStart() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StartBatch(std::vector<QueuedRow> queued);
  void FinishOldest();
  // Rows that are counted in undelivered_rows_. Where the engine has more to do, another thread
  // encodes and sends them.
  void HandOut(std::vector<RowAnswer> answers);

  // Tells `progress_` of the rows that are in hand now; `done`: the worker's thread has worked.
  void CountRows(bool done) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  TokenEngine& engine_;
  const Clock& clock_;
  const Deliver deliver_;
  const int32_t batch_rows_;
  const std::shared_ptr<Progress> progress_ = std::make_shared<Progress>();
  const TokenMetrics metrics_;
  mutable Mutex mutex_;
  CondVar work_;  // a row waits, or stop_
  CondVar idle_;
  RowQueue queue_ ABSL_GUARDED_BY(mutex_);
  BusyMeter busy_ ABSL_GUARDED_BY(mutex_);
  int64_t counted_rows_ ABSL_GUARDED_BY(mutex_) = 0;  // as `progress_` was told
  uint64_t steps_ ABSL_GUARDED_BY(mutex_) = 0;
  // Rows that the engine had when it last got some: those of all batches that were under way then.
  int32_t last_under_way_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t undelivered_rows_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<Batch> in_flight_;  // of the thread alone: started and not finished, oldest first
  absl::Time last_end_;          // of the thread alone: of the batch finished last
  // Of the thread alone: since when the engine has had nothing to do while rows waited.
  absl::Time idle_since_ = absl::InfiniteFuture();
  OrderedHandoff delivery_;
  std::thread thread_;  // last: it uses all the others
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_TOKEN_WORKER_H_
