// Where a test holds the threads of what it tests.
#ifndef BLOCKSERVE_COMMON_TEST_GATE_H_
#define BLOCKSERVE_COMMON_TEST_GATE_H_

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/mutex.h"

namespace blockserve {

// While it is closed, whoever passes waits before it.
class Gate {
 public:
  explicit Gate(bool open = true) : open_(open) {}

  void Close() {
    MutexLock lock(&mutex_);
    open_ = false;
  }
  void Open() {
    MutexLock lock(&mutex_);
    open_ = true;
    changed_.SignalAll();
  }
  void Pass() {
    MutexLock lock(&mutex_);
    ++arrivals_;
    changed_.SignalAll();
    while (!open_) changed_.Wait(&mutex_);
  }
  // Waits until so many have come to the gate in all; false after a minute.
  bool WaitForArrivals(int arrivals) {
    const absl::Time deadline = absl::Now() + absl::Minutes(1);
    MutexLock lock(&mutex_);
    while (arrivals_ < arrivals && absl::Now() < deadline) {
      changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
    }
    return arrivals_ >= arrivals;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_);
  int arrivals_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_TEST_GATE_H_
