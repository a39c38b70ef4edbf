#include "common/wall_clock_for_test.h"

#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <ctime>

namespace {

std::atomic<int64_t> step_s{0};
std::atomic<int64_t> ahead_s{0};

int64_t AheadOfTheKernel() { return ahead_s += step_s; }

}  // namespace

// In place of the C library's, for the shared libraries too.
extern "C" int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const auto failed = static_cast<int>(syscall(SYS_clock_gettime, clock, time));
  if (failed == 0 && clock == CLOCK_REALTIME) time->tv_sec += AheadOfTheKernel();
  return failed;
}

extern "C" int gettimeofday(timeval* time, void*) noexcept {
  timespec now = {};
  const int failed = clock_gettime(CLOCK_REALTIME, &now);
  *time = {now.tv_sec, now.tv_nsec / 1000};
  return failed;
}

namespace blockserve {

WallClockThatIsSet::WallClockThatIsSet(absl::Duration step) { step_s = absl::ToInt64Seconds(step); }

WallClockThatIsSet::~WallClockThatIsSet() {
  step_s = 0;
  ahead_s = 0;
}

}  // namespace blockserve
