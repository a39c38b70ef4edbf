#include "gateway/generation_run.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/alignment_proto.h"
#include "gateway/cache_pool.h"
#include "gateway/output_end.h"
#include "model/alignment.h"

namespace blockserve {
namespace {

bool CountsOutput(const v1::SamplingParameters& sampling) {
  return (sampling.has_repetition_penalty() && sampling.repetition_penalty() != 1.0f) ||
         sampling.presence_penalty() != 0.0f || sampling.frequency_penalty() != 0.0f;
}

bool CountsPrompt(const v1::SamplingParameters& sampling) {
  return sampling.has_repetition_penalty() && sampling.repetition_penalty() != 1.0f;
}

absl::Span<const int32_t> TokensOf(const TokenRowAnswer& answer) {
  const auto& tokens = answer.reply->tokens();
  return {tokens.data(), static_cast<size_t>(tokens.size())};
}

}  // namespace

GenerationRun::GenerationRun(const RunEnvironment& environment, GenerationId id,
                             GenerationRequest request, std::shared_ptr<GenerationSink> sink,
                             std::function<void()> on_over)
    : Run(id, std::move(on_over)),
      environment_(environment),
      sink_(std::move(sink)),
      request_(std::move(request)) {}

void GenerationRun::Start(std::shared_ptr<const Binding> binding) {
  binding_ = std::move(binding);
  const ModelConfig& config = *environment_.config;
  PromptLayout layout = LayoutPrompt(config, request_.alignment, request_.prompt);
  const int32_t rest = static_cast<int32_t>(layout.forced.size());
  const int32_t length = config.block_length;
  reserve_blocks_ = (rest + static_cast<int64_t>(request_.max_tokens) + length - 1) / length;

  ChoiceSpec spec;
  spec.block_length = length;
  spec.seed = request_.seed;
  spec.prompt = std::make_shared<const std::vector<int32_t>>(request_.prompt);
  spec.prompt_rest = rest;
  spec.prompt_blocks = layout.num_blocks(config);
  spec.max_tokens = request_.max_tokens;
  spec.min_tokens = request_.min_tokens;
  spec.vocab_limit = environment_.vocab_limit;
  spec.count_output = CountsOutput(request_.sampling);
  if (CountsPrompt(request_.sampling)) {
    spec.prompt_counts =
        std::make_shared<const std::vector<int32_t>>(CountPrompt(absl::MakeConstSpan(
            request_.prompt.data(), request_.prompt.size() - static_cast<size_t>(rest))));
  }
  blocks_ = std::make_shared<const std::vector<int32_t>>(std::move(layout.block_tokens));
  usage_.set_prompt_tokens(static_cast<int64_t>(request_.prompt.size()));

  choices_.reserve(static_cast<size_t>(request_.n));
  for (int32_t i = 0; i < request_.n; ++i) {
    spec.choice = static_cast<uint32_t>(i);
    if (request_.resume.has_value()) {
      spec.already = request_.resume->choices[static_cast<size_t>(i)].tokens;
    }
    choices_.emplace_back(spec, TextOutput(environment_.tokenizer, request_.stop_strings,
                                           request_.min_tokens, request_.text_before));
  }
  running_ = request_.n;
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (request_.resume.has_value() && !TakeOver(i)) return;
    if (choices_[i].state.over()) continue;
    if (absl::Status status = choices_[i].state.Open(); !status.ok()) return End(status);
  }
  OpenLeader();
}

bool GenerationRun::TakeOver(size_t index) {
  Choice& choice = choices_[index];
  const ResumeState::Choice& had = request_.resume->choices[index];
  usage_.set_completion_tokens(usage_.completion_tokens() +
                               static_cast<int64_t>(had.tokens.size()));
  absl::StatusOr<std::optional<v1::Finished>> end = ReplayOutput(request_, had.tokens, choice.text);
  absl::Status status = end.status();
  if (status.ok() && end->has_value()) {
    status = choice.state.Conclude();
    if (had.finished) {
      --running_;
    } else {
      (*end)->set_choice(static_cast<uint32_t>(index));
      choice.end = *std::move(end);
    }
  }
  if (!status.ok()) End(status);
  return status.ok();
}

void GenerationRun::OpenLeader() {
  // One whose row is that of the prompt, so that all like it can be forked from it.
  size_t leader = choices_.size();
  for (size_t i = 0; i < choices_.size(); ++i) {
    const ChoiceState& state = choices_[i].state;
    if (state.over()) continue;
    if (leader == choices_.size() || state.blocks() < choices_[leader].state.blocks()) leader = i;
  }
  if (leader == choices_.size()) return TellStart();  // nothing is left to be written
  leader_ = leader;
  absl::StatusOr<uint64_t> sequence = environment_.block_tier->Open(SpecOf(leader));
  if (!sequence.ok()) return End(sequence.status());
  choices_[leader].sequence = *sequence;
}

SequenceSpec GenerationRun::SpecOf(size_t index) {
  SequenceSpec spec;
  spec.group = binding_->block;
  spec.prompt = blocks_;
  spec.more = choices_[index].state.OwnBlocks();
  spec.reserve_blocks = reserve_blocks_;
  spec.cache_pool = CachePoolOf(request_.own_prefix_cache ? request_.key : "", request_.cache_salt);
  spec.priority = request_.priority;
  spec.deadline = request_.deadline;
  spec.request = id();
  spec.request_key = request_.request_id;
  spec.traceparent = request_.origin.traceparent;
  spec.on_context = [this, index](int64_t block, ContextRowPtr row) {
    OnContext(index, block, std::move(row));
  };
  spec.on_failed = [this, index](absl::Status status) {
    choices_[index].sequence = 0;
    End(status);
  };
  return spec;
}

void GenerationRun::TellStart() {
  v1::Started started;
  started.set_request_id(request_.request_id);
  started.set_model_id(binding_->model_id);
  started.set_block_numeric_id(binding_->block.numeric_id);
  started.set_token_numeric_id(binding_->token.numeric_id);
  started.set_seed(request_.seed);
  started.set_alignment(ToProto(request_.alignment));
  started.set_prompt_tokens(static_cast<int32_t>(request_.prompt.size()));
  sink_->OnStarted(std::move(started));
  for (size_t i = 0; i < choices_.size() && !over(); ++i) {
    std::optional<v1::Finished> end = std::exchange(choices_[i].end, std::nullopt);
    if (end.has_value()) FinishChoice(i, *std::move(end));
  }
  if (!over() && running_ == 0) Complete();  // the client had every end
}

void GenerationRun::Begin(ContextRowPtr row) {
  const Choice& leader = choices_[leader_];
  const int64_t cached = environment_.block_tier->cached_blocks(leader.sequence);
  usage_.set_cached_prompt_tokens(std::min(cached, leader.state.prompt_blocks()) *
                                  environment_.config->block_length);
  TellStart();

  // Forked now, while the parent is there for certain: the messages keep their order, so a parent
  // that is over after one block closes after its children were made. Those that have blocks of
  // their own are opened now, when the prompt's KV is there to be shared.
  const int64_t block = leader.state.blocks() - 1;
  std::vector<size_t> forks;
  for (size_t i = 0; i < choices_.size(); ++i) {
    if (i == leader_ || choices_[i].state.over()) continue;
    if (choices_[i].state.blocks() == choices_[i].state.prompt_blocks()) {
      choices_[i].sequence = environment_.block_tier->Fork(leader.sequence, SpecOf(i));
      forks.push_back(i);
      continue;
    }
    choices_[i].sequence = environment_.block_tier->OpenBegun(SpecOf(i));
  }
  for (const size_t i : forks) {
    if (!over()) OnContext(i, block, row);
  }
}

void GenerationRun::OnContext(size_t index, int64_t block, ContextRowPtr row) {
  if (over()) return;
  Choice& choice = choices_[index];
  const bool first = index == leader_ && choice.state.phase() == ChoicePhase::kOpening;
  choice.context = row;
  if (absl::Status status = choice.state.TakeContext(block, sink_->WantsMore()); !status.ok()) {
    return End(absl::InternalError(status.message()));
  }
  if (first) Begin(std::move(row));
  if (!over() && choice.state.phase() == ChoicePhase::kWaitingForBlock) SubmitRow(index);
}

void GenerationRun::Resume() {
  for (size_t i = 0; i < choices_.size() && !over(); ++i) {
    Choice& choice = choices_[i];
    if (choice.state.phase() != ChoicePhase::kPaused) continue;
    if (!sink_->WantsMore()) return;
    if (absl::Status status = choice.state.Unpause(); !status.ok()) return End(status);
    SubmitRow(i);
  }
}

void GenerationRun::SubmitRow(size_t index) {
  Choice& choice = choices_[index];
  absl::StatusOr<RowPlan> plan = choice.state.PlanRow();
  if (!plan.ok()) return End(absl::InternalError(plan.status().message()));
  RowJob job;
  job.request = id();
  job.group = {binding_, &binding_->token};
  job.row = UpdateRow(choice, *plan);
  job.context = choice.context;
  job.deadline = request_.deadline;
  job.done = [this, index](absl::StatusOr<TokenRowAnswer> answer) {
    OnAnswer(index, std::move(answer));
  };
  choice.row = environment_.token_rows->Submit(std::move(job));
}

std::shared_ptr<const v1::TokenRowRequest> GenerationRun::UpdateRow(Choice& choice,
                                                                    const RowPlan& plan) const {
  // An audit may still have the last one.
  if (choice.row_request == nullptr || choice.row_request.use_count() > 1) {
    choice.row_request = std::make_shared<v1::TokenRowRequest>();
    v1::TokenRowRequest& row = *choice.row_request;
    row.mutable_header()->set_priority(request_.priority);
    row.mutable_header()->set_request_key(request_.request_id);
    row.mutable_header()->set_traceparent(request_.origin.traceparent);
    row.set_seed(plan.seed);
    row.set_choice(plan.choice);
    *row.mutable_sampling() = request_.sampling;
    row.mutable_stop_ids()->Assign(request_.stop_ids.begin(), request_.stop_ids.end());
    row.set_min_tokens_position(plan.min_tokens_position);
    row.set_vocab_limit(plan.vocab_limit);
    row.set_logprobs(request_.logprobs.has_value());
    row.set_top_logprobs(request_.logprobs.value_or(0));
  }
  v1::TokenRowRequest& row = *choice.row_request;
  row.mutable_forced()->Assign(plan.forced.begin(), plan.forced.end());
  row.set_forced_in_prompt(plan.forced_in_prompt);
  row.set_limit(plan.limit);
  row.set_position(plan.position);
  row.mutable_counts()->Assign(plan.counts.begin(), plan.counts.end());
  return choice.row_request;
}

void GenerationRun::OnAnswer(size_t index, absl::StatusOr<TokenRowAnswer> answer) {
  if (over()) return;
  choices_[index].row = 0;
  if (!answer.ok()) return End(answer.status());
  OnBlock(index, *std::move(answer));
}

void GenerationRun::OnBlock(size_t index, TokenRowAnswer answer) {
  Choice& choice = choices_[index];
  const v1::TokenRowReply& reply = *answer.reply;
  const absl::Span<const int32_t> tokens = TokensOf(answer);
  const int32_t vocab_size = environment_.config->vocab_size;
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocab_size) {
      return End(absl::InternalError(
          absl::StrCat("a token worker wrote the id ", token, ", outside of the vocabulary")));
    }
  }
  if (request_.logprobs.has_value() && reply.logprobs_size() != reply.tokens_size()) {
    return End(absl::InternalError("a token worker left out log-probabilities"));
  }
  absl::StatusOr<BlockVerdict> verdict = choice.state.Judge(tokens, reply.stopped());
  if (!verdict.ok()) return End(verdict.status());
  const int64_t position = choice.state.position();

  const auto go_on = [&]() -> absl::Status {
    absl::StatusOr<std::vector<int32_t>> block = choice.state.AcceptBlock(tokens);
    if (!block.ok()) return absl::InternalError(block.status().message());
    environment_.block_tier->Extend(choice.sequence, *block);
    return absl::OkStatus();
  };
  // The block goes back to the block tier before anything else is done with it, unless a stop
  // string may end the choice here. What is added now runs after the message with the appends has
  // left, and before anything that answers it.
  if (*verdict == BlockVerdict::kGoesOn && request_.stop_strings.empty()) {
    if (absl::Status status = go_on(); !status.ok()) return End(status);
    environment_.later->Add([this, alive = alive_, index, position, answer = std::move(answer)] {
      if (!*alive || over()) return;
      TextOutput::Result text = choices_[index].text.Append(TokensOf(answer), false);
      Emit(index, answer, position, std::move(text), /*ends_choice=*/false);
    });
    return;
  }
  TextOutput::Result text =
      choice.text.Append(tokens, /*ends_with_stop_token=*/*verdict == BlockVerdict::kStopToken);
  const size_t kept = static_cast<size_t>(text.tokens_kept);
  if (*verdict == BlockVerdict::kGoesOn && !text.stop_string.has_value()) {
    if (absl::Status status = go_on(); !status.ok()) return End(status);
    Emit(index, answer, position, std::move(text), /*ends_choice=*/false);
    return;
  }

  if (absl::Status status = choice.state.Finish(tokens.subspan(0, kept)); !status.ok()) {
    return End(absl::InternalError(status.message()));
  }
  environment_.block_tier->Close(std::exchange(choice.sequence, 0));
  v1::Finished finished;
  finished.set_choice(static_cast<uint32_t>(index));
  if (text.stop_string.has_value()) {
    finished.set_reason(v1::FINISH_REASON_STOP);
    finished.set_stop_string(*text.stop_string);
  } else if (*verdict == BlockVerdict::kStopToken) {
    finished.set_reason(v1::FINISH_REASON_STOP);
    finished.set_stop_token(tokens.back());
  } else {
    finished.set_reason(v1::FINISH_REASON_LENGTH);
  }
  finished.set_text(choice.text.Flush());
  Emit(index, answer, position, std::move(text), /*ends_choice=*/true);
  if (!over()) FinishChoice(index, std::move(finished));
}

void GenerationRun::Emit(size_t index, const TokenRowAnswer& answer, int64_t position,
                         TextOutput::Result text, bool ends_choice) {
  const v1::TokenRowReply& reply = *answer.reply;
  const size_t kept = static_cast<size_t>(text.tokens_kept);
  usage_.set_completion_tokens(usage_.completion_tokens() + static_cast<int64_t>(kept));
  v1::Output output;
  output.set_choice(static_cast<uint32_t>(index));
  output.set_position(position);
  output.mutable_tokens()->Add(reply.tokens().begin(),
                               reply.tokens().begin() + static_cast<int>(kept));
  output.set_text(std::move(text.text));
  output.set_worker(answer.worker->name);
  if (request_.logprobs.has_value()) {
    const int best = reply.top_tokens_size() / std::max(1, reply.logprobs_size());
    for (int i = 0; i < static_cast<int>(kept); ++i) {
      v1::TokenLogprobs& logprobs = *output.add_logprobs();
      logprobs.set_logprob(reply.logprobs(i));
      for (int j = i * best; j < (i + 1) * best && j < reply.top_logprobs_size(); ++j) {
        v1::TopLogprob& top = *logprobs.add_top();
        top.set_token(reply.top_tokens(j));
        top.set_logprob(reply.top_logprobs(j));
      }
    }
  }
  sink_->OnOutput(std::move(output), {std::move(text.ends), ends_choice});
}

void GenerationRun::FinishChoice(size_t index, v1::Finished finished) {
  choices_[index].context.reset();
  sink_->OnFinished(std::move(finished));
  if (!over() && --running_ == 0) Complete();
}

void GenerationRun::Complete() {
  Close();
  sink_->OnDone(absl::OkStatus(), usage_);
}

void GenerationRun::Release() {
  for (Choice& choice : choices_) {
    environment_.token_rows->Cancel(std::exchange(choice.row, 0));
    environment_.block_tier->Close(std::exchange(choice.sequence, 0));
    if (!choice.state.over()) choice.state.Fail().IgnoreError();
  }
}

void GenerationRun::Tell(const absl::Status& status) { sink_->OnDone(status, usage_); }

}  // namespace blockserve
