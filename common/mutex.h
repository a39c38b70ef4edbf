// Mutex, MutexLock and CondVar with thread-safety annotations.
//
// Abseil's in every build but one: Debian's Abseil is not instrumented, and correctly locked
// absl::Mutex code shows false races under ThreadSanitizer. The `tsan` preset therefore defines
// BLOCKSERVE_STD_MUTEX and gets the same interface on the standard library.
#ifndef BLOCKSERVE_COMMON_MUTEX_H_
#define BLOCKSERVE_COMMON_MUTEX_H_

#include <condition_variable>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/wait_time.h"

#ifdef BLOCKSERVE_STD_MUTEX
#include <mutex>
#else
#include "absl/synchronization/mutex.h"
#endif

namespace blockserve {

#ifdef BLOCKSERVE_STD_MUTEX

class ABSL_LOCKABLE Mutex {
 public:
  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* mutex_;
};

#else

using Mutex = absl::Mutex;
using MutexLock = absl::MutexLock;

#endif

// Not Abseil's: before 20230802 it waits until a time of the wall clock, so that a wait of a second
// lasts an hour where the clock is set back by one.
class CondVar {
 public:
  void Wait(Mutex* mutex) {
    Lockable lockable{mutex};
    condition_.wait(lockable);
  }
  // True when the time ran out.
  bool WaitWithTimeout(Mutex* mutex, absl::Duration timeout) {
    Lockable lockable{mutex};
    return condition_.wait_for(lockable, WaitTime(timeout)) == std::cv_status::timeout;
  }
  void Signal() { condition_.notify_one(); }
  void SignalAll() { condition_.notify_all(); }

 private:
  // The mutex by the standard library's names.
  struct Lockable {
    void lock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex->Lock(); }
    void unlock() ABSL_NO_THREAD_SAFETY_ANALYSIS { mutex->Unlock(); }
    Mutex* mutex;
  };

  std::condition_variable_any condition_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_MUTEX_H_
