// Tests: a loop that runs when it is told to, with a clock that moves when nothing else does.
#ifndef BLOCKSERVE_GATEWAY_MANUAL_LOOP_H_
#define BLOCKSERVE_GATEWAY_MANUAL_LOOP_H_

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <utility>

#include "absl/time/time.h"
#include "rpc/loop.h"

namespace blockserve {

class ManualLoop final : public Loop {
 public:
  absl::Time Now() const override { return now_; }
  void Post(std::function<void()> task) override { ready_.push_back(std::move(task)); }
  void PostAfter(absl::Duration delay, std::function<void()> task) override {
    timers_.emplace(now_ + delay, std::move(task));
  }

  // Runs what is ready, and what that makes ready.
  void RunReady() {
    while (!ready_.empty()) {
      const std::function<void()> task = std::move(ready_.front());
      ready_.pop_front();
      task();
    }
  }

  // Runs, moving the clock from timer to timer, until `done` or until `limit` has gone by. Returns
  // whether it is done.
  bool RunUntil(const std::function<bool()>& done, absl::Duration limit = absl::Minutes(5)) {
    const absl::Time end = now_ + limit;
    while (true) {
      RunReady();
      if (done()) return true;
      if (timers_.empty() || timers_.begin()->first > end) {
        now_ = end;
        return false;
      }
      now_ = std::max(now_, timers_.begin()->first);
      const std::function<void()> task = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
      task();
    }
  }
  void Advance(absl::Duration duration) {
    RunUntil([] { return false; }, duration);
  }
  // Time in which nothing runs: the process had no core, or its machine stood still.
  void Stall(absl::Duration duration) { now_ += duration; }

 private:
  absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  std::deque<std::function<void()>> ready_;
  std::multimap<absl::Time, std::function<void()>> timers_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_MANUAL_LOOP_H_
