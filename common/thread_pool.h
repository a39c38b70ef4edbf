// A pool of compute threads of our own size, passed to whoever needs it.
#ifndef BLOCKSERVE_COMMON_THREAD_POOL_H_
#define BLOCKSERVE_COMMON_THREAD_POOL_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"

namespace blockserve {

// Splits work over a fixed number of threads, the caller's being one of them. How the work is split
// must not change any sum: a task's result never depends on which thread runs it.
class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller; num_threads - 1 threads are started.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Calls body(task, thread) once for every task in [0, num_tasks), thread in [0, num_threads()),
  // and returns when all are done. Idle threads yield for at most 300 µs, then block. Only the
  // holder of a Turn may call it.
  void ParallelFor(int64_t num_tasks, absl::FunctionRef<void(int64_t task, int thread)> body);

  // Owners that wait for a Turn now.
  int num_waiting_turns() const;

  // The exclusive right to the pool, for the length of one step: engines that share a pool take
  // turns in the order of asking.
  class Turn {
   public:
    explicit Turn(ThreadPool& pool);
    ~Turn();
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

   private:
    ThreadPool& pool_;
  };

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_THREAD_POOL_H_
