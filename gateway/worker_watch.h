// What tells a worker that is well from one that is slow, frozen or cut off: how long rows take,
// who may be asked twice, and who is left alone until it has shown that it answers again.
#ifndef BLOCKSERVE_GATEWAY_WORKER_WATCH_H_
#define BLOCKSERVE_GATEWAY_WORKER_WATCH_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace blockserve {

// How long calls took lately: the p99 of the last 512, looked up again with every 32nd.
class ServiceTimes {
 public:
  void Add(absl::Duration time);
  // None before 32 calls.
  std::optional<absl::Duration> p99() const { return p99_; }

  // A call that takes longer is asked of a second worker too: 3 x p99, at least 50 ms, at most
  // `bound`; `bound` while too little is known.
  absl::Duration HedgeAfter(absl::Duration bound) const;
  // A worker that has work and says nothing for so long is taken for frozen or cut off: 4 x p99, at
  // least 500 ms, at most `bound`; 2 s while too little is known.
  absl::Duration SilenceAllowed(absl::Duration bound) const;

 private:
  std::vector<absl::Duration> ring_;
  size_t next_ = 0;
  size_t since_ = 0;
  std::optional<absl::Duration> p99_;
};

// At most one call in twenty is hedged; a few may be at once.
class HedgeBudget {
 public:
  void Done() { credit_ = credit_ + 1 < kMostCredit ? credit_ + 1 : kMostCredit; }
  bool Take() {
    if (credit_ < kCallsPerHedge) return false;
    credit_ -= kCallsPerHedge;
    return true;
  }

 private:
  static constexpr int kCallsPerHedge = 20;
  static constexpr int kMostCredit = 8 * kCallsPerHedge;
  int credit_ = 0;
};

// Calls that a worker failed and another one did not. Three of different requests within 10 s say
// that it is the worker that is ill, not what it is given.
class Strikes {
 public:
  // True: that was one too many, and counting begins anew.
  bool Add(uint64_t request, absl::Time now);

 private:
  struct Strike {
    uint64_t request = 0;
    absl::Time at;
  };
  std::vector<Strike> recent_;
};

// One worker's standing with this gateway: good; ejected, when it gets no calls where others are
// there, but a probe now and then; returning, when it gets more with each that it answers.
class WorkerHealth {
 public:
  // It has connected and nothing speaks against it.
  void Reset() { *this = WorkerHealth(); }
  void Eject(absl::Time now);
  bool ejected() const { return state_ == State::kEjected; }
  bool returning() const { return state_ == State::kReturning; }

  bool WantsProbe(absl::Time now) const { return ejected() && now >= next_probe_; }
  // The next one after twice as long, at most 2 s.
  void ProbeSent(absl::Time now);
  // It has answered a call or a probe. True: that ends its time out of turn.
  bool Answered();
  // A call of `request` that it failed, another one has answered. True: it is to be ejected.
  bool Strike(uint64_t request, absl::Time now);
  // Of the `most` calls that it could have at once, how many it gets.
  int32_t Allowed(int32_t most) const;

 private:
  enum class State { kGood, kEjected, kReturning };
  State state_ = State::kGood;
  absl::Time next_probe_ = absl::InfinitePast();
  absl::Duration probe_interval_ = absl::ZeroDuration();
  int32_t allowed_ = 0;
  Strikes strikes_;
};

// A probe may wait at its worker for so long.
inline constexpr absl::Duration kProbeTime = absl::Seconds(10);

// How long what a worker has told of its load is believed where it has nothing of ours to answer:
// its own shares are of the last 5 s.
inline constexpr absl::Duration kLoadGoodFor = absl::Seconds(5);

// Whether a worker that has work goes on with it. Times during which the gateway itself did not run
// do not count.
class ProgressWatch {
 public:
  // It has work from now on.
  void Begin(absl::Time now) { since_ = now; }
  // It has answered something, or says that it has made another step.
  void Progress(absl::Time now) { since_ = now; }
  void NotBefore(absl::Time now) {
    if (since_ < now) since_ = now;
  }
  absl::Duration Silent(absl::Time now) const { return now - since_; }

 private:
  absl::Time since_ = absl::InfinitePast();
};

// Whether a worker can be reached, both ways. How long it takes for its work says little of that: a
// tier that is slow today would be given long to answer when it is cut off, and one that hears
// nothing may go on talking. So what has waited for its answer for a while makes us ask, and the
// worker's network threads answer, whatever its engine does.
class PingWatch {
 public:
  // A new connection; `answers`: to a worker that knows pings.
  void Reset(bool answers);
  // `oldest`: when what has waited longest was sent. The ping to send now; 0: none.
  uint64_t Next(absl::Time oldest, absl::Time now);
  void Pong(uint64_t ping);
  void NotBefore(absl::Time now) { sent_ = sent_ < now ? now : sent_; }
  // How long a ping has been unanswered.
  absl::Duration Waits(absl::Time now) const {
    return waiting_ ? now - sent_ : absl::ZeroDuration();
  }
  bool Unreachable(absl::Time now) const { return Waits(now) >= kUnreachableAfter; }
  // Nothing speaks for it, while others do: the gateway itself may have been cut off.
  bool Doubtful(absl::Time now) const { return Waits(now) >= kUnreachableAfter / 2; }

  static constexpr absl::Duration kAskAfter = absl::Milliseconds(150);
  static constexpr absl::Duration kUnreachableAfter = absl::Seconds(1);

 private:
  bool answers_ = false;
  bool waiting_ = false;
  uint64_t last_ = 0;
  absl::Time sent_ = absl::InfinitePast();  // the last ping
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_WORKER_WATCH_H_
