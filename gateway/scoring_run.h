// A Score request on its way: one pass of the text through the block tier, then every block that
// holds scored tokens through the token tier, all of its tokens forced.
#ifndef BLOCKSERVE_GATEWAY_SCORING_RUN_H_
#define BLOCKSERVE_GATEWAY_SCORING_RUN_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gateway/generation.h"
#include "gateway/run.h"
#include "gateway/scoring_rows.h"

namespace blockserve {

// Where the scored tokens of a text lie. Blocks and pads are those of generating: the layout is
// that of the context (of the whole text, where there is no context).
struct ScorePlan {
  std::vector<int32_t> padded;  // pads, then the text
  int32_t num_pads = 0;
  // Blocks [first_block, end_block) are scored; none when they are equal. Tokens of block 0 have no
  // score: nothing comes before it. The block tier needs the blocks before end_block - 1.
  int64_t first_block = 0;
  int64_t end_block = 0;
};
ScorePlan PlanScore(const ModelConfig& config, Alignment alignment,
                    absl::Span<const int32_t> tokens, int32_t first_scored);

class ScoringRun final : public Run {
 public:
  ScoringRun(const RunEnvironment& environment, GenerationId id, ScoringRequest request,
             std::shared_ptr<ScoringSink> sink, std::function<void()> on_over);

  absl::Time deadline() const override { return request_.deadline; }
  uint32_t priority() const override { return request_.priority; }
  int32_t choices() const override { return 1; }
  absl::string_view model_id() const override { return request_.model_id; }
  CallTiers* call_tiers() const override { return request_.origin.tiers.get(); }
  void Start(std::shared_ptr<const Binding> binding) override;

 private:
  void Release() override;
  void Tell(const absl::Status& status) override;

  // The next of those that are ready; whether there is another.
  bool SubmitNext();
  void SubmitRow(int64_t block, ContextRowPtr context);
  void OnAnswer(int64_t block, absl::StatusOr<TokenRowAnswer> answer);
  void Finish();

  const RunEnvironment& environment_;
  const ScoringRequest request_;
  const std::shared_ptr<ScoringSink> sink_;
  std::shared_ptr<const Binding> binding_;
  ScorePlan plan_;
  uint64_t sequence_ = 0;  // handle; 0: none
  int64_t cached_blocks_ = 0;
  bool started_ = false;
  ScoringRows::Source source_;
  std::deque<std::pair<int64_t, ContextRowPtr>> ready_;  // blocks to be scored, with the row before
  std::unordered_map<int64_t, uint64_t> rows_;           // handles of rows under way, by block
  int64_t unanswered_ = 0;                               // blocks
  v1::ScoreResponse response_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_SCORING_RUN_H_
