#include "gateway/worker_watch.h"

#include <algorithm>
#include <array>
#include <functional>

namespace blockserve {
namespace {

constexpr size_t kWindow = 512;
constexpr size_t kEvery = 32;
constexpr absl::Duration kLeastHedge = absl::Milliseconds(50);
constexpr absl::Duration kLeastSilence = absl::Milliseconds(500);
constexpr absl::Duration kUnknownSilence = absl::Seconds(2);
constexpr absl::Duration kFirstProbe = absl::Milliseconds(100);
constexpr absl::Duration kLastProbe = absl::Seconds(2);
constexpr size_t kMostStrikes = 3;
constexpr absl::Duration kStrikeWindow = absl::Seconds(10);
constexpr int32_t kReturned = 64;  // calls at once that no longer count as a slow return

}  // namespace

void ServiceTimes::Add(absl::Duration time) {
  if (ring_.size() < kWindow) {
    ring_.push_back(time);
  } else {
    ring_[next_] = time;
    next_ = (next_ + 1) % kWindow;
  }
  if (++since_ < kEvery) return;
  since_ = 0;
  std::array<absl::Duration, kWindow / 100 + 1> longest;
  const auto end = longest.begin() + static_cast<std::ptrdiff_t>(ring_.size() / 100 + 1);
  std::partial_sort_copy(ring_.begin(), ring_.end(), longest.begin(), end, std::greater<>());
  p99_ = *(end - 1);
}

absl::Duration ServiceTimes::HedgeAfter(absl::Duration bound) const {
  if (!p99_.has_value()) return bound;
  return std::min(bound, std::max(kLeastHedge, 3 * *p99_));
}

absl::Duration ServiceTimes::SilenceAllowed(absl::Duration bound) const {
  if (!p99_.has_value()) return std::min(bound, kUnknownSilence);
  return std::min(bound, std::max(kLeastSilence, 4 * *p99_));
}

void WorkerHealth::Eject(absl::Time now) {
  if (ejected()) return;
  // One that was just returning has not earned a short wait.
  probe_interval_ = returning() ? std::min(kLastProbe, 2 * probe_interval_) : kFirstProbe;
  state_ = State::kEjected;
  next_probe_ = now + probe_interval_;
}

void WorkerHealth::ProbeSent(absl::Time now) {
  probe_interval_ = std::min(kLastProbe, 2 * probe_interval_);
  next_probe_ = now + probe_interval_;
}

bool WorkerHealth::Answered() {
  if (state_ == State::kEjected) {
    state_ = State::kReturning;
    allowed_ = 1;
    return true;
  }
  if (returning() && ++allowed_ >= kReturned) Reset();
  return false;
}

bool WorkerHealth::Strike(uint64_t request, absl::Time now) {
  const bool too_many = strikes_.Add(request, now);
  // One that was just returning is no better yet.
  return too_many || returning();
}

bool Strikes::Add(uint64_t request, absl::Time now) {
  std::erase_if(recent_, [&](const Strike& strike) { return now - strike.at >= kStrikeWindow; });
  const bool known = std::any_of(recent_.begin(), recent_.end(),
                                 [&](const Strike& strike) { return strike.request == request; });
  if (known) return false;
  recent_.push_back({request, now});
  if (recent_.size() < kMostStrikes) return false;
  recent_.clear();
  return true;
}

void PingWatch::Reset(bool answers) {
  answers_ = answers;
  waiting_ = false;
  sent_ = absl::InfinitePast();
}

uint64_t PingWatch::Next(absl::Time oldest, absl::Time now) {
  if (!answers_ || waiting_ || now - oldest < kAskAfter || now - sent_ < kAskAfter) return 0;
  waiting_ = true;
  sent_ = now;
  return ++last_;
}

void PingWatch::Pong(uint64_t ping) {
  if (ping == last_) waiting_ = false;
}

int32_t WorkerHealth::Allowed(int32_t most) const {
  return returning() ? std::min(allowed_, most) : most;
}

}  // namespace blockserve
