// The gateway's core: takes validated requests, binds each to the workers of one model and one
// arithmetic, and ends every one of them exactly once and in time.
#ifndef BLOCKSERVE_GATEWAY_CORE_H_
#define BLOCKSERVE_GATEWAY_CORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "gateway/block_tier.h"
#include "gateway/generation.h"
#include "gateway/later.h"
#include "gateway/row_audit.h"
#include "gateway/run.h"
#include "gateway/scoring_rows.h"
#include "gateway/token_tier.h"
#include "rpc/loop.h"

namespace blockserve {

struct CoreOptions {
  TierOptions tier;
  int64_t max_live_choices = 16384;  // of all requests together
};

// GenerationCore's methods and live_requests are thread-safe; everything else belongs to the loop.
class Core final : public GenerationCore {
 public:
  // All must outlive the core; `tokenizer` may be null.
  Core(Loop& loop, const ModelConfig& config, const Tokenizer* tokenizer, ExpectedModel expected,
       const CoreOptions& options, BlockTier::LinkFactory make_block_link,
       TokenTier::LinkFactory make_token_link);
  ~Core() override;

  GenerationId Generate(GenerationRequest request, std::shared_ptr<GenerationSink> sink) override;
  GenerationId Score(ScoringRequest request, std::shared_ptr<ScoringSink> sink) override;
  void Cancel(GenerationId id, absl::Status why) override;
  void Resume(GenerationId id) override;
  void FillModelStatus(v1::GetModelResponse& response) const override;
  absl::Time Now() const override { return loop_.Now(); }

  int64_t live_requests() const { return live_requests_.load(); }

  // On the loop. Ends every request with `status`, takes no more and closes all connections.
  void EndAll(const absl::Status& status);
  BlockTier& block_tier() { return block_tier_; }
  TokenTier& token_tier() { return token_tier_; }
  const RowAudit& row_audit() const { return row_audit_; }
  const ScoringRows& scoring_rows() const { return scoring_rows_; }

 private:
  using MakeRun =
      std::function<std::unique_ptr<Run>(GenerationId id, std::function<void()> on_over)>;
  GenerationId Accept(MakeRun make);
  void Begin(GenerationId id, std::unique_ptr<Run> run);
  // True: it is bound, or over. False: it waits for a tier.
  bool TryBind(Run& run);
  std::optional<Binding> FindBinding(const Run& run) const;
  void BindWaiting();
  void BoundScoringRows();
  void Tick();
  void ScheduleTick();
  void Publish();

  // What the tiers' workers are at the moment, for FillModelStatus.
  struct Status {
    std::string model_id;
    std::string block_numeric_id;
    std::string token_numeric_id;
    int32_t block_services = 0;
    int32_t token_workers = 0;
    int64_t capacity_tokens = 0;  // of a text, in the block services' KV; 0: no limit is known
  };

  Loop& loop_;
  const ExpectedModel expected_;
  const CoreOptions options_;
  BlockTier block_tier_;
  TokenTier token_tier_;
  RowAudit row_audit_;
  ScoringRows scoring_rows_;
  Later later_;
  RunEnvironment environment_;
  // That of the last request bound. It is shared, so that who compares what two rows need compares
  // what lies in the cache.
  std::shared_ptr<const Binding> binding_;
  std::unordered_map<GenerationId, std::unique_ptr<Run>> runs_;
  std::set<std::pair<absl::Time, GenerationId>> deadlines_;
  // Not bound yet, for want of a tier; by priority, then by age.
  std::set<std::pair<uint32_t, GenerationId>> unbound_;
  int64_t live_choices_ = 0;
  absl::Status closed_;  // what new requests are told, once EndAll was called

  std::atomic<GenerationId> next_id_{1};
  std::atomic<int64_t> live_requests_{0};
  mutable Mutex mutex_;
  Status status_ ABSL_GUARDED_BY(mutex_);
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CORE_H_
