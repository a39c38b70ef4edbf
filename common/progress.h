// How far a thread has come with the work that it is given, and whether it has come any further:
// what liveness probes are told.
#ifndef BLOCKSERVE_COMMON_PROGRESS_H_
#define BLOCKSERVE_COMMON_PROGRESS_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"

namespace blockserve {

// Written by the thread and by those who give it work, read by those who watch it. Without locks: a
// thread that is stuck may hold any.
class Progress {
 public:
  // Work has come.
  void Add(int64_t items) { pending_.fetch_add(items, std::memory_order_relaxed); }
  // Whoever gave it has taken it back: that says nothing of the thread.
  void Withdraw(int64_t items) { pending_.fetch_sub(items, std::memory_order_relaxed); }
  // The thread has dealt with it, in whatever way.
  void Done(int64_t items) {
    turns_.fetch_add(1, std::memory_order_relaxed);
    pending_.fetch_sub(items, std::memory_order_relaxed);
  }

  bool has_work() const { return pending_.load(std::memory_order_relaxed) > 0; }
  uint64_t turns() const { return turns_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> pending_{0};
  std::atomic<uint64_t> turns_{0};
};

// Tells a thread that is stuck from one that is idle or slow: stuck is who has had work for
// `bound` without having dealt with any of it. Driven by samples; not thread-safe.
class StallWatch {
 public:
  // `progress` must outlive this.
  StallWatch(const Progress& progress, absl::Duration bound, absl::Time now)
      : progress_(progress), bound_(bound), last_moved_(now) {}

  bool IsStuck(absl::Time now) {
    const uint64_t turns = progress_.turns();
    if (turns != last_turns_ || !progress_.has_work()) last_moved_ = now;
    last_turns_ = turns;
    return now - last_moved_ >= bound_;
  }

 private:
  const Progress& progress_;
  const absl::Duration bound_;
  uint64_t last_turns_ = 0;
  absl::Time last_moved_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_PROGRESS_H_
