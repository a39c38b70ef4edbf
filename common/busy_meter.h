// How busy a worker was over the last seconds: of either compute tier.
#ifndef BLOCKSERVE_COMMON_BUSY_METER_H_
#define BLOCKSERVE_COMMON_BUSY_METER_H_

#include <array>
#include <cstdint>

#include "absl/time/time.h"

namespace blockserve {

// Not thread-safe. Times come from one clock that never goes back.
class BusyMeter {
 public:
  explicit BusyMeter(absl::Time start) : start_(start) {}

  // It was busy in [begin, end).
  void Add(absl::Time begin, absl::Time end);
  // Share of the last 5 s (or of the time since the start, where that is less), 0 to 1.
  float Share(absl::Time now) const;

 private:
  static constexpr int64_t kSliceMs = 250;
  static constexpr int64_t kSlices = 20;

  struct Slice {
    int64_t index = -1;  // which slice of the time since the start
    absl::Duration busy;
  };
  absl::Time start_;
  std::array<Slice, kSlices + 1> slices_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_BUSY_METER_H_
