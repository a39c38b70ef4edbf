// Time as something that is passed in, so that tests move it by hand.
#ifndef BLOCKSERVE_COMMON_CLOCK_H_
#define BLOCKSERVE_COMMON_CLOCK_H_

#include <chrono>

#include "absl/time/time.h"

namespace blockserve {

class Clock {
 public:
  virtual ~Clock() = default;
  // Never goes back. Comparable with other times of this clock only: it is not the time of day.
  virtual absl::Time Now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  absl::Time Now() const override {
    return absl::UnixEpoch() +
           absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_CLOCK_H_
