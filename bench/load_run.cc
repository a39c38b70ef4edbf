#include "bench/load_run.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <optional>
#include <queue>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "bench/load_request.h"
#include "common/mutex.h"

namespace blockserve {
namespace {

// Requests that are not measured are numbered from here, so that those that are have the same
// numbers whatever the warm-up.
constexpr int64_t kFirstWarmupIndex = int64_t{1} << 52;
// The longest wait for events: a stop is noticed within it.
constexpr int64_t kLongestPoll = 50'000;
constexpr absl::Duration kTick = absl::Milliseconds(100);
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// What the threads of a run share.
struct Shared {
  Shared(const LoadPlan& plan, const Workload& workload) : plan(plan), workload(workload) {}

  const LoadPlan& plan;
  const Workload& workload;
  int64_t epoch = 0;
  LoadCounters counters;
  std::atomic<int64_t> next_measured{0};  // closed loop
  std::atomic<int64_t> next_warmup{0};
  std::atomic<bool> stop{false};
  Mutex mutex;
  CondVar changed;
  int running ABSL_GUARDED_BY(mutex) = 0;
};

struct Due {
  int64_t time = 0;  // since the epoch
  int64_t index = 0;
  int64_t arrival = 0;
  bool measured = false;
};

// The requests of one thread, in the order in which they are due.
class Schedule {
 public:
  virtual ~Schedule() = default;
  // When the next one is due: kNever while that depends on an end, none when there are no more.
  virtual std::optional<int64_t> NextTime() = 0;
  // The one that NextTime told of; none where there are no more after all.
  virtual std::optional<Due> Take(int64_t now) = 0;
  virtual void OnEnd(int64_t now, bool ok) = 0;
  virtual int32_t max_in_flight() const = 0;
};

// Of the n-th request that is measured, or that is not.
int64_t IndexOf(const LoadPlan& plan, int64_t n, bool measured) {
  return plan.first_index + n + (measured ? 0 : kFirstWarmupIndex);
}

int64_t LoopEnd(const LoadPlan& plan) {
  return plan.duration_us > 0 ? plan.warmup_us + plan.duration_us : kNever;
}

class ClosedLoop final : public Schedule {
 public:
  ClosedLoop(Shared& shared, int thread)
      : shared_(shared),
        slots_(shared.plan.concurrency / shared.plan.threads +
               (thread < shared.plan.concurrency % shared.plan.threads ? 1 : 0)) {
    for (int i = 0; i < slots_; ++i) free_.push(0);
  }

  std::optional<int64_t> NextTime() override {
    if (over_ || slots_ == 0) return std::nullopt;
    return free_.empty() ? kNever : free_.top();
  }

  std::optional<Due> Take(int64_t now) override {
    const LoadPlan& plan = shared_.plan;
    const int64_t time = free_.top();
    free_.pop();
    if (now >= LoopEnd(plan)) over_ = true;
    const bool measured = time >= plan.warmup_us;
    const int64_t number =
        measured ? shared_.next_measured.fetch_add(1) : shared_.next_warmup.fetch_add(1);
    if (measured && plan.requests > 0 && number >= plan.requests) over_ = true;
    const Due due{time, IndexOf(plan, number, measured), number, measured};
    if (over_) return std::nullopt;
    return due;
  }

  void OnEnd(int64_t now, bool ok) override {
    free_.push(ok ? now : now + shared_.plan.refused_pause_us);
  }
  int32_t max_in_flight() const override { return slots_; }

 private:
  Shared& shared_;
  const int32_t slots_;
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> free_;
  bool over_ = false;
};

// Every thread walks through all arrivals and takes each threads-th.
class OpenLoop final : public Schedule {
 public:
  OpenLoop(Shared& shared, int thread, std::unique_ptr<ArrivalProcess> arrivals)
      : shared_(shared), thread_(thread), arrivals_(std::move(arrivals)) {
    Advance();
  }

  std::optional<int64_t> NextTime() override {
    if (!next_.has_value()) return std::nullopt;
    return next_->time;
  }
  std::optional<Due> Take(int64_t) override {
    std::optional<Due> due = next_;
    Advance();
    return due;
  }
  void OnEnd(int64_t, bool) override {}
  int32_t max_in_flight() const override {
    return std::max(1, shared_.plan.max_in_flight / shared_.plan.threads);
  }

 private:
  void Advance() {
    const LoadPlan& plan = shared_.plan;
    while (true) {
      const std::optional<int64_t> time = arrivals_->Next();
      const bool measured = time.has_value() && *time >= plan.warmup_us;
      if (!time.has_value() || *time >= LoopEnd(plan) ||
          (measured && plan.requests > 0 && measured_ >= plan.requests)) {
        next_.reset();
        return;
      }
      const int64_t number = measured ? measured_++ : warmup_++;
      const int64_t arrival = count_++;
      if (arrival % plan.threads != thread_) continue;
      next_ = Due{*time, IndexOf(plan, number, measured), arrival, measured};
      return;
    }
  }

  Shared& shared_;
  const int thread_;
  const std::unique_ptr<ArrivalProcess> arrivals_;
  std::optional<Due> next_;
  int64_t count_ = 0;
  int64_t measured_ = 0;
  int64_t warmup_ = 0;
};

class Driver {
 public:
  Driver(Shared& shared, std::unique_ptr<Schedule> schedule,
         std::unique_ptr<LoadTransport> transport)
      : shared_(shared), schedule_(std::move(schedule)), transport_(std::move(transport)) {
    const LoadPlan& plan = shared.plan;
    context_.epoch = shared.epoch;
    context_.window_begin = plan.warmup_us;
    context_.window_end = plan.duration_us > 0 ? plan.warmup_us + plan.duration_us : 0;
    context_.objectives = plan.objectives;
    context_.keep_rows = plan.keep_rows;
    context_.counters = &shared.counters;
    context_.result = &result_;
  }

  void Run() {
    bool stopped = false;
    while (true) {
      if (!stopped && shared_.stop.load(std::memory_order_relaxed)) {
        stopped = true;
        transport_->CancelAll();
      }
      const std::optional<int64_t> next = stopped ? std::nullopt : SendDue();
      if (!next.has_value() && requests_.empty()) break;
      const int64_t now = SteadyMicros();
      int64_t until = now + kLongestPoll;
      if (next.has_value() && *next != kNever) {
        until = std::min(until, shared_.epoch + *next);
      }
      transport_->Poll(until);
    }
    transport_.reset();
  }

  const LoadResult& result() const { return result_; }

 private:
  // Sends what is due; returns when the next one is.
  std::optional<int64_t> SendDue() {
    while (true) {
      const std::optional<int64_t> next = schedule_->NextTime();
      const int64_t now = SteadyMicros() - shared_.epoch;
      if (!next.has_value() || *next > now) return next;
      if (static_cast<int32_t>(requests_.size()) >= schedule_->max_in_flight()) return kNever;
      const std::optional<Due> due = schedule_->Take(now);
      if (due.has_value()) Send(*due, now);
    }
  }

  void Send(const Due& due, int64_t now) {
    auto request = std::make_unique<LoadRequest>(
        context_, shared_.workload.Make(due.index, due.arrival), due.time, now, due.measured,
        [this](LoadRequest* ended, int64_t at, bool ok) {
          schedule_->OnEnd(at - shared_.epoch, ok);
          requests_.erase(ended);
        });
    LoadRequest* const observer = request.get();
    requests_[observer] = std::move(request);
    transport_->Start(observer->spec(), shared_.epoch + due.time + shared_.plan.timeout_us,
                      observer);
  }

  Shared& shared_;
  const std::unique_ptr<Schedule> schedule_;
  std::unique_ptr<LoadTransport> transport_;
  LoadResult result_;
  RequestContext context_;
  std::unordered_map<LoadRequest*, std::unique_ptr<LoadRequest>> requests_;
};

}  // namespace

int64_t SteadyMicros() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

absl::Status LoadPlan::Validate(const WorkloadOptions& workload) const {
  const auto bad = [](auto... parts) { return absl::InvalidArgumentError(absl::StrCat(parts...)); };
  const bool open = rate > 0 || !workload.trace.empty();
  if (rate < 0) return bad("--rate is ", rate, "; it must be above 0");
  if (concurrency < 0) return bad("--concurrency is ", concurrency, "; it must be at least 1");
  if (concurrency > 0 && open) return bad("--concurrency and an open loop exclude each other");
  if (concurrency == 0 && !open) return bad("one of --concurrency, --rate and --trace is needed");
  if (workload.trace.empty() && open) {
    if (auto made = MakeArrivals(arrivals, rate, seed); !made.ok()) {
      return bad("--arrivals: ", made.status().message());
    }
  }
  if (warmup_us < 0) return bad("--warmup is negative");
  if (duration_us < 0) return bad("--duration is negative");
  if (requests < 0) return bad("--requests is ", requests, "; it must be at least 1");
  if (duration_us == 0 && requests == 0 && workload.trace.empty()) {
    return bad("one of --duration and --requests is needed");
  }
  if (timeout_us <= 0) return bad("--timeout must be above 0");
  if (max_in_flight < 1) return bad("--max-in-flight must be at least 1");
  if (threads < 1 || threads > 256) return bad("--threads is ", threads, "; it must be 1 to 256");
  return absl::OkStatus();
}

LoadResult RunLoad(const LoadPlan& plan, const Workload& workload,
                   const std::function<std::unique_ptr<LoadTransport>()>& make_transport,
                   const std::function<bool(const LoadSnapshot&)>& tick) {
  Shared shared(plan, workload);
  std::vector<std::unique_ptr<LoadTransport>> transports;
  for (int i = 0; i < plan.threads; ++i) transports.push_back(make_transport());
  shared.epoch = SteadyMicros();
  std::vector<std::unique_ptr<Driver>> drivers;
  for (int i = 0; i < plan.threads; ++i) {
    std::unique_ptr<Schedule> schedule;
    const WorkloadOptions& options = workload.options();
    if (plan.concurrency > 0) {
      schedule = std::make_unique<ClosedLoop>(shared, i);
    } else if (plan.rate > 0) {
      schedule =
          std::make_unique<OpenLoop>(shared, i, *MakeArrivals(plan.arrivals, plan.rate, plan.seed));
    } else {
      schedule = std::make_unique<OpenLoop>(shared, i, MakeTraceArrivals(options.trace));
    }
    drivers.push_back(std::make_unique<Driver>(shared, std::move(schedule),
                                               std::move(transports[static_cast<size_t>(i)])));
  }
  {
    MutexLock lock(&shared.mutex);
    shared.running = plan.threads;
  }
  std::vector<std::thread> threads;
  for (const std::unique_ptr<Driver>& driver : drivers) {
    threads.emplace_back([&shared, &driver] {
      driver->Run();
      MutexLock lock(&shared.mutex);
      --shared.running;
      shared.changed.SignalAll();
    });
  }
  int64_t stopped_at = kNever;
  while (true) {
    {
      MutexLock lock(&shared.mutex);
      if (shared.running == 0) break;
      shared.changed.WaitWithTimeout(&shared.mutex, kTick);
    }
    const LoadCounters& counters = shared.counters;
    const LoadSnapshot snapshot = {SteadyMicros() - shared.epoch, counters.sent, counters.ok,
                                   counters.failed, counters.output_tokens};
    if (!tick(snapshot) && stopped_at == kNever) {
      stopped_at = snapshot.elapsed_us;
      shared.stop = true;
    }
  }
  for (std::thread& thread : threads) thread.join();

  LoadResult result;
  int64_t last_end = plan.warmup_us;
  for (const std::unique_ptr<Driver>& driver : drivers) {
    last_end = std::max(last_end, driver->result().window_end);
    result.Merge(driver->result());
  }
  std::sort(result.rows.begin(), result.rows.end(),
            [](const RequestRow& a, const RequestRow& b) { return a.intended < b.intended; });
  result.window_begin = plan.warmup_us;
  // A count, a short trace or a signal ends a run before its time.
  result.window_end = last_end;
  if (plan.duration_us > 0) {
    const bool counted = plan.requests > 0 || !workload.options().trace.empty();
    const int64_t end = plan.warmup_us + plan.duration_us;
    result.window_end = counted ? std::min(end, last_end) : end;
  }
  if (stopped_at != kNever) {
    result.window_end = std::max(plan.warmup_us, std::min(result.window_end, stopped_at));
  }
  return result;
}

}  // namespace blockserve
