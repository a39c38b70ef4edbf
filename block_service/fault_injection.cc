#include "block_service/fault_injection.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <random>
#include <utility>

#include "absl/time/clock.h"

namespace blockserve {
namespace {

class FaultyBlockEngine final : public BlockEngine {
 public:
  FaultyBlockEngine(std::unique_ptr<BlockEngine> engine, const BlockFaultInjection& faults)
      : engine_(std::move(engine)), faults_(faults), random_(std::random_device{}()) {}

  const ModelConfig& config() const override { return engine_->config(); }
  Arithmetic arithmetic() const override { return engine_->arithmetic(); }
  absl::Status AllocateKv(int64_t num_pages, int32_t page_blocks) override {
    return engine_->AllocateKv(num_pages, page_blocks);
  }
  int64_t KvBytesPerPage(int32_t page_blocks) const override {
    return engine_->KvBytesPerPage(page_blocks);
  }
  int64_t DefaultKvBytes() const override { return engine_->DefaultKvBytes(); }
  void CopyPage(int32_t from, int32_t to, int32_t blocks) override {
    engine_->CopyPage(from, to, blocks);
  }

  absl::Status Start(absl::Span<const BlockChunk> chunks, absl::Span<float> contexts) override {
    if (HasToken(chunks, faults_.crash_token)) std::raise(SIGKILL);
    while (HasToken(chunks, faults_.hang_token)) absl::SleepFor(absl::Hours(1));
    if (Draw(faults_.errors)) return absl::InternalError("an injected error");
    absl::Status status = engine_->Step(chunks, contexts);
    const size_t width = static_cast<size_t>(config().block.hidden_size);
    for (size_t at = 0; at < contexts.size(); at += width) {
      if (!Draw(faults_.wrong_bits)) continue;
      // The lowest bit of a value that travels as bfloat16: what a failing machine would do.
      uint32_t bits;
      std::memcpy(&bits, &contexts[at], sizeof(bits));
      bits ^= 1u << 16;
      std::memcpy(&contexts[at], &bits, sizeof(bits));
    }
    return status;
  }
  absl::Status Lost() const override { return engine_->Lost(); }

 private:
  bool Draw(double share) { return std::uniform_real_distribution<double>()(random_) < share; }
  static bool HasToken(absl::Span<const BlockChunk> chunks, int32_t token) {
    return token >= 0 && std::any_of(chunks.begin(), chunks.end(), [&](const BlockChunk& chunk) {
             return std::find(chunk.tokens.begin(), chunk.tokens.end(), token) !=
                    chunk.tokens.end();
           });
  }

  const std::unique_ptr<BlockEngine> engine_;
  const BlockFaultInjection faults_;
  std::mt19937_64 random_;
};

}  // namespace

absl::Status BlockFaultInjection::Validate() const {
  if (!(wrong_bits >= 0 && wrong_bits <= 1)) {
    return absl::InvalidArgumentError("--inject-wrong-bits must be 0 to 1");
  }
  if (!(errors >= 0 && errors <= 1)) {
    return absl::InvalidArgumentError("--inject-errors must be 0 to 1");
  }
  if (any() && !allowed) {
    return absl::InvalidArgumentError(
        "--inject-… makes this replica misbehave: only with --allow-fault-injection");
  }
  return absl::OkStatus();
}

std::unique_ptr<BlockEngine> InjectFaults(std::unique_ptr<BlockEngine> engine,
                                          const BlockFaultInjection& faults) {
  if (!faults.any()) return engine;
  return std::make_unique<FaultyBlockEngine>(std::move(engine), faults);
}

}  // namespace blockserve
