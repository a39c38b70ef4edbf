#include "model/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/status/status.h"
#include "kernels/exact_math.h"
#include "kernels/philox.h"

namespace blockserve {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Probabilities are counted in whole units, so that sums do not depend on their order: the best id
// has 2^40.
constexpr float kMassUnits = 0x1p40f;

uint64_t MassOf(float weight) {
  return static_cast<uint64_t>(static_cast<int64_t>(weight * kMassUnits));
}

// Where in [0, total) the random bits fall.
uint64_t TargetOf(uint64_t bits, uint64_t total) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * total >> 64);
}

// Sets smaller than this are sorted rather than searched further.
constexpr size_t kSmallSet = 64;

// The mass that top-p keeps of `total`.
uint64_t NeededMass(const SamplingParameters& sampling, uint64_t total) {
  const double wanted = std::ceil(static_cast<double>(sampling.top_p) * static_cast<double>(total));
  return std::min(std::max<uint64_t>(static_cast<uint64_t>(wanted), 1), total);
}

bool AdjustsLogits(const TokenRow& row, int64_t position) {
  return (position < row.min_tokens_position && !row.stop_ids.empty()) || !row.logit_bias.empty() ||
         HasPenalties(*row.sampling);
}

}  // namespace

float RawLogprob(const LogitStatistics& statistics, float logit) {
  return static_cast<float>((static_cast<double>(logit) - static_cast<double>(statistics.max)) -
                            ExactLog(statistics.sum_exp));
}

Sampler::Sampler(const CpuKernels& kernels, int32_t vocab_size)
    : kernels_(kernels),
      vocab_size_(vocab_size),
      adjusted_(PadToPanel(vocab_size) * sizeof(float)),
      weights_(PadToPanel(vocab_size) * sizeof(float)) {}

void Sampler::Penalize(const SamplingParameters& sampling, const TokenCount& count) {
  float& logit = adjusted_.as<float>()[count.token];
  if ((count.in_prompt > 0 || count.in_output > 0) && sampling.repetition_penalty != 1.0f) {
    logit = logit > 0 ? logit / sampling.repetition_penalty : logit * sampling.repetition_penalty;
  }
  if (count.in_output > 0) {
    logit = logit - sampling.presence_penalty;
    logit = logit - sampling.frequency_penalty * static_cast<float>(count.in_output);
  }
}

void Sampler::Adjust(const float* logits, const TokenRow& row,
                     absl::Span<const int32_t> block_tokens, bool ban_stop_ids, int64_t n) {
  float* adjusted = adjusted_.as<float>();
  std::memcpy(adjusted, logits, n * sizeof(float));
  for (const LogitBias& bias : row.logit_bias) {
    if (bias.token < n) adjusted[bias.token] += bias.bias;
  }
  if (HasPenalties(*row.sampling)) {
    const auto in_block = [&](int32_t token, size_t begin, size_t end) {
      return static_cast<int32_t>(
          std::count(block_tokens.begin() + begin, block_tokens.begin() + end, token));
    };
    const size_t prompt_end = row.forced_in_prompt;
    for (const TokenCount& count : row.counts) {
      if (count.token >= n) continue;
      Penalize(*row.sampling,
               {count.token, count.in_prompt + in_block(count.token, 0, prompt_end),
                count.in_output + in_block(count.token, prompt_end, block_tokens.size())});
    }
    // Tokens of this block that the row's counts do not have, each once.
    for (size_t i = 0; i < block_tokens.size(); ++i) {
      const int32_t token = block_tokens[i];
      if (token >= n || in_block(token, 0, i) > 0) continue;
      const bool counted = std::any_of(row.counts.begin(), row.counts.end(),
                                       [&](const TokenCount& c) { return c.token == token; });
      if (counted) continue;
      Penalize(*row.sampling, {token, in_block(token, 0, prompt_end),
                               in_block(token, prompt_end, block_tokens.size())});
    }
  }
  if (ban_stop_ids) {
    for (const int32_t token : row.stop_ids) {
      if (token < n) adjusted[token] = -kInfinity;
    }
  }
  for (int64_t i = n; i < PadToPanel(n); ++i) adjusted[i] = -kInfinity;
}

uint64_t Sampler::TotalMass(int64_t n, float min_weight) const {
  const float* weights = weights_.as<float>();
  uint64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += weights[i] >= min_weight ? MassOf(weights[i]) : 0;
  return total;
}

void Sampler::CutToMass(uint64_t needed) {
  size_t begin = 0;
  size_t end = candidates_.size();
  while (end - begin > kSmallSet) {
    const size_t middle = begin + (end - begin) / 2;
    std::nth_element(candidates_.begin() + begin, candidates_.begin() + middle,
                     candidates_.begin() + end, IsBetter);
    uint64_t mass = 0;
    for (size_t i = begin; i < middle; ++i) mass += candidates_[i].mass;
    if (mass >= needed) {
      end = middle;
    } else {
      needed -= mass;
      begin = middle;
    }
  }
  std::sort(candidates_.begin() + begin, candidates_.begin() + end, IsBetter);
  size_t cut = begin;
  uint64_t mass = 0;
  while (cut < end && mass < needed) mass += candidates_[cut++].mass;
  candidates_.resize(std::max<size_t>(cut, 1));
}

void Sampler::Select(const float* values, int64_t n, float max,
                     const SamplingParameters& sampling) {
  const float* weights = weights_.as<float>();
  const bool limited = sampling.top_k > 0 && sampling.top_k < n;
  const uint64_t total = limited ? 0 : TotalMass(n, 0.0f);
  // What is kept is the beginning of an order by value: mostly a look at values near the largest is
  // enough. Each turn takes in more, the last one everything.
  for (const float reach : {4.0f, 8.0f, 16.0f, kInfinity}) {
    const float lowest = reach == kInfinity ? -kInfinity : max - reach * sampling.temperature;
    candidates_.clear();
    uint64_t mass = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (values[i] < lowest || values[i] == -kInfinity) continue;
      candidates_.push_back({{values[i], static_cast<int32_t>(i)}, weights[i], MassOf(weights[i])});
      mass += candidates_.back().mass;
    }
    const bool enough = limited ? candidates_.size() >= static_cast<size_t>(sampling.top_k)
                                : mass >= NeededMass(sampling, total);
    if (enough || reach == kInfinity) break;
  }
  if (limited && candidates_.size() > static_cast<size_t>(sampling.top_k)) {
    std::nth_element(candidates_.begin(), candidates_.begin() + sampling.top_k, candidates_.end(),
                     IsBetter);
    candidates_.resize(sampling.top_k);
  }
  if (sampling.top_p < 1.0f) {
    uint64_t of = total;
    if (limited) {
      for (const Candidate& candidate : candidates_) of += candidate.mass;
    }
    CutToMass(NeededMass(sampling, of));
  }
}

absl::StatusOr<int32_t> Sampler::Draw(const float* logits, const LogitStatistics& statistics,
                                      const TokenRow& row, absl::Span<const int32_t> block_tokens,
                                      int64_t position) {
  const SamplingParameters& sampling = *row.sampling;
  const int64_t n = NumIds(row);
  const bool adjust = AdjustsLogits(row, position);
  if (adjust) {
    Adjust(logits, row, block_tokens, position < row.min_tokens_position, n);
  }
  const float* values = adjust ? adjusted_.as<float>() : logits;
  const float max = adjust || n < vocab_size_ ? kernels_.max_value(values, n) : statistics.max;
  if (!std::isfinite(max)) {
    return absl::InvalidArgumentError(
        "logit_bias, penalties and minimum of tokens leave no id to draw");
  }
  if (sampling.temperature == 0.0f) {
    return static_cast<int32_t>(kernels_.first_index_of(values, n, max));
  }

  kernels_.softmax_weights(values, n, max, sampling.temperature, weights_.as<float>());
  const float* weights = weights_.as<float>();
  const uint64_t bits = DrawBits(row.seed, row.choice, static_cast<uint64_t>(position));
  if ((sampling.top_k > 0 && sampling.top_k < n) || sampling.top_p < 1.0f) {
    Select(values, n, max, sampling);
    return DrawFromCandidates(sampling, bits, n);
  }
  const uint64_t target = TargetOf(bits, TotalMass(n, sampling.min_p));
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (weights[i] < sampling.min_p) continue;
    sum += MassOf(weights[i]);
    if (sum > target) return static_cast<int32_t>(i);
  }
  return absl::InternalError("the masses of a draw do not add up");
}

absl::StatusOr<int32_t> Sampler::DrawFromCandidates(const SamplingParameters& sampling,
                                                    uint64_t bits, int64_t n) {
  uint64_t total = 0;
  size_t kept = 0;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight < sampling.min_p) continue;
    total += candidate.mass;
    candidates_[kept++] = candidate;
  }
  candidates_.resize(kept);
  const uint64_t target = TargetOf(bits, total);
  uint64_t sum = 0;
  if (candidates_.size() <= kSmallSet * 16) {
    std::sort(candidates_.begin(), candidates_.end(),
              [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
    for (const Candidate& candidate : candidates_) {
      sum += candidate.mass;
      if (sum > target) return candidate.token;
    }
    return absl::InternalError("the masses of a draw do not add up");
  }
  // A large set is marked in an array and walked in the order of ids.
  float* marks = adjusted_.as<float>();
  std::memset(marks, 0, PadToPanel(n) * sizeof(float));
  for (const Candidate& candidate : candidates_) marks[candidate.token] = 1.0f;
  const float* weights = weights_.as<float>();
  for (int64_t i = 0; i < n; ++i) {
    if (marks[i] == 0.0f) continue;
    sum += MassOf(weights[i]);
    if (sum > target) return static_cast<int32_t>(i);
  }
  return absl::InternalError("the masses of a draw do not add up");
}

BestNeeded Sampler::NeededToDraw(const TokenRow& row, int64_t position) const {
  const SamplingParameters& sampling = *row.sampling;
  const int64_t n = NumIds(row);
  BestNeeded needed;
  needed.limit = static_cast<int32_t>(n);
  if (AdjustsLogits(row, position)) return needed;
  if (sampling.temperature == 0.0f) {
    needed.count = 1;
  } else if (sampling.top_k > 0 && sampling.top_k < n && sampling.top_k <= kMaxBest) {
    needed.count = sampling.top_k;
  }
  return needed;
}

absl::StatusOr<int32_t> Sampler::DrawFromBest(absl::Span<const TokenLogit> best,
                                              const TokenRow& row, int64_t position) {
  const SamplingParameters& sampling = *row.sampling;
  if (sampling.temperature == 0.0f) return best.front().token;

  const int64_t count = std::min<int64_t>(sampling.top_k, static_cast<int64_t>(best.size()));
  alignas(64) float values[PadToPanel(kMaxBest)];
  alignas(64) float weights[PadToPanel(kMaxBest)];
  for (int64_t i = 0; i < PadToPanel(count); ++i) values[i] = best[std::min(i, count - 1)].value;
  kernels_.softmax_weights(values, count, best.front().value, sampling.temperature, weights);
  candidates_.clear();
  uint64_t mass = 0;
  for (int64_t i = 0; i < count; ++i) {
    candidates_.push_back({best[i], weights[i], MassOf(weights[i])});
    mass += candidates_.back().mass;
  }
  if (sampling.top_p < 1.0f) CutToMass(NeededMass(sampling, mass));
  return DrawFromCandidates(
      sampling, DrawBits(row.seed, row.choice, static_cast<uint64_t>(position)), NumIds(row));
}

std::vector<TokenLogprob> Sampler::Top(const float* logits, const LogitStatistics& statistics,
                                       int32_t count) {
  const size_t wanted = std::min(count, vocab_size_);
  std::vector<TokenLogprob> best;  // the logit stands in for the log-probability until the end
  best.reserve(wanted + 1);
  if (wanted == 0) return best;
  float worst = -kInfinity;
  for (int32_t i = 0; i < vocab_size_; ++i) {
    // Ids come in ascending order: one that only equals the worst does not displace it.
    if (best.size() == wanted && !(logits[i] > worst)) continue;
    const auto at =
        std::upper_bound(best.begin(), best.end(), logits[i],
                         [](float value, const TokenLogprob& b) { return value > b.logprob; });
    best.insert(at, TokenLogprob{i, logits[i]});
    if (best.size() > wanted) best.pop_back();
    worst = best.back().logprob;
  }
  for (TokenLogprob& entry : best) entry.logprob = RawLogprob(statistics, entry.logprob);
  return best;
}

}  // namespace blockserve
