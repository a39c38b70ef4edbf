#include "gateway/core.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gateway/call_tiers.h"
#include "gateway/generation_run.h"
#include "gateway/retry.h"
#include "gateway/retry_after.h"
#include "gateway/scoring_run.h"
#include "model/fingerprint.h"

namespace blockserve {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(20);

std::string HashOf(const Binding& binding) {
  return HashOfTiers(binding.model_id, binding.block.numeric_id, binding.token.numeric_id);
}

// What a request is told for which workers are there, but none of those that it needs.
absl::Status NobodyFor(const Run& run) {
  if (const ResumeState* resume = run.resume()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "resume: no workers of model ", resume->model_id, " with the numeric ids ",
        resume->block_numeric_id, " (block) and ", resume->token_numeric_id, " (token) are here"));
  }
  const CallTiers* tiers = run.call_tiers();
  if (tiers != nullptr && !tiers->hash.empty()) {
    if (tiers->wrote_stream) {
      return absl::FailedPreconditionError(
          "Last-Event-ID: the model or the arithmetic that wrote this stream is not served here");
    }
    return absl::UnavailableError("the workers that served the first part of this call are gone");
  }
  if (!run.model_id().empty()) {
    return absl::NotFoundError(
        absl::StrCat("model: \"", run.model_id(), "\" is not served here any more"));
  }
  return absl::UnavailableError(
      "no block service and token worker are there that serve the same model");
}

}  // namespace

Core::Core(Loop& loop, const ModelConfig& config, const Tokenizer* tokenizer,
           ExpectedModel expected, const CoreOptions& options,
           BlockTier::LinkFactory make_block_link, TokenTier::LinkFactory make_token_link)
    : loop_(loop),
      expected_(expected),
      options_(options),
      block_tier_(loop, options.tier, expected, std::move(make_block_link)),
      token_tier_(loop, options.tier, expected, std::move(make_token_link)),
      row_audit_(token_tier_, options.tier.audit),
      later_(loop) {
  environment_.config = &config;
  environment_.tokenizer = tokenizer;
  if (tokenizer != nullptr && tokenizer->vocab_size() < config.vocab_size) {
    environment_.vocab_limit = tokenizer->vocab_size();
  }
  environment_.later = &later_;
  environment_.block_tier = &block_tier_;
  environment_.token_rows = &row_audit_;
  environment_.scoring_rows = &scoring_rows_;
  const auto on_change = [this] {
    Publish();
    BoundScoringRows();
    BindWaiting();
  };
  block_tier_.set_on_change(on_change);
  token_tier_.set_on_change(on_change);
  ScheduleTick();
}

Core::~Core() {
  *alive_ = false;
  EndAll(absl::UnavailableError("the gateway has stopped"));
}

GenerationId Core::Accept(MakeRun make) {
  const GenerationId id = next_id_.fetch_add(1);
  live_requests_.fetch_add(1);
  const auto on_over = [this, id] {
    // Not at once: the run is still on the stack.
    loop_.Post([this, alive = alive_, id] {
      if (!*alive) return;
      const auto found = runs_.find(id);
      if (found == runs_.end()) return;
      const std::unique_ptr<Run> run = std::move(found->second);
      runs_.erase(found);
      deadlines_.erase({run->deadline(), id});
      unbound_.erase({run->priority(), id});
      live_choices_ -= run->choices();
      live_requests_.fetch_sub(1);
    });
  };
  loop_.Post([this, alive = alive_, id, make = std::move(make), on_over] {
    if (*alive) Begin(id, make(id, on_over));
  });
  return id;
}

GenerationId Core::Generate(GenerationRequest request, std::shared_ptr<GenerationSink> sink) {
  auto shared = std::make_shared<GenerationRequest>(std::move(request));
  return Accept(
      [this, shared, sink = std::move(sink)](GenerationId id, std::function<void()> on_over) {
        return std::make_unique<GenerationRun>(environment_, id, std::move(*shared), sink,
                                               std::move(on_over));
      });
}

GenerationId Core::Score(ScoringRequest request, std::shared_ptr<ScoringSink> sink) {
  auto shared = std::make_shared<ScoringRequest>(std::move(request));
  return Accept(
      [this, shared, sink = std::move(sink)](GenerationId id, std::function<void()> on_over) {
        return std::make_unique<ScoringRun>(environment_, id, std::move(*shared), sink,
                                            std::move(on_over));
      });
}

void Core::Begin(GenerationId id, std::unique_ptr<Run> owned) {
  Run& run = *owned;
  runs_[id] = std::move(owned);
  deadlines_.insert({run.deadline(), id});
  live_choices_ += run.choices();
  if (!closed_.ok()) return run.End(closed_);
  if (run.deadline() <= loop_.Now()) {
    return run.End(absl::DeadlineExceededError("the deadline passed before the request began"));
  }
  if (live_choices_ > options_.max_live_choices) {
    return run.End(NoRoomYet(
        absl::StrCat(live_choices_ - run.choices(), " choices are being generated already")));
  }
  if (TryBind(run)) return;
  if (static_cast<int64_t>(unbound_.size()) >= options_.tier.max_queued) {
    return run.End(NoRoomYet(
        absl::StrCat(unbound_.size(), " requests wait for a tier already; try again later")));
  }
  unbound_.insert({run.priority(), id});
}

std::optional<Binding> Core::FindBinding(const Run& run) const {
  const TierPresence& blocks = block_tier_.membership().presence();
  const TierPresence& tokens = token_tier_.membership().presence();
  const auto bind = [&](const TierGroup& block, const TierGroup& token) {
    return Binding{
        block, token,
        ModelId(expected_.config_hash, expected_.tokenizer_hash, block.part_hash, token.part_hash)};
  };
  const ResumeState* resume = run.resume();
  const CallTiers* tiers = run.call_tiers();
  const bool begun = tiers != nullptr && !tiers->hash.empty();
  const auto may_serve = [&](const TierGroup& block, const TierGroup& token) {
    if (resume == nullptr && !begun && run.model_id().empty()) return true;
    const Binding binding = bind(block, token);
    if (resume != nullptr) {
      return binding.model_id == resume->model_id && block.numeric_id == resume->block_numeric_id &&
             token.numeric_id == resume->token_numeric_id;
    }
    return begun ? HashOf(binding) == tiers->hash : binding.model_id == run.model_id();
  };
  const std::optional<TierPair> pair = BestPair(blocks, tokens, may_serve);
  if (!pair.has_value()) return std::nullopt;
  return bind(pair->block, pair->token);
}

bool Core::TryBind(Run& run) {
  if (std::optional<Binding> binding = FindBinding(run)) {
    CallTiers* const tiers = run.call_tiers();
    if (tiers != nullptr && tiers->hash.empty()) tiers->hash = HashOf(*binding);
    if (binding_ == nullptr || *binding_ != *binding) {
      binding_ = std::make_shared<const Binding>(*std::move(binding));
    }
    run.Start(binding_);
    return true;
  }
  const absl::Time now = loop_.Now();
  const absl::Duration tier_wait = options_.tier.tier_wait;
  bool both = true;
  absl::Time last_loss = absl::InfinitePast();
  for (const TierMembership* tier : {&block_tier_.membership(), &token_tier_.membership()}) {
    const absl::Status verdict = tier->Verdict(tier_wait, run.deadline(), now);
    if (!verdict.ok()) {
      run.End(verdict);
      return true;
    }
    both = both && tier->presence().workers() > 0;
    last_loss = std::max(last_loss, tier->presence().LastLoss());
  }
  // Both tiers are there, but not those that this stream needs: they may be the ones that went just
  // now, or, just after the start, not have been found yet.
  if (both && now >= GiveUpTime(last_loss, tier_wait, run.deadline())) {
    run.End(NobodyFor(run));
    return true;
  }
  return false;
}

void Core::BindWaiting() {
  for (auto next = unbound_.begin(); next != unbound_.end();) {
    const auto found = runs_.find(next->second);
    if (found == runs_.end() || found->second->over() || TryBind(*found->second)) {
      next = unbound_.erase(next);
    } else {
      ++next;
    }
  }
}

// Texts by themselves keep each worker busy with one batch while the next one waits. Beside
// generations they have one: these then share the workers with about as much as they would with
// other generations.
void Core::BoundScoringRows() {
  const int64_t best_rows = token_tier_.Capacity(/*most_waiting_batches=*/0).best_rows;
  if (best_rows == 0) return;  // nobody is there: as before
  const bool alone = scoring_rows_.sources() == static_cast<int64_t>(runs_.size());
  scoring_rows_.SetMost(alone ? 2 * best_rows : best_rows);
}

void Core::Cancel(GenerationId id, absl::Status /*why*/) {
  loop_.Post([this, alive = alive_, id] {
    if (!*alive) return;
    const auto found = runs_.find(id);
    if (found != runs_.end()) found->second->Cancel();
  });
}

void Core::Resume(GenerationId id) {
  loop_.Post([this, alive = alive_, id] {
    if (!*alive) return;
    const auto found = runs_.find(id);
    if (found != runs_.end() && !found->second->over()) found->second->Resume();
  });
}

void Core::FillModelStatus(v1::GetModelResponse& response) const {
  MutexLock lock(&mutex_);
  response.set_model_id(status_.model_id);
  response.set_block_numeric_id(status_.block_numeric_id);
  response.set_token_numeric_id(status_.token_numeric_id);
  response.set_block_services(status_.block_services);
  response.set_token_workers(status_.token_workers);
  // What the model could hold, and the KV does not.
  const int64_t most = status_.capacity_tokens;
  if (most > 0 && (response.max_tokens() == 0 || most < response.max_tokens())) {
    response.set_max_tokens(most);
  }
}

void Core::Publish() {
  const TierPresence& blocks = block_tier_.membership().presence();
  const TierPresence& tokens = token_tier_.membership().presence();
  const std::optional<TierPair> pair = BestPair(blocks, tokens);
  const std::optional<TierGroup> block = pair.has_value() ? pair->block : blocks.Largest();
  const std::optional<TierGroup> token = pair.has_value() ? pair->token : tokens.Largest();
  Status status;
  status.block_services = blocks.workers();
  status.token_workers = tokens.workers();
  if (block.has_value()) {
    status.block_numeric_id = block->numeric_id;
    const int64_t capacity = block_tier_.CapacityTokens(*block);
    if (capacity < std::numeric_limits<int64_t>::max()) status.capacity_tokens = capacity;
  }
  if (token.has_value()) status.token_numeric_id = token->numeric_id;
  if (pair.has_value()) {
    status.model_id = ModelId(expected_.config_hash, expected_.tokenizer_hash, block->part_hash,
                              token->part_hash);
  }
  MutexLock lock(&mutex_);
  // A model's name does not vanish with its workers.
  if (status.model_id.empty()) status.model_id = status_.model_id;
  status_ = std::move(status);
}

void Core::EndAll(const absl::Status& status) {
  closed_ = status;
  for (const auto& [id, run] : runs_) run->End(status);
  row_audit_.CancelAll();
  block_tier_.Disconnect();
  token_tier_.Disconnect();
}

void Core::ScheduleTick() {
  loop_.PostAfter(kTick, [this, alive = alive_] {
    if (!*alive) return;
    Tick();
    ScheduleTick();
  });
}

void Core::Tick() {
  const absl::Time now = loop_.Now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const GenerationId id = deadlines_.begin()->second;
    deadlines_.erase(deadlines_.begin());
    const auto found = runs_.find(id);
    if (found != runs_.end()) {
      found->second->End(absl::DeadlineExceededError("the request's deadline has passed"));
    }
  }
  BoundScoringRows();
  BindWaiting();
  block_tier_.Tick();
  token_tier_.Tick();
}

}  // namespace blockserve
