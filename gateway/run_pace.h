// How long requests run from the queue to their end, and so how many leave the queue in a second:
// from what those that run have written of late, so that it is known long before any of them ends,
// and of those that their deadline cuts too.
//
// Policy alone: times are given.
#ifndef BLOCKSERVE_GATEWAY_RUN_PACE_H_
#define BLOCKSERVE_GATEWAY_RUN_PACE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "absl/time/time.h"

namespace blockserve {

// A sum over another one, where what was added before counts for less and less.
class RecentRatio {
 public:
  explicit RecentRatio(double before) : before_(before) {}

  void Add(double numerator, double denominator, absl::Time now) {
    // Not to nothing: what was last known stays known.
    const double kept = std::exp(
        -std::min(5.0, absl::FDivDuration(std::max(now - last_, absl::ZeroDuration()), kMemory)));
    last_ = now;
    numerator_ = kept * numerator_ + numerator;
    denominator_ = kept * denominator_ + denominator;
  }
  // `before`, until there is something to go by.
  double value() const { return denominator_ > 0 ? numerator_ / denominator_ : before_; }
  bool known() const { return denominator_ > 0; }

 private:
  static constexpr absl::Duration kMemory = absl::Seconds(1);

  const double before_;
  double numerator_ = 0;
  double denominator_ = 0;
  absl::Time last_ = absl::UnixEpoch();
};

class RunPace {
 public:
  // Requests that run side by side, whatever the pace: fewer are no faster.
  static constexpr int64_t kFew = 8;

  // A request has written its first tokens, `run` after it left the queue; or was cut off before.
  // `running`, here and below: choices that have left the queue and are not over.
  void Started(absl::Duration run, int64_t running, absl::Time now) {
    start_.Add(absl::ToDoubleSeconds(run), 1, running, now);
  }
  // Each of its choices has written so many more, in the time since; 0 where it was cut off before.
  void Wrote(double tokens, absl::Duration since, int64_t running, absl::Time now) {
    token_.Add(absl::ToDoubleSeconds(since), tokens, running, now);
  }
  // It has ended by itself: so much of what it might have written each of its choices has. 0: it
  // was not to write anything.
  void Ended(double tokens, int64_t length) {
    ended_ = true;
    if (tokens <= 0) return;
    written_ += kWeight * (tokens - written_);
    length_ += kWeight * (static_cast<double>(length) - length_);
  }

  bool known() const { return ended_ || token_.known(); }
  // What a request of this length takes while so many run, times `margin`. The time of a token
  // grows with their number, as where the tiers have all that they can use.
  absl::Duration TimeOf(int64_t length, int64_t running, double margin) const {
    const double tokens = static_cast<double>(length) * written_share();
    return std::max(kLeast, absl::Seconds(margin * (start_.Seconds(running) +
                                                    tokens * token_.Seconds(running))));
  }
  // From the queue to the first tokens.
  absl::Duration StartTime(int64_t running) const { return absl::Seconds(start_.Seconds(running)); }
  // What it still takes once each of its choices has written so much of its length.
  absl::Duration TimeLeft(int64_t length, double written, int64_t running) const {
    const double most = static_cast<double>(length);
    const double mean = most * written_share();
    // Who has written as much as others do does not end at once for that.
    const double left = std::min(most - written, std::max(mean - written, mean / 4));
    const double start = written > 0 ? 0 : start_.Seconds(running);
    return absl::Seconds(start + left * token_.Seconds(running));
  }

 private:
  // How long one of something takes, and how many ran side by side meanwhile.
  class Step {
   public:
    explicit Step(double seconds_before) : seconds_(seconds_before) {}
    void Add(double seconds, double steps, int64_t running, absl::Time now) {
      seconds_.Add(seconds, steps, now);
      running_.Add(static_cast<double>(running) * steps, steps, now);
    }
    double Seconds(int64_t running) const {
      const double before = std::max(static_cast<double>(kFew), running_.value());
      return seconds_.value() * std::max(1.0, static_cast<double>(running) / before);
    }
    bool known() const { return seconds_.known(); }

   private:
    RecentRatio seconds_;
    RecentRatio running_{64};
  };

  double written_share() const { return written_ / length_; }

  static constexpr double kWeight = 0.05;
  // What a request that leaves the queue needs at least.
  static constexpr absl::Duration kLeast = absl::Milliseconds(200);

  // Before anything is known: what a slow machine needs.
  Step start_{0.2};
  Step token_{0.01};
  // Means of requests of late.
  double written_ = 1;
  double length_ = 1;
  bool ended_ = false;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_RUN_PACE_H_
