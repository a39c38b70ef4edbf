// Two threads add to one counter: with `unlocked`, without the lock that it needs. Under TSan the
// first must be reported and the second must not; this shows that the TSan runs would see a race, and
// that locks of common/mutex.h are understood.
#include <cstdio>
#include <cstring>
#include <thread>

#include "common/mutex.h"

namespace {

struct Counter {
  blockserve::Mutex mutex;
  long locked ABSL_GUARDED_BY(mutex) = 0;
  long unlocked = 0;
};

}  // namespace

int main(int argc, char** argv) {
  const bool unlocked = argc > 1 && std::strcmp(argv[1], "unlocked") == 0;
  Counter counter;
  auto add = [&] {
    for (int i = 0; i < 1000; ++i) {
      if (unlocked) {
        ++counter.unlocked;
      } else {
        blockserve::MutexLock lock(&counter.mutex);
        ++counter.locked;
      }
    }
  };
  std::thread first(add);
  std::thread second(add);
  first.join();
  second.join();
  blockserve::MutexLock lock(&counter.mutex);
  std::printf("%ld\n", counter.locked + counter.unlocked);
  return 0;
}
