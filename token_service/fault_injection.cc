#include "token_service/fault_injection.h"

#include <csignal>
#include <cstring>
#include <random>
#include <utility>

#include "absl/time/clock.h"

namespace blockserve {
namespace {

class FaultyTokenEngine final : public TokenEngine {
 public:
  FaultyTokenEngine(std::unique_ptr<TokenEngine> engine, const FaultInjection& faults)
      : engine_(std::move(engine)), faults_(faults), random_(std::random_device{}()) {}

  const ModelConfig& config() const override { return engine_->config(); }
  Arithmetic arithmetic() const override { return engine_->arithmetic(); }
  int32_t max_rows() const override { return engine_->max_rows(); }
  absl::Status Lost() const override { return engine_->Lost(); }

  void Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override {
    for (const TokenRow& row : rows) {
      if (faults_.crash_seed != 0 && row.seed == faults_.crash_seed) std::raise(SIGKILL);
      while (faults_.hang_seed != 0 && row.seed == faults_.hang_seed) {
        absl::SleepFor(absl::Hours(1));
      }
    }
    engine_->Decode(rows, results);
    for (TokenRowResult& result : results) {
      if (Draw(faults_.errors)) result.status = absl::InternalError("an injected error");
      if (!result.status.ok() || result.tokens.empty()) continue;
      if (!Draw(faults_.wrong_bits)) continue;
      // The lowest bit alone, and another token: what a failing machine would do.
      uint32_t bits;
      std::memcpy(&bits, &result.logprobs.back(), sizeof(bits));
      bits ^= 1u;
      std::memcpy(&result.logprobs.back(), &bits, sizeof(bits));
      if (!result.stopped) result.tokens.back() ^= 1;
    }
  }

 private:
  bool Draw(double share) { return std::uniform_real_distribution<double>()(random_) < share; }

  const std::unique_ptr<TokenEngine> engine_;
  const FaultInjection faults_;
  std::mt19937_64 random_;
};

}  // namespace

absl::Status FaultInjection::Validate() const {
  if (!(wrong_bits >= 0 && wrong_bits <= 1)) {
    return absl::InvalidArgumentError("--inject-wrong-bits must be 0 to 1");
  }
  if (!(errors >= 0 && errors <= 1)) {
    return absl::InvalidArgumentError("--inject-errors must be 0 to 1");
  }
  if (any() && !allowed) {
    return absl::InvalidArgumentError(
        "--inject-… makes this worker misbehave: only with --allow-fault-injection");
  }
  return absl::OkStatus();
}

std::unique_ptr<TokenEngine> InjectFaults(std::unique_ptr<TokenEngine> engine,
                                          const FaultInjection& faults) {
  if (!faults.any()) return engine;
  return std::make_unique<FaultyTokenEngine>(std::move(engine), faults);
}

}  // namespace blockserve
