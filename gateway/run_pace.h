// How long requests run from the queue to their end, and so how many leave the queue in a second.
//
// Policy alone: times are given.
#ifndef BLOCKSERVE_GATEWAY_RUN_PACE_H_
#define BLOCKSERVE_GATEWAY_RUN_PACE_H_

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"

namespace blockserve {

// Means of late: each request weighs kWeight, those before it the rest.
class RunPace {
 public:
  // A request that could write `length` tokens a choice has ended after `run`.
  void Ended(absl::Duration run, int64_t length, absl::Time now) {
    const double weight = known() ? kWeight : 1;
    seconds_ += weight * (absl::ToDoubleSeconds(run) - seconds_);
    length_ += weight * (static_cast<double>(length) - length_);
    last_end_ = now;
  }

  bool known() const { return length_ > 0; }
  // What a request of this length takes, going by the time that a token of all of them took: the
  // sum of the times over the sum of the lengths, so that the short ones, whose time is their
  // prompt's, do not count for more than they are. With a margin, for half of them take longer.
  absl::Duration TimeOf(int64_t length) const {
    const double seconds = known() ? kMargin * seconds_ / length_ * static_cast<double>(length) : 0;
    return std::max(kLeast, absl::Seconds(seconds));
  }
  // Ends per second, while so many run (Little's law). 0: not known. `busy_since`: since when there
  // is a queue. Where nothing has ended for longer than a request runs, they run longer by now.
  double EndsPerSecond(int64_t running, absl::Time busy_since, absl::Time now) const {
    if (!known() || running <= 0) return 0;
    const double silent = absl::ToDoubleSeconds(now - std::max(last_end_, busy_since));
    return static_cast<double>(running) / std::max({seconds_, silent, 1e-3});
  }

 private:
  static constexpr double kWeight = 0.1;
  static constexpr double kMargin = 1.25;
  // What a request that leaves the queue needs at least.
  static constexpr absl::Duration kLeast = absl::Milliseconds(200);

  double seconds_ = 0;
  double length_ = 0;
  absl::Time last_end_ = absl::InfinitePast();
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_RUN_PACE_H_
