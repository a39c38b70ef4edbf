#include "common/mutex.h"

#include <thread>

#include "absl/time/time.h"
#include "common/wall_clock_for_test.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(CondVar, WaitsNoLongerWhereTheWallClockIsSetBack) {
  // To the kernel it is an hour earlier than to the process: a wait until a time of the wall clock
  // lasts an hour.
  const WallClockThatIsSet clock(absl::Hours(1));
  Mutex mutex;
  CondVar changed;
  MutexLock lock(&mutex);
  EXPECT_TRUE(changed.WaitWithTimeout(&mutex, absl::Milliseconds(1)));
}

TEST(CondVar, AnInfiniteWaitEndsByASignal) {
  Mutex mutex;
  CondVar changed;
  bool told = false;
  MutexLock lock(&mutex);
  std::thread teller([&] {
    MutexLock teller_lock(&mutex);
    told = true;
    changed.Signal();
  });
  while (!told) EXPECT_FALSE(changed.WaitWithTimeout(&mutex, absl::InfiniteDuration()));
  mutex.Unlock();
  teller.join();
  mutex.Lock();
}

}  // namespace
}  // namespace blockserve
