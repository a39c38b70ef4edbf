#include "gateway/choice_state.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

constexpr size_t kCountValues = 3;  // of an id in RowPlan::counts

}  // namespace

absl::string_view ChoicePhaseName(ChoicePhase phase) {
  switch (phase) {
    case ChoicePhase::kQueued:
      return "queued";
    case ChoicePhase::kOpening:
      return "opening";
    case ChoicePhase::kWaitingForContext:
      return "waiting for context";
    case ChoicePhase::kWaitingForBlock:
      return "waiting for block";
    case ChoicePhase::kPaused:
      return "paused";
    case ChoicePhase::kFinished:
      return "finished";
    case ChoicePhase::kFailed:
      return "failed";
  }
  return "unknown";
}

std::vector<int32_t> CountPrompt(absl::Span<const int32_t> tokens) {
  std::vector<int32_t> sorted(tokens.begin(), tokens.end());
  std::sort(sorted.begin(), sorted.end());
  std::vector<int32_t> counts;
  for (const int32_t token : sorted) {
    if (counts.empty() || counts[counts.size() - kCountValues] != token) {
      counts.insert(counts.end(), {token, 0, 0});
    }
    ++counts[counts.size() - kCountValues + 1];
  }
  return counts;
}

ChoiceState::ChoiceState(ChoiceSpec spec)
    : spec_(std::move(spec)), prompt_tokens_(static_cast<int64_t>(spec_.prompt->size())) {
  const std::vector<int32_t>& prompt = *spec_.prompt;
  if (spec_.prompt_counts != nullptr) counts_ = *spec_.prompt_counts;
  forced_.assign(prompt.end() - spec_.prompt_rest, prompt.end());
  forced_in_prompt_ = spec_.prompt_rest;
  for (const int32_t token : spec_.already) {
    output_.push_back(token);
    forced_.push_back(token);
    if (static_cast<int32_t>(forced_.size()) == spec_.block_length) {
      CountBlock(forced_, forced_in_prompt_);
      forced_.clear();
      forced_in_prompt_ = 0;
      ++own_blocks_;
    }
  }
}

int64_t ChoiceState::position() const {
  return prompt_tokens_ + static_cast<int64_t>(output_.size());
}

std::vector<int32_t> ChoiceState::OwnBlocks() const {
  std::vector<int32_t> tokens(spec_.prompt->end() - spec_.prompt_rest, spec_.prompt->end());
  tokens.insert(tokens.end(), output_.begin(), output_.end());
  tokens.resize(static_cast<size_t>(own_blocks_ * spec_.block_length));
  return tokens;
}

absl::Status ChoiceState::Refuse(absl::string_view move) const {
  return absl::FailedPreconditionError(
      absl::StrCat("choice ", spec_.choice, " is ", ChoicePhaseName(phase_), ": it cannot ", move));
}

absl::Status ChoiceState::Open() {
  if (phase_ != ChoicePhase::kQueued) return Refuse("be opened");
  phase_ = ChoicePhase::kOpening;
  return absl::OkStatus();
}

absl::Status ChoiceState::TakeContext(int64_t block, bool may_run) {
  if (phase_ != ChoicePhase::kOpening && phase_ != ChoicePhase::kWaitingForContext) {
    return Refuse("take a context row");
  }
  if (block != blocks() - 1) {
    return Refuse(
        absl::StrCat("take the context row of block ", block, ", having ", blocks(), " blocks"));
  }
  phase_ = may_run ? ChoicePhase::kWaitingForBlock : ChoicePhase::kPaused;
  return absl::OkStatus();
}

absl::Status ChoiceState::Unpause() {
  if (phase_ != ChoicePhase::kPaused) return Refuse("go on");
  phase_ = ChoicePhase::kWaitingForBlock;
  return absl::OkStatus();
}

absl::Status ChoiceState::Conclude() {
  if (phase_ != ChoicePhase::kQueued) return Refuse("be over before its start");
  phase_ = ChoicePhase::kFinished;
  return absl::OkStatus();
}

absl::Status ChoiceState::Fail() {
  if (over()) return Refuse("fail");
  phase_ = ChoicePhase::kFailed;
  return absl::OkStatus();
}

int32_t ChoiceState::RowLimit() const {
  const int64_t remaining = spec_.max_tokens - static_cast<int64_t>(output_.size());
  return static_cast<int32_t>(
      std::min<int64_t>(spec_.block_length, static_cast<int64_t>(forced_.size()) + remaining));
}

absl::StatusOr<RowPlan> ChoiceState::PlanRow() const {
  if (phase_ != ChoicePhase::kWaitingForBlock) return Refuse("have a row decoded");
  RowPlan plan;
  plan.forced = forced_;
  plan.forced_in_prompt = forced_in_prompt_;
  plan.limit = RowLimit();
  plan.position = position();
  plan.min_tokens_position = prompt_tokens_ + spec_.min_tokens;
  plan.seed = spec_.seed;
  plan.choice = spec_.choice;
  plan.vocab_limit = spec_.vocab_limit;
  plan.counts = counts_;
  return plan;
}

absl::StatusOr<BlockVerdict> ChoiceState::Judge(absl::Span<const int32_t> tokens,
                                                bool stopped) const {
  if (phase_ != ChoicePhase::kWaitingForBlock) return Refuse("have a row decoded");
  const int64_t asked = RowLimit() - static_cast<int64_t>(forced_.size());
  const int64_t got = static_cast<int64_t>(tokens.size());
  if (got > asked || got == 0 || (got < asked && !stopped)) {
    return absl::InternalError(absl::StrCat("a token worker answered a row of ", asked,
                                            " tokens with ", got, stopped ? ", stopped" : ""));
  }
  if (stopped) return BlockVerdict::kStopToken;
  if (static_cast<int64_t>(output_.size()) + got >= spec_.max_tokens) {
    return BlockVerdict::kMaxTokens;
  }
  return BlockVerdict::kGoesOn;
}

absl::StatusOr<std::vector<int32_t>> ChoiceState::AcceptBlock(absl::Span<const int32_t> tokens) {
  if (phase_ != ChoicePhase::kWaitingForBlock) return Refuse("take a block");
  if (forced_.size() + tokens.size() != static_cast<size_t>(spec_.block_length)) {
    return Refuse(
        absl::StrCat("go on after a block of ", forced_.size() + tokens.size(), " tokens"));
  }
  output_.insert(output_.end(), tokens.begin(), tokens.end());
  std::vector<int32_t> block = std::move(forced_);
  block.insert(block.end(), tokens.begin(), tokens.end());
  CountBlock(block, forced_in_prompt_);
  forced_.clear();
  forced_in_prompt_ = 0;
  ++own_blocks_;
  phase_ = ChoicePhase::kWaitingForContext;
  return block;
}

absl::Status ChoiceState::Finish(absl::Span<const int32_t> tokens) {
  if (phase_ != ChoicePhase::kWaitingForBlock) return Refuse("finish");
  output_.insert(output_.end(), tokens.begin(), tokens.end());
  phase_ = ChoicePhase::kFinished;
  return absl::OkStatus();
}

void ChoiceState::CountBlock(absl::Span<const int32_t> block, int32_t in_prompt) {
  for (size_t i = 0; i < block.size(); ++i) {
    if (static_cast<int32_t>(i) < in_prompt) {
      if (spec_.prompt_counts != nullptr) Count(block[i], /*in_prompt=*/true);
    } else if (spec_.count_output) {
      Count(block[i], /*in_prompt=*/false);
    }
  }
}

void ChoiceState::Count(int32_t token, bool in_prompt) {
  // The first whose id is not below it.
  size_t place = 0;
  for (size_t end = counts_.size() / kCountValues; place < end;) {
    const size_t middle = place + (end - place) / 2;
    if (counts_[middle * kCountValues] < token) {
      place = middle + 1;
    } else {
      end = middle;
    }
  }
  place *= kCountValues;
  if (place == counts_.size() || counts_[place] != token) {
    counts_.insert(counts_.begin() + static_cast<std::ptrdiff_t>(place), {token, 0, 0});
  }
  ++counts_[place + (in_prompt ? 1 : 2)];
}

}  // namespace blockserve
