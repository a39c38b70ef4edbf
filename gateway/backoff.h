// Times between attempts to connect: doubled each time up to a bound, and jittered so that gateways
// that lost the same worker do not come back to it together.
#ifndef BLOCKSERVE_GATEWAY_BACKOFF_H_
#define BLOCKSERVE_GATEWAY_BACKOFF_H_

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace blockserve {

class Backoff {
 public:
  Backoff(absl::Duration first, absl::Duration most, uint64_t seed)
      : first_(first), most_(most), next_(first), random_(seed) {}

  // Between a half and the whole of the present step.
  absl::Duration Next() {
    const absl::Duration step = next_;
    next_ = std::min(most_, 2 * next_);
    // SplitMix64: Sebastiano Vigna's generator, enough for jitter.
    random_ += 0x9e3779b97f4a7c15u;
    uint64_t z = random_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return step * (0.5 + 0.5 * (static_cast<double>(z >> 11) * 0x1.0p-53));
  }
  void Reset() { next_ = first_; }

 private:
  absl::Duration first_;
  absl::Duration most_;
  absl::Duration next_;
  uint64_t random_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_BACKOFF_H_
