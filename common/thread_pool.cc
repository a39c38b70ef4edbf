#include "common/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "common/mutex.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace blockserve {
namespace {

using Clock = std::chrono::steady_clock;

// The regions of one layer come a few microseconds apart.
constexpr std::chrono::microseconds kPause(3);
// Blocking and being woken costs more than most waits take.
constexpr std::chrono::microseconds kYield(300);
// Where the cores are not ours alone. Longer would only burn what another one could use.
constexpr std::chrono::microseconds kPauseOfCrowded(50);
// A thread of this server that gets the core by a yield needs it for less.
constexpr std::chrono::milliseconds kLongAway(1);
// Over so long a time it is told whether the cores are crowded, and then held true for twice that.
constexpr std::chrono::milliseconds kWindow(50);
// Looking at the clock costs more than a pause.
constexpr int kPausesPerClockRead = 32;
// Tasks of one job fit the lower half of the ticket word; longer loops run as several jobs.
constexpr int64_t kMaxTasksPerJob = int64_t{1} << 30;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  // Some ten nanoseconds; the instruction meant for it, yield, does nothing on most machines.
  asm volatile("isb" ::: "memory");
#else
  std::this_thread::yield();
#endif
}

// How one thread waits before it blocks. It yields, since the threads that bring the engines their
// work want a core for a moment, and would not get it from one that spins. Who computes all the
// time on this core, though, takes a whole slice of the scheduler at each yield: where that is most
// of the time, spinning for a while and then blocking is faster.
class Waiter {
 public:
  // True as soon as `ready` is, false when it was not soon enough.
  template <typename Ready>
  bool Wait(const Ready& ready) {
    if (ready()) return true;
    const Clock::time_point start = Clock::now();
    Clock::time_point now = start;
    const bool crowded = start < crowded_until_;
    const Clock::duration pause = crowded ? kPauseOfCrowded : kPause;
    while (now - start < pause) {
      for (int i = 0; i < kPausesPerClockRead; ++i) {
        Pause();
        if (ready()) return true;
      }
      now = Clock::now();
    }
    if (crowded) return false;
    while (now - start < kYield) {
      std::this_thread::yield();
      const Clock::time_point back = Clock::now();
      if (back - now > kLongAway) CountAway(back - now, back);
      if (ready()) return true;
      now = back;
    }
    return false;
  }

 private:
  void CountAway(Clock::duration away, Clock::time_point now) {
    if (now - window_start_ > kWindow) {
      window_start_ = now - away;
      away_ = Clock::duration::zero();
    }
    away_ += away;
    if (away_ > kWindow / 2) crowded_until_ = now + 2 * kWindow;
  }

  Clock::time_point window_start_;
  Clock::duration away_ = Clock::duration::zero();  // since then
  Clock::time_point crowded_until_;
};

}  // namespace

struct ThreadPool::Impl {
  using Body = absl::FunctionRef<void(int64_t, int)>;

  static uint64_t Tickets(uint64_t num_tasks, uint64_t next) { return num_tasks << 32 | next; }
  static bool HasTask(uint64_t tickets) { return (tickets & 0xffffffffu) < tickets >> 32; }

  // Takes tasks until none is left. What describes the job is only read after a ticket was drawn:
  // the job cannot end, nor another begin, while a drawn ticket is not yet counted as done.
  void RunTasks(int thread) {
    uint64_t seen = tickets.load(std::memory_order_relaxed);
    while (HasTask(seen)) {
      if (!tickets.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel,
                                         std::memory_order_relaxed)) {
        continue;
      }
      (*body)(first_task + static_cast<int64_t>(seen & 0xffffffffu), thread);
      if (unfinished.fetch_sub(1, std::memory_order_seq_cst) == 1 &&
          caller_blocked.load(std::memory_order_seq_cst)) {
        MutexLock lock(&mutex);
        all_done.Signal();
      }
      seen = tickets.load(std::memory_order_relaxed);
    }
  }

  void Work(int thread) {
    const auto has_work = [this] {
      return HasTask(tickets.load(std::memory_order_relaxed)) ||
             stop.load(std::memory_order_relaxed);
    };
    Waiter waiter;
    while (!stop.load(std::memory_order_acquire)) {
      if (waiter.Wait(has_work)) {
        RunTasks(thread);
        continue;
      }
      MutexLock lock(&mutex);
      // Announced before the last look at `tickets`, as the caller publishes tickets before it
      // looks at `blocked_workers`: one of the two sees the other.
      blocked_workers.fetch_add(1, std::memory_order_seq_cst);
      while (!HasTask(tickets.load(std::memory_order_seq_cst)) &&
             !stop.load(std::memory_order_seq_cst)) {
        work_ready.Wait(&mutex);
      }
      blocked_workers.fetch_sub(1, std::memory_order_seq_cst);
    }
  }

  void RunJob(int64_t first, int64_t num_tasks, Body job_body) {
    body = &job_body;
    first_task = first;
    unfinished.store(num_tasks, std::memory_order_relaxed);
    tickets.store(Tickets(num_tasks, 0), std::memory_order_seq_cst);
    if (blocked_workers.load(std::memory_order_seq_cst) > 0) {
      MutexLock lock(&mutex);
      work_ready.SignalAll();
    }
    RunTasks(0);

    const auto done = [this] { return unfinished.load(std::memory_order_acquire) == 0; };
    if (caller_waiter.Wait(done)) return;
    MutexLock lock(&mutex);
    caller_blocked.store(true, std::memory_order_seq_cst);
    while (unfinished.load(std::memory_order_seq_cst) != 0) all_done.Wait(&mutex);
    caller_blocked.store(false, std::memory_order_seq_cst);
  }

  std::vector<std::thread> threads;
  Waiter caller_waiter;  // of whoever holds the Turn

  // The job: written by the caller before `tickets`, read by whoever drew a ticket.
  const Body* body = nullptr;
  int64_t first_task = 0;
  alignas(64) std::atomic<uint64_t> tickets{0};  // tasks of the job << 32 | next task
  alignas(64) std::atomic<int64_t> unfinished{0};
  alignas(64) std::atomic<bool> stop{false};
  std::atomic<int> blocked_workers{0};
  std::atomic<bool> caller_blocked{false};

  Mutex mutex;  // for blocking only
  CondVar work_ready;
  CondVar all_done;

  Mutex turn_mutex;
  CondVar turn_changed;
  uint64_t next_turn ABSL_GUARDED_BY(turn_mutex) = 0;
  uint64_t current_turn ABSL_GUARDED_BY(turn_mutex) = 0;
};

ThreadPool::ThreadPool(int num_threads) : impl_(std::make_unique<Impl>()) {
  impl_->threads.reserve(std::max(0, num_threads - 1));
  for (int i = 1; i < num_threads; ++i) {
    impl_->threads.emplace_back([impl = impl_.get(), i] { impl->Work(i); });
  }
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(&impl_->mutex);
    impl_->stop.store(true, std::memory_order_seq_cst);
    impl_->work_ready.SignalAll();
  }
  for (std::thread& thread : impl_->threads) thread.join();
}

int ThreadPool::num_threads() const { return static_cast<int>(impl_->threads.size()) + 1; }

void ThreadPool::ParallelFor(int64_t num_tasks,
                             absl::FunctionRef<void(int64_t task, int thread)> body) {
  if (num_tasks <= 1 || impl_->threads.empty()) {
    for (int64_t task = 0; task < num_tasks; ++task) body(task, 0);
    return;
  }
  for (int64_t first = 0; first < num_tasks; first += kMaxTasksPerJob) {
    impl_->RunJob(first, std::min(kMaxTasksPerJob, num_tasks - first), body);
  }
}

int ThreadPool::num_waiting_turns() const {
  MutexLock lock(&impl_->turn_mutex);
  const uint64_t asked = impl_->next_turn - impl_->current_turn;  // the holder included
  return asked > 0 ? static_cast<int>(asked - 1) : 0;
}

ThreadPool::Turn::Turn(ThreadPool& pool) : pool_(pool) {
  Impl& impl = *pool_.impl_;
  MutexLock lock(&impl.turn_mutex);
  const uint64_t mine = impl.next_turn++;
  while (impl.current_turn != mine) impl.turn_changed.Wait(&impl.turn_mutex);
}

ThreadPool::Turn::~Turn() {
  Impl& impl = *pool_.impl_;
  MutexLock lock(&impl.turn_mutex);
  ++impl.current_turn;
  impl.turn_changed.SignalAll();
}

}  // namespace blockserve
