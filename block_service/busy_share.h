// The share of time that a worker was busy lately.
#ifndef BLOCKSERVE_BLOCK_SERVICE_BUSY_SHARE_H_
#define BLOCKSERVE_BLOCK_SERVICE_BUSY_SHARE_H_

#include <algorithm>

#include "absl/time/time.h"

namespace blockserve {

// Two windows: the one that runs and the one before it, whose weight fades as the first fills. Not
// thread-safe.
class BusyShare {
 public:
  BusyShare(absl::Time start, absl::Duration window) : window_(window), start_(start) {}

  // Busy from `begin` to `end`; calls come in order of time.
  void Add(absl::Time begin, absl::Time end) {
    Advance(end);
    // What lies before the window that runs is credited to the one before it.
    previous_ += std::clamp(std::min(end, start_) - begin, absl::ZeroDuration(), window_);
    current_ += std::clamp(end - std::max(begin, start_), absl::ZeroDuration(), window_);
  }

  // 0 to 1, over about the last window.
  double Share(absl::Time now) {
    Advance(now);
    const double past = absl::FDivDuration(now - start_, window_);
    const double busy =
        absl::FDivDuration(current_, window_) + (1 - past) * absl::FDivDuration(previous_, window_);
    return std::clamp(busy, 0.0, 1.0);
  }

 private:
  void Advance(absl::Time now) {
    const int64_t windows = (now - start_) / window_;
    if (windows <= 0) return;
    previous_ = windows == 1 ? current_ : absl::ZeroDuration();
    current_ = absl::ZeroDuration();
    start_ += windows * window_;
  }

  const absl::Duration window_;
  absl::Time start_;  // of the window that runs
  absl::Duration current_, previous_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_BUSY_SHARE_H_
