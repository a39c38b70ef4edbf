#include "token_service/token_worker.h"

#include <utility>

#include "common/lost_device.h"
#include "common/thread_name.h"

namespace blockserve {
namespace {

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
      metrics_(metrics),
      queue_(options),
      busy_(clock.Now()),
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
  std::vector<RowAnswer> cancelled;
  MutexLock lock(&mutex_);
  for (const uint64_t id : ids) {
    if (!queue_.Cancel(stream, id)) continue;
    RowAnswer answer;
    answer.stream = stream;
    answer.id = id;
    answer.status = absl::CancelledError("the gateway gave the row up");
    cancelled.push_back(std::move(answer));
  }
  CountRows(/*done=*/false);
  metrics_.rows_cancelled.Add(static_cast<double>(cancelled.size()));
  if (queue_.idle()) idle_.SignalAll();
  return cancelled;
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
  while (!queue_.idle() || delivering_) {
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
}

WorkerLoad TokenWorker::load() const {
  const absl::Time now = clock_.Now();
  MutexLock lock(&mutex_);
  WorkerLoad load;
  load.steps = steps_;
  load.waiting = queue_.waiting();
  load.running = queue_.running();
  if (load.running == 0 && delivering_) load.running = last_batch_;
  load.busy_share = busy_.Share(now);
  load.draining = queue_.draining();
  return load;
}

void TokenWorker::CountRows(bool done) {
  const int64_t rows = int64_t{queue_.waiting()} + queue_.running();
  const int64_t more = rows - std::exchange(counted_rows_, rows);
  if (more > 0) progress_->Add(more);
  if (done) {
    progress_->Done(more < 0 ? -more : 0);
  } else if (more < 0) {
    progress_->Withdraw(-more);
  }
}

void TokenWorker::Run() {
  SetThreadName("token-engine");
  while (true) {
    std::vector<QueuedRow> batch, dropped;
    absl::Status drop_status = absl::DeadlineExceededError("no time was left in the queue");
    bool stop;
    {
      MutexLock lock(&mutex_);
      while (!stop_ && queue_.waiting() == 0) work_.Wait(&mutex_);
      stop = stop_;
      if (stop) {
        dropped = queue_.TakeAll();
        drop_status = absl::UnavailableError("the worker has stopped");
      } else {
        queue_.TakeBatch(clock_.Now(), batch, dropped);
      }
      delivering_ = true;
    }
    std::vector<RowAnswer> answers;
    (stop ? metrics_.rows_refused : metrics_.rows_expired).Add(static_cast<double>(dropped.size()));
    for (QueuedRow& row : dropped) answers.push_back(Answer(row, drop_status));
    // What has run out of time is told before the others are worked on.
    if (!answers.empty() && !batch.empty()) deliver_(std::exchange(answers, {}));
    if (!batch.empty()) Decode(std::move(batch), answers);
    if (!answers.empty()) deliver_(std::move(answers));
    {
      MutexLock lock(&mutex_);
      delivering_ = false;
      CountRows(/*done=*/true);
      if (queue_.idle()) idle_.SignalAll();
    }
    if (stop) return;
  }
}

void TokenWorker::Decode(std::vector<QueuedRow> batch, std::vector<RowAnswer>& answers) {
  std::vector<TokenRow> rows;
  rows.reserve(batch.size());
  for (const QueuedRow& row : batch) rows.push_back(row.row->View());
  std::vector<TokenRowResult> results(batch.size());
  const absl::Time begin = clock_.Now();
  engine_.Decode(rows, absl::MakeSpan(results));
  EndProcessIfLost(engine_.Lost());
  const absl::Time end = clock_.Now();
  size_t failed = 0, tokens = 0;
  for (size_t i = 0; i < batch.size(); ++i) {
    RowAnswer answer = Answer(batch[i], results[i].status);
    failed += results[i].status.ok() ? 0 : 1;
    tokens += results[i].tokens.size();
    answer.result = std::move(results[i]);
    answers.push_back(std::move(answer));
  }
  metrics_.steps.Add();
  metrics_.step_seconds.Observe(absl::ToDoubleSeconds(end - begin));
  metrics_.step_rows.Observe(static_cast<double>(batch.size()));
  metrics_.rows_ok.Add(static_cast<double>(batch.size() - failed));
  metrics_.rows_failed.Add(static_cast<double>(failed));
  metrics_.tokens.Add(static_cast<double>(tokens));
  MutexLock lock(&mutex_);
  queue_.FinishBatch();
  last_batch_ = static_cast<int32_t>(batch.size());
  ++steps_;
  busy_.Add(begin, end);
}

}  // namespace blockserve
