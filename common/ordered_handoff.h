// A thread that takes over, in order, what another one would lose time with: a thread that drives
// an engine hands the results of a step over, to be encoded and sent while it runs the next step.
#ifndef BLOCKSERVE_COMMON_ORDERED_HANDOFF_H_
#define BLOCKSERVE_COMMON_ORDERED_HANDOFF_H_

#include <cstddef>
#include <deque>
#include <thread>

#include "absl/functional/any_invocable.h"
#include "common/mutex.h"

namespace blockserve {

// Runs jobs one at a time, in the order in which they are given, on a thread of its own or on the
// caller's:
//
//   OrderedHandoff handoff("block-delivery", /*max_waiting=*/2);
//   if (the caller has something better to do) {
//     handoff.HandOver([replies = std::move(replies)] { … });
//   } else {
//     handoff.RunIfIdle(…);  // no thread is woken for what can be done here
//   }
//
// What holds:
// - jobs of one caller run in its order, wherever they run; those of several callers in some order;
// - what a job wrote is seen by every later one without further locks, and by whoever was told by
//   WaitUntilIdle, Stop or idle() that it is over;
// - every job that was given runs, and is destroyed, before Stop returns;
// - no lock is held while a job runs or is destroyed;
// - at most `max_waiting` jobs wait, and one runs: callers that are further ahead wait.
// A job must not call its own handoff. Who tells of progress (common/progress.h) counts the work as
// done at the end of its job: then a job that hangs is seen as what it is.
//
// Thread-safe.
class OrderedHandoff {
 public:
  using Job = absl::AnyInvocable<void() &&>;

  // Starts the thread. `thread_name`: at most 15 characters. `max_waiting`: at least 1.
  OrderedHandoff(const char* thread_name, size_t max_waiting);
  // As Stop.
  ~OrderedHandoff();
  OrderedHandoff(const OrderedHandoff&) = delete;
  OrderedHandoff& operator=(const OrderedHandoff&) = delete;

  // The job runs on the handoff's thread. Waits while `max_waiting` jobs wait already.
  void HandOver(Job job);
  // The job runs here and now where no other one waits or runs; otherwise as HandOver.
  void RunIfIdle(Job job);

  // No job waits or runs.
  bool idle() const;
  void WaitUntilIdle();

  // Returns when all jobs have run, and ends the thread. Jobs that come later run on the threads of
  // those that give them. Idempotent; callers of other threads may still be at work.
  void Stop();

 private:
  void Run();
  void Give(Job job, bool here_if_idle);
  bool IdleLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return waiting_.empty() && !running_;
  }

  const size_t max_waiting_;
  mutable Mutex mutex_;
  CondVar work_;   // for the thread: it may run a job, or shall end
  CondVar moved_;  // for callers: a job has left the queue, or is over
  std::deque<Job> waiting_ ABSL_GUARDED_BY(mutex_);  // the oldest first
  bool running_ ABSL_GUARDED_BY(mutex_) = false;     // a job, here or there
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  Mutex join_mutex_;
  std::thread thread_ ABSL_GUARDED_BY(join_mutex_);  // last: it uses all the others
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_ORDERED_HANDOFF_H_
