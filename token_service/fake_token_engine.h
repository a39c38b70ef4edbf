// An engine for tests: its answers follow from the row alone, and it can be held.
#ifndef BLOCKSERVE_TOKEN_SERVICE_FAKE_TOKEN_ENGINE_H_
#define BLOCKSERVE_TOKEN_SERVICE_FAKE_TOKEN_ENGINE_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "model/engine.h"

namespace blockserve {

// A gate that is open at first. While it is closed, whoever passes waits before it.
class Gate {
 public:
  void Close() {
    MutexLock lock(&mutex_);
    open_ = false;
  }
  void Open() {
    MutexLock lock(&mutex_);
    open_ = true;
    changed_.SignalAll();
  }
  void Pass() {
    MutexLock lock(&mutex_);
    ++arrivals_;
    changed_.SignalAll();
    while (!open_) changed_.Wait(&mutex_);
  }
  // Waits until so many have come to the gate in all; false after a minute.
  bool WaitForArrivals(int arrivals) {
    const absl::Time deadline = absl::Now() + absl::Minutes(1);
    MutexLock lock(&mutex_);
    while (arrivals_ < arrivals && absl::Now() < deadline) {
      changed_.WaitWithTimeout(&mutex_, deadline - absl::Now());
    }
    return arrivals_ >= arrivals;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  int arrivals_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Token j of a row is (int(context[0]) + j) mod V.
class FakeTokenEngine final : public TokenEngine {
 public:
  // `gate`, if any, is passed by every Decode, and outlives this.
  explicit FakeTokenEngine(Gate* gate = nullptr, int32_t block_length = 4) : gate_(gate) {
    config_.block_length = block_length;
    config_.vocab_size = 100;
    config_.block.hidden_size = 2;
  }
  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return Arithmetic::kF32; }
  int32_t max_rows() const override { return 64; }

  static int32_t Token(float context, int32_t index) {
    return (static_cast<int32_t>(context) + index) % 100;
  }

  void Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override {
    if (gate_ != nullptr) gate_->Pass();
    for (size_t i = 0; i < rows.size(); ++i) {
      results[i] = TokenRowResult();
      for (int32_t j = static_cast<int32_t>(rows[i].forced.size()); j < rows[i].limit; ++j) {
        results[i].tokens.push_back(Token(rows[i].context[0], j));
        results[i].logprobs.push_back(-1.0f);
      }
      if (rows[i].context[1] == 1.0f) {
        results[i] = TokenRowResult();
        results[i].status = absl::InternalError("logits are not finite");
      }
      if (!lost_.ok()) results[i].status = lost_;
    }
  }
  absl::Status Lost() const override { return lost_; }
  // From the next Decode on.
  void Lose(absl::Status why) { lost_ = std::move(why); }

 private:
  ModelConfig config_;
  absl::Status lost_;
  Gate* const gate_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_FAKE_TOKEN_ENGINE_H_
