// An engine for tests: its answers follow from the row alone, and it can be held.
#ifndef BLOCKSERVE_TOKEN_SERVICE_FAKE_TOKEN_ENGINE_H_
#define BLOCKSERVE_TOKEN_SERVICE_FAKE_TOKEN_ENGINE_H_

#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "common/mutex.h"
#include "common/test_gate.h"
#include "model/engine.h"

namespace blockserve {

// Token j of a row is (int(context[0]) + j) mod V.
class FakeTokenEngine final : public TokenEngine {
 public:
  // `gate`, if any, is passed before each batch is done, and outlives this. `in_flight` batches of
  // 64 rows may be under way.
  explicit FakeTokenEngine(Gate* gate = nullptr, int32_t block_length = 4, int32_t in_flight = 1)
      : gate_(gate), in_flight_(in_flight) {
    config_.block_length = block_length;
    config_.vocab_size = 100;
    config_.block.hidden_size = 2;
  }
  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return Arithmetic::kF32; }
  int32_t max_rows() const override { return 64 * in_flight_; }
  int32_t max_in_flight() const override { return in_flight_; }
  int32_t batch_rows() const override { return 64; }
  // Of the batches that are under way, oldest first.
  std::vector<size_t> BatchesUnderWay() const {
    MutexLock lock(&mutex_);
    std::vector<size_t> rows;
    for (const auto& [batch, results] : under_way_) rows.push_back(batch.size());
    return rows;
  }

  static int32_t Token(float context, int32_t index) {
    return (static_cast<int32_t>(context) + index) % 100;
  }

  void Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override {
    Start(rows, results);
    Finish();
  }
  void Start(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override {
    MutexLock lock(&mutex_);
    under_way_.emplace_back(rows, results);
  }
  void Finish() override {
    if (gate_ != nullptr) gate_->Pass();
    MutexLock lock(&mutex_);
    const auto [rows, results] = under_way_.front();
    under_way_.pop_front();
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
  const int32_t in_flight_;
  mutable Mutex mutex_;
  std::deque<std::pair<absl::Span<const TokenRow>, absl::Span<TokenRowResult>>> under_way_
      ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_FAKE_TOKEN_ENGINE_H_
