// A wall clock that is set while a test runs: the one that its whole process sees, libraries and
// all. The kernel's stays as it is, and so do waits until a time of that one.
#ifndef BLOCKSERVE_COMMON_WALL_CLOCK_FOR_TEST_H_
#define BLOCKSERVE_COMMON_WALL_CLOCK_FOR_TEST_H_

#include "absl/time/time.h"

namespace blockserve {

// While one lives, whoever looks at the wall clock finds it set by another `step`: a duration that
// is the difference of two looks is wrong by as much.
class WallClockThatIsSet {
 public:
  explicit WallClockThatIsSet(absl::Duration step);
  ~WallClockThatIsSet();
  WallClockThatIsSet(const WallClockThatIsSet&) = delete;
  WallClockThatIsSet& operator=(const WallClockThatIsSet&) = delete;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_WALL_CLOCK_FOR_TEST_H_
