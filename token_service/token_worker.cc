#include "token_service/token_worker.h"

#include <algorithm>
#include <utility>

#include "common/lost_device.h"
#include "common/thread_name.h"
#include "model/batch_beside.h"

namespace blockserve {
namespace {

// Batches whose answers wait to be sent; a worker that is further ahead waits.
constexpr size_t kMostUndelivered = 2;

RowQueueOptions WithBatchesOf(RowQueueOptions options, int32_t rows) {
  options.max_rows = rows;
  return options;
}

RowAnswer Answer(QueuedRow& row, absl::Status status) {
  RowAnswer answer;
  answer.stream = row.stream;
  answer.id = row.id;
  answer.status = std::move(status);
  answer.row = std::move(row.row);
  return answer;
}

}  // namespace

TokenWorker::TokenWorker(const RowQueueOptions& options, TokenEngine& engine, const Clock& clock,
                         Deliver deliver, const TokenMetrics& metrics)
    : engine_(engine),
      clock_(clock),
      deliver_(std::move(deliver)),
      batch_rows_(std::min(options.max_rows, engine.batch_rows())),
      metrics_(metrics),
      queue_(WithBatchesOf(options, batch_rows_)),
      busy_(clock.Now()),
      delivery_("token-delivery", kMostUndelivered),
      thread_([this] { Run(); }) {}

TokenWorker::~TokenWorker() { Stop(); }

std::vector<RowAnswer> TokenWorker::Submit(std::vector<QueuedRow> rows) {
  std::vector<RowAnswer> refused;
  const absl::Time now = clock_.Now();
  MutexLock lock(&mutex_);
  for (QueuedRow& row : rows) {
    const StreamId stream = row.stream;
    const uint64_t id = row.id;
    absl::Status status = queue_.Submit(std::move(row), now);
    if (!status.ok()) {
      RowAnswer answer;
      answer.stream = stream;
      answer.id = id;
      answer.status = std::move(status);
      refused.push_back(std::move(answer));
    }
  }
  CountRows(/*done=*/false);
  metrics_.rows_refused.Add(static_cast<double>(refused.size()));
  if (queue_.waiting() > 0) work_.Signal();
  return refused;
}

std::vector<RowAnswer> TokenWorker::Cancel(StreamId stream, absl::Span<const uint64_t> ids) {
  std::vector<QueuedRow> cancelled;
  {
    MutexLock lock(&mutex_);
    queue_.Cancel(stream, ids, cancelled);
    CountRows(/*done=*/false);
    metrics_.rows_cancelled.Add(static_cast<double>(cancelled.size()));
    if (queue_.idle()) idle_.SignalAll();
  }
  std::vector<RowAnswer> answers;
  answers.reserve(cancelled.size());
  for (QueuedRow& row : cancelled) {
    answers.push_back(Answer(row, absl::CancelledError("the gateway gave the row up")));
  }
  return answers;
}

void TokenWorker::CloseStream(StreamId stream) {
  MutexLock lock(&mutex_);
  queue_.CloseStream(stream);
  CountRows(/*done=*/false);
  if (queue_.idle()) idle_.SignalAll();
}

std::vector<RowAnswer> TokenWorker::StartDraining() {
  std::vector<QueuedRow> waiting;
  {
    MutexLock lock(&mutex_);
    queue_.StartDraining();
    waiting = queue_.TakeAll();
    CountRows(/*done=*/false);
    if (queue_.idle()) idle_.SignalAll();
  }
  std::vector<RowAnswer> answers;
  for (QueuedRow& row : waiting) {
    answers.push_back(Answer(row, absl::UnavailableError("the worker is draining")));
  }
  return answers;
}

bool TokenWorker::WaitUntilIdle(absl::Duration timeout) {
  const absl::Time deadline = clock_.Now() + timeout;
  MutexLock lock(&mutex_);
  while (!queue_.idle() || undelivered_rows_ > 0) {
    const absl::Duration left = deadline - clock_.Now();
    if (left <= absl::ZeroDuration()) return false;
    idle_.WaitWithTimeout(&mutex_, left);
  }
  return true;
}

void TokenWorker::Stop() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    queue_.StartDraining();
    work_.Signal();
  }
  if (thread_.joinable()) thread_.join();
  delivery_.Stop();
}

WorkerLoad TokenWorker::load() const {
  const absl::Time now = clock_.Now();
  MutexLock lock(&mutex_);
  WorkerLoad load;
  load.steps = steps_;
  load.waiting = queue_.waiting();
  load.running = queue_.running();
  // An answer tells of how full an engine its row was decoded in.
  if (undelivered_rows_ > 0) load.running = std::max(load.running, last_under_way_);
  load.busy_share = busy_.Share(now);
  load.draining = queue_.draining();
  return load;
}

void TokenWorker::CountRows(bool done) {
  const int64_t rows = queue_.waiting() + queue_.running() + undelivered_rows_;
  const int64_t more = rows - std::exchange(counted_rows_, rows);
  if (more > 0) progress_->Add(more);
  if (done) {
    progress_->Done(more < 0 ? -more : 0);
  } else if (more < 0) {
    progress_->Withdraw(-more);
  }
}

bool TokenWorker::MayStart() const {
  if (queue_.waiting() == 0) return false;
  if (in_flight_.empty()) return true;
  if (static_cast<int32_t>(in_flight_.size()) >= engine_.max_in_flight()) return false;
  const auto newest = static_cast<int64_t>(in_flight_.back().queued.size());
  return queue_.waiting() >= batch_rows_ || IsWorthABatchBeside(queue_.waiting(), newest);
}

void TokenWorker::Run() {
  SetThreadName("token-engine");
  while (true) {
    std::vector<QueuedRow> batch, dropped;
    absl::Status drop_status = absl::DeadlineExceededError("no time was left in the queue");
    bool stop;
    {
      MutexLock lock(&mutex_);
      while (!stop_ && in_flight_.empty() && queue_.waiting() == 0) work_.Wait(&mutex_);
      stop = stop_;
      if (stop) {
        dropped = queue_.TakeAll();
        drop_status = absl::UnavailableError("the worker has stopped");
      } else if (MayStart()) {
        queue_.TakeBatch(clock_.Now(), batch, dropped);
        if (!batch.empty()) last_under_way_ = queue_.running();
      }
      undelivered_rows_ += static_cast<int64_t>(dropped.size());
    }
    // What has run out of time is told before the others are worked on.
    if (!dropped.empty()) {
      (stop ? metrics_.rows_refused : metrics_.rows_expired)
          .Add(static_cast<double>(dropped.size()));
      std::vector<RowAnswer> answers;
      for (QueuedRow& row : dropped) answers.push_back(Answer(row, drop_status));
      HandOut(std::move(answers));
    }
    if (!batch.empty()) {
      StartBatch(std::move(batch));
    } else if (!in_flight_.empty()) {
      FinishOldest();
    } else if (stop) {
      return;
    }
  }
}

void TokenWorker::StartBatch(std::vector<QueuedRow> queued) {
  Batch& batch = in_flight_.emplace_back();
  batch.queued = std::move(queued);
  batch.rows.reserve(batch.queued.size());
  for (const QueuedRow& row : batch.queued) batch.rows.push_back(row.row->View());
  batch.results.resize(batch.queued.size());
  batch.begin = clock_.Now();
  if (idle_since_ < batch.begin) {
    metrics_.gap_seconds.Add(absl::ToDoubleSeconds(batch.begin - idle_since_));
  }
  idle_since_ = absl::InfiniteFuture();
  engine_.Start(batch.rows, absl::MakeSpan(batch.results));
  EndProcessIfLost(engine_.Lost());
}

void TokenWorker::FinishOldest() {
  engine_.Finish();
  EndProcessIfLost(engine_.Lost());
  Batch batch = std::move(in_flight_.front());
  in_flight_.pop_front();
  const absl::Time end = clock_.Now();
  // Those that are under way together share the engine.
  const absl::Time begin = std::max(batch.begin, last_end_);
  last_end_ = end;
  const size_t count = batch.queued.size();
  {
    MutexLock lock(&mutex_);
    queue_.FinishBatch(static_cast<int32_t>(count));
    undelivered_rows_ += static_cast<int64_t>(count);
    ++steps_;
    busy_.Add(begin, end);
    if (in_flight_.empty() && queue_.waiting() > 0) idle_since_ = end;
  }
  std::vector<RowAnswer> answers;
  answers.reserve(count);
  size_t failed = 0, tokens = 0;
  for (size_t i = 0; i < count; ++i) {
    RowAnswer& answer = answers.emplace_back(Answer(batch.queued[i], batch.results[i].status));
    failed += batch.results[i].status.ok() ? 0 : 1;
    tokens += batch.results[i].tokens.size();
    answer.result = std::move(batch.results[i]);
  }
  metrics_.steps.Add();
  metrics_.step_seconds.Observe(absl::ToDoubleSeconds(end - begin));
  metrics_.step_rows.Observe(static_cast<double>(count));
  metrics_.rows_ok.Add(static_cast<double>(count - failed));
  metrics_.rows_failed.Add(static_cast<double>(failed));
  metrics_.tokens.Add(static_cast<double>(tokens));
  HandOut(std::move(answers));
}

void TokenWorker::HandOut(std::vector<RowAnswer> answers) {
  bool has_more;
  {
    MutexLock lock(&mutex_);
    has_more = !in_flight_.empty() || queue_.waiting() > 0;
  }
  auto deliver = [this, answers = std::move(answers)]() mutable {
    const auto count = static_cast<int64_t>(answers.size());
    deliver_(std::move(answers));
    MutexLock lock(&mutex_);
    undelivered_rows_ -= count;
    CountRows(/*done=*/true);
    if (queue_.idle() && undelivered_rows_ == 0) idle_.SignalAll();
  };
  if (has_more) {
    delivery_.HandOver(std::move(deliver));
  } else {
    delivery_.RunIfIdle(std::move(deliver));
  }
}

}  // namespace blockserve
