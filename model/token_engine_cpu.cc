#include "model/token_engine_cpu.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace blockserve {
CpuTokenEngine::CpuTokenEngine(const ModelConfig& config, const EngineOptions& options,
                               const CpuKernels& kernels)
    : config_(config),
      arithmetic_(options.arithmetic),
      pool_(*options.pool),
      kernels_(kernels),
      max_rows_(options.max_rows),
      timer_(options.timer),
      stride_(RowStride(config.token.hidden_size)) {}

absl::StatusOr<std::unique_ptr<TokenEngine>> CpuTokenEngine::Load(const Checkpoint& checkpoint,
                                                                  const EngineOptions& options,
                                                                  const CpuKernels& kernels) {
  std::unique_ptr<CpuTokenEngine> engine(new CpuTokenEngine(checkpoint.config(), options, kernels));
  absl::Status status = engine->LoadWeights(checkpoint);
  if (!status.ok()) return status;
  return engine;
}

absl::Status CpuTokenEngine::LoadWeights(const Checkpoint& checkpoint) {
  ThreadPool::Turn turn(pool_);
  LoadProgress progress("the token decoder", StoredBytes(checkpoint, CheckpointPart::kToken),
                        std::chrono::steady_clock::now());
  const LoadContext context{checkpoint, arithmetic_, pool_, &progress};
  const int64_t width = config_.token.hidden_size;
  const std::string prefix = head_only() ? "" : "token_decoder.";

  absl::StatusOr<PackedMatrix> head =
      LoadMatrix(context, prefix + "embed_out", config_.vocab_size, width, false);
  if (!head.ok()) return head.status();
  head_weights_ = *std::move(head);

  if (!head_only()) {
    absl::StatusOr<PackedMatrix> expansion =
        LoadMatrix(context, prefix + "expansion_layer", config_.expansion_ratio * width,
                   config_.block.hidden_size, true);
    if (!expansion.ok()) return expansion.status();
    expansion_ = *std::move(expansion);
    absl::StatusOr<EmbeddingTable> table = EmbeddingTable::Load(
        context, prefix + "gpt_neox.embed_in.weight", config_.vocab_size, width);
    if (!table.ok()) return table.status();
    table_ = *std::move(table);
    absl::StatusOr<DecoderStack> stack =
        DecoderStack::Load(context, prefix + "gpt_neox.", config_.token, kernels_, max_rows_);
    if (!stack.ok()) return stack.status();
    stack_ = *std::move(stack);
    absl::StatusOr<KvStore> kv =
        KvStore::Allocate(config_.token, arithmetic_, max_rows_, lead() + config_.block_length - 1);
    if (!kv.ok()) return kv.status();
    kv_ = *std::move(kv);
    contexts_ = AlignedBuffer(max_rows_ * RowStride(config_.block.hidden_size) * sizeof(float));
    expanded_ = AlignedBuffer(max_rows_ * RowStride(expansion_.n()) * sizeof(float));
  }

  quantized_ = QuantizedRows(arithmetic_, max_rows_,
                             std::max(config_.block.hidden_size, config_.token.hidden_size));
  x_ = AlignedBuffer(max_rows_ * stride_ * sizeof(float));
  if (x_.data() == nullptr || !quantized_.has_memory() ||
      (!head_only() && (contexts_.data() == nullptr || expanded_.data() == nullptr))) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for activations of ", max_rows_, " rows"));
  }
  absl::Status status = head_.Allocate(kernels_, head_weights_, max_rows_, pool_.num_threads());
  if (!status.ok()) return status;
  logits_wanted_.reserve(OutputHead::kMaxRows);
  samplers_.reserve(pool_.num_threads());
  for (int i = 0; i < pool_.num_threads(); ++i) {
    samplers_.emplace_back(kernels_, config_.vocab_size);
    if (!samplers_.back().has_memory()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory to sample from ", config_.vocab_size, " logits"));
    }
  }
  live_.resize(max_rows_);
  for (LiveRow& live : live_) live.tokens.reserve(config_.block_length);
  slot_pages_.resize(max_rows_);
  for (int32_t i = 0; i < max_rows_; ++i) slot_pages_[i] = i;
  inputs_.reserve(max_rows_ * (lead() + config_.block_length));
  wanted_.reserve(max_rows_);
  wanted_indices_.reserve(max_rows_);
  sequence_rows_.reserve(max_rows_);
  runs_.reserve(max_rows_ + 1);
  return absl::OkStatus();
}

void CpuTokenEngine::Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) {
  ThreadPool::Turn turn(pool_);
  for (size_t begin = 0; begin < rows.size(); begin += max_rows_) {
    const size_t count = std::min<size_t>(max_rows_, rows.size() - begin);
    DecodeGroup(rows.subspan(begin, count), results.subspan(begin, count));
  }
}

void CpuTokenEngine::DecodeGroup(absl::Span<const TokenRow> rows,
                                 absl::Span<TokenRowResult> results) {
  if (timer_ != nullptr) timer_->Begin(StepTimer::kExpansion);
  num_live_ = static_cast<int32_t>(rows.size());
  for (int32_t i = 0; i < num_live_; ++i) {
    LiveRow& live = live_[i];
    live.row = &rows[i];
    live.result = &results[i];
    // Cleared rather than made anew: a caller who keeps results spares their memory.
    live.result->status = absl::OkStatus();
    live.result->tokens.clear();
    live.result->stopped = false;
    live.result->logprobs.clear();
    live.result->top.clear();
    live.result->tokens.reserve(rows[i].limit - rows[i].forced.size());
    live.result->logprobs.reserve(rows[i].limit);
    live.tokens.assign(rows[i].forced.begin(), rows[i].forced.end());
    live.done = false;
  }
  if (!head_only()) Expand();

  if (timer_ != nullptr) timer_->SetPart(StepTimer::kFirstStep);
  for (int32_t i = 0; i < num_live_; ++i) AddFirstInputs(i);
  RunInputs();
  if (timer_ != nullptr) timer_->SetPart(StepTimer::kLaterSteps);
  // One position a step; rows that are done drop out.
  while (true) {
    for (int32_t i = 0; i < num_live_; ++i) {
      const LiveRow& live = live_[i];
      if (live.done) continue;
      const int32_t next = static_cast<int32_t>(live.tokens.size());
      inputs_.push_back({i, lead() - 1 + next, next, true});
    }
    if (inputs_.empty()) break;
    RunInputs();
  }
}

void CpuTokenEngine::Expand() {
  const int64_t width = config_.block.hidden_size;
  const int64_t stride = RowStride(width);
  for (int32_t i = 0; i < num_live_; ++i) {
    std::memcpy(contexts_.as<float>() + i * stride, live_[i].row->context.data(),
                width * sizeof(float));
  }
  MatmulArgs args;
  args.x = contexts_.as<float>();
  args.x_stride = stride;
  args.rows = num_live_;
  args.weights = &expansion_;
  args.y = expanded_.as<float>();
  args.y_stride = RowStride(expansion_.n());
  RunMatmul(kernels_, pool_, quantized_, args);
  Lap(timer_, StepTimer::kMatmul);
}

void CpuTokenEngine::AddFirstInputs(int32_t index) {
  LiveRow& live = live_[index];
  const TokenRow& row = *live.row;
  const int32_t forced = static_cast<int32_t>(row.forced.size());
  const bool generates = row.limit > forced;
  const bool wants_forced = row.score_forced || !row.logits.empty();
  if (!generates) live.done = true;
  if (!generates && !wants_forced) return;
  // Token j's logits come from input lead - 1 + j.
  const int32_t inputs = lead() + forced - (generates ? 0 : 1);
  for (int32_t i = 0; i < inputs; ++i) {
    const int32_t token = i - (lead() - 1);
    inputs_.push_back({index, i, token, token >= 0 && (wants_forced || token == forced)});
  }
}

void CpuTokenEngine::FillInput(const Input& input, float* x) const {
  const LiveRow& live = live_[input.live];
  const int64_t width = config_.token.hidden_size;
  // A row of non-finite values leaves its mark in the padding: clear it for the next one.
  std::fill(x + width, x + stride_, 0.0f);
  if (head_only()) {
    std::memcpy(x, live.row->context.data(), width * sizeof(float));
    return;
  }
  const float* vectors = expanded_.as<float>() + input.live * RowStride(expansion_.n());
  if (config_.strategy == DecodingStrategy::kSummation) {
    std::memcpy(x, vectors + input.index * width, width * sizeof(float));
    table_.AddRow(input.index == 0 ? config_.bos_token_id : live.tokens[input.index - 1], x);
  } else if (input.index < config_.expansion_ratio) {
    std::memcpy(x, vectors + input.index * width, width * sizeof(float));
  } else {
    table_.CopyRow(live.tokens[input.index - config_.expansion_ratio], x);
  }
}

void CpuTokenEngine::RunInputs() {
  // A slice may end inside a row: its keys and values wait in the row's slot.
  for (size_t begin = 0; begin < inputs_.size(); begin += max_rows_) {
    RunSlice(absl::MakeConstSpan(inputs_).subspan(begin, max_rows_));
  }
  inputs_.clear();
}

void CpuTokenEngine::RunSlice(absl::Span<const Input> inputs) {
  float* x = x_.as<float>();
  sequence_rows_.clear();
  wanted_.clear();
  wanted_indices_.clear();
  for (size_t i = 0; i < inputs.size(); ++i) {
    FillInput(inputs[i], x + i * stride_);
    sequence_rows_.push_back({&slot_pages_[inputs[i].live], inputs[i].index});
    if (inputs[i].wants_logits) {
      wanted_.push_back(inputs[i]);
      wanted_indices_.push_back(static_cast<int32_t>(i));
    }
  }
  Lap(timer_, StepTimer::kRows);
  if (!head_only()) stack_.Run(pool_, sequence_rows_, wanted_indices_, kv_, x, timer_);

  const int64_t count = static_cast<int64_t>(wanted_.size());
  if (!head_only()) stack_.FinalNorm(pool_, count, x, x);
  Lap(timer_, StepTimer::kRows);
  for (int64_t begin = 0; begin < count; begin += OutputHead::kMaxRows) {
    RunHead(begin, std::min(count, begin + OutputHead::kMaxRows));
  }
}

void CpuTokenEngine::RunHead(int64_t begin, int64_t end) {
  logits_wanted_.clear();
  for (int64_t i = begin; i < end; ++i) logits_wanted_.push_back(WantedOf(wanted_[i]));
  head_.Run(pool_, quantized_, x_.as<float>() + begin * stride_, stride_, logits_wanted_);
  Lap(timer_, StepTimer::kHead);

  // One task a row of the group: its scored tokens are reported in order.
  runs_.clear();
  for (int64_t i = begin; i < end; ++i) {
    if (i == begin || wanted_[i].live != wanted_[i - 1].live) {
      runs_.push_back(static_cast<int32_t>(i));
    }
  }
  runs_.push_back(static_cast<int32_t>(end));
  pool_.ParallelFor(static_cast<int64_t>(runs_.size()) - 1, [&](int64_t run, int thread) {
    for (int32_t i = runs_[run]; i < runs_[run + 1]; ++i) {
      TakeLogits(wanted_[i], i - begin, samplers_[thread]);
    }
  });
  Lap(timer_, StepTimer::kSampling);
}

LogitsWanted CpuTokenEngine::WantedOf(const Input& input) const {
  const TokenRow& row = *live_[input.live].row;
  const int32_t forced = static_cast<int32_t>(row.forced.size());
  LogitsWanted wanted;
  if (input.token_index < forced) {
    wanted.id = row.forced[input.token_index];
    if (row.score_forced) wanted.best = {row.top_logprobs, config_.vocab_size};
  } else {
    wanted.best = samplers_.front().NeededToDraw(row, row.position + (input.token_index - forced));
    wanted.all =
        wanted.best.count == 0 || (row.top_logprobs > 0 && wanted.best.limit < config_.vocab_size);
    wanted.best.count = std::max(wanted.best.count, row.top_logprobs);
  }
  wanted.all = wanted.all || !row.logits.empty();
  if (wanted.all) wanted.best.count = 0;
  return wanted;
}

void CpuTokenEngine::TakeLogits(const Input& input, int64_t head_row, Sampler& sampler) {
  LiveRow& live = live_[input.live];
  const TokenRow& row = *live.row;
  TokenRowResult& result = *live.result;
  if (!result.status.ok()) return;
  const LogitsWanted& wanted = logits_wanted_[head_row];
  const float* logits = wanted.all ? head_.All(head_row) : nullptr;
  if (!row.logits.empty()) {
    std::memcpy(row.logits.data() + int64_t{input.token_index} * config_.vocab_size, logits,
                config_.vocab_size * sizeof(float));
  }
  const LogitStatistics statistics = head_.Statistics(head_row);
  if (!statistics.finite) {
    result.status = absl::InternalError(
        absl::StrCat("logits of token ", input.token_index, " of the block are not finite"));
    live.done = true;
    return;
  }
  const absl::Span<const TokenLogit> best =
      wanted.best.count > 0 ? head_.Best(head_row) : absl::Span<const TokenLogit>();
  const auto report = [&](float logit) {
    result.logprobs.push_back(RawLogprob(statistics, logit));
    if (row.top_logprobs == 0) return;
    if (logits != nullptr) {
      result.top.push_back(sampler.Top(logits, statistics, row.top_logprobs));
      return;
    }
    std::vector<TokenLogprob>& top = result.top.emplace_back();
    for (const TokenLogit& id : best.first(std::min<size_t>(best.size(), row.top_logprobs))) {
      top.push_back({id.token, RawLogprob(statistics, id.value)});
    }
  };

  const int32_t forced = static_cast<int32_t>(row.forced.size());
  if (input.token_index < forced) {
    if (row.score_forced) report(head_.LogitOfId(head_row));
    return;
  }
  const int64_t position = row.position + (input.token_index - forced);
  const absl::StatusOr<int32_t> token =
      logits != nullptr ? sampler.Draw(logits, statistics, row, live.tokens, position)
                        : sampler.DrawFromBest(best, row, position);
  if (!token.ok()) {
    result.status = token.status();
    live.done = true;
    return;
  }
  live.tokens.push_back(*token);
  result.tokens.push_back(*token);
  report(logits != nullptr ? logits[*token]
                           : std::find_if(best.begin(), best.end(), [&](const TokenLogit& id) {
                               return id.token == *token;
                             })->value);
  result.stopped =
      std::find(row.stop_ids.begin(), row.stop_ids.end(), *token) != row.stop_ids.end();
  live.done = result.stopped || static_cast<int32_t>(live.tokens.size()) >= row.limit;
}

}  // namespace blockserve
