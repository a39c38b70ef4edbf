#include "gateway/scoring_run.h"

#include <algorithm>
#include <utility>

#include "gateway/cache_pool.h"
#include "model/alignment.h"

namespace blockserve {

ScorePlan PlanScore(const ModelConfig& config, Alignment alignment,
                    absl::Span<const int32_t> tokens, int32_t first_scored) {
  ScorePlan plan;
  const absl::Span<const int32_t> laid_out =
      first_scored > 0 ? tokens.subspan(0, static_cast<size_t>(first_scored)) : tokens;
  plan.num_pads = LayoutPrompt(config, alignment, laid_out).num_pads;
  plan.padded.assign(static_cast<size_t>(plan.num_pads), config.pad_token_id);
  plan.padded.insert(plan.padded.end(), tokens.begin(), tokens.end());
  const int64_t length = config.block_length;
  const int64_t size = static_cast<int64_t>(plan.padded.size());
  plan.end_block = (size + length - 1) / length;
  plan.first_block = std::clamp<int64_t>((plan.num_pads + first_scored) / length, 1,
                                         std::max<int64_t>(1, plan.end_block));
  return plan;
}

ScoringRun::ScoringRun(const RunEnvironment& environment, GenerationId id, ScoringRequest request,
                       std::shared_ptr<ScoringSink> sink, std::function<void()> on_over)
    : Run(id, std::move(on_over)),
      environment_(environment),
      request_(std::move(request)),
      sink_(std::move(sink)),
      source_(request_.priority, [this] { return SubmitNext(); }) {}

void ScoringRun::Start(std::shared_ptr<const Binding> binding) {
  binding_ = std::move(binding);
  plan_ =
      PlanScore(*environment_.config, request_.alignment, request_.tokens, request_.first_scored);
  response_.set_request_id(request_.request_id);
  response_.set_model_id(binding_->model_id);
  response_.set_block_numeric_id(binding_->block.numeric_id);
  response_.set_token_numeric_id(binding_->token.numeric_id);
  for (size_t i = static_cast<size_t>(request_.first_scored); i < request_.tokens.size(); ++i) {
    response_.add_tokens(request_.tokens[i]);
    response_.add_logprobs();
  }
  unanswered_ = plan_.end_block - plan_.first_block;
  if (unanswered_ <= 0) return Finish();
  environment_.scoring_rows->Add(source_);

  SequenceSpec spec;
  spec.group = binding_->block;
  spec.prompt = std::make_shared<const std::vector<int32_t>>(
      plan_.padded.begin(),
      plan_.padded.begin() + (plan_.end_block - 1) * environment_.config->block_length);
  spec.scoring = true;
  spec.first_context = plan_.first_block - 1;
  spec.cache_pool = CachePoolOf(request_.own_prefix_cache ? request_.key : "", request_.cache_salt);
  spec.priority = request_.priority;
  spec.deadline = request_.deadline;
  spec.request = id();
  spec.request_key = request_.request_id;
  spec.traceparent = request_.origin.traceparent;
  spec.text_field = "continuation";
  spec.on_context = [this](int64_t block, ContextRowPtr row) {
    if (over()) return;
    cached_blocks_ = environment_.block_tier->cached_blocks(sequence_);
    if (!std::exchange(started_, true)) sink_->OnStarted();
    ready_.emplace_back(block + 1, std::move(row));
    environment_.scoring_rows->Offer(source_);
  };
  spec.on_failed = [this](absl::Status status) {
    sequence_ = 0;
    End(status);
  };
  absl::StatusOr<uint64_t> sequence = environment_.block_tier->Open(std::move(spec));
  if (!sequence.ok()) return End(sequence.status());
  sequence_ = *sequence;
}

bool ScoringRun::SubmitNext() {
  auto [block, context] = std::move(ready_.front());
  ready_.pop_front();
  SubmitRow(block, std::move(context));
  return !ready_.empty();
}

void ScoringRun::SubmitRow(int64_t block, ContextRowPtr context) {
  const int64_t length = environment_.config->block_length;
  const int64_t begin = block * length;
  const int64_t end = std::min<int64_t>(begin + length, static_cast<int64_t>(plan_.padded.size()));
  RowJob job;
  job.request = id();
  job.group = {binding_, &binding_->token};
  job.context = std::move(context);
  job.deadline = request_.deadline;
  auto request = std::make_shared<v1::TokenRowRequest>();
  v1::TokenRowRequest& row = *request;
  row.mutable_header()->set_priority(request_.priority);
  row.mutable_header()->set_request_key(request_.request_id);
  row.mutable_header()->set_traceparent(request_.origin.traceparent);
  row.mutable_forced()->Add(plan_.padded.begin() + begin, plan_.padded.begin() + end);
  row.set_limit(static_cast<int32_t>(end - begin));
  row.set_position(end - plan_.num_pads);
  row.set_logprobs(true);
  row.set_top_logprobs(request_.top_logprobs);
  row.set_score_forced(true);
  job.row = std::move(request);
  job.done = [this, block](absl::StatusOr<TokenRowAnswer> answer) {
    OnAnswer(block, std::move(answer));
  };
  rows_[block] = environment_.token_rows->Submit(std::move(job));
}

void ScoringRun::OnAnswer(int64_t block, absl::StatusOr<TokenRowAnswer> answer) {
  if (over()) return;
  rows_.erase(block);
  if (!answer.ok()) return End(answer.status());
  const v1::TokenRowReply& reply = *answer->reply;
  const int64_t begin = block * environment_.config->block_length;
  const int64_t size = std::min<int64_t>(environment_.config->block_length,
                                         static_cast<int64_t>(plan_.padded.size()) - begin);
  if (reply.logprobs_size() != size) {
    return End(absl::InternalError("a token worker left out log-probabilities"));
  }
  const int best = reply.top_tokens_size() / std::max(1, reply.logprobs_size());
  for (int i = 0; i < reply.logprobs_size(); ++i) {
    const int64_t token = begin + i - plan_.num_pads - request_.first_scored;
    if (token < 0) continue;  // context at the block's beginning
    v1::TokenLogprobs& logprobs = *response_.mutable_logprobs(static_cast<int>(token));
    logprobs.set_logprob(reply.logprobs(i));
    for (int j = i * best; j < (i + 1) * best && j < reply.top_logprobs_size(); ++j) {
      v1::TopLogprob& top = *logprobs.add_top();
      top.set_token(reply.top_tokens(j));
      top.set_logprob(reply.top_logprobs(j));
    }
  }
  sink_->OnScored(size);
  if (--unanswered_ == 0) return Finish();
  environment_.scoring_rows->Answered(source_);
}

void ScoringRun::Finish() {
  v1::Usage& usage = *response_.mutable_usage();
  usage.set_prompt_tokens(static_cast<int64_t>(request_.tokens.size()));
  usage.set_cached_prompt_tokens(cached_blocks_ * environment_.config->block_length);
  Close();
  sink_->OnDone(std::move(response_));
}

void ScoringRun::Release() {
  for (const auto& [block, row] : rows_) environment_.token_rows->Cancel(row);
  rows_.clear();
  ready_.clear();
  environment_.scoring_rows->Remove(source_);
  environment_.block_tier->Close(std::exchange(sequence_, 0));
}

void ScoringRun::Tell(const absl::Status& status) { sink_->OnDone(status); }

}  // namespace blockserve
