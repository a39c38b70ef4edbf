#include "model/sampler.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/philox.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;

// Known answers of Random123 (kat_vectors, philox4x32 10).
TEST(Philox, GivesThePublishedKnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  const uint32_t ones = 0xffffffffu;
  EXPECT_THAT(Philox4x32({ones, ones, ones, ones}, {ones, ones}),
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(
      Philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
      ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(Philox, SeedChoiceAndPositionAllCount) {
  std::set<uint64_t> seen;
  for (const uint64_t seed : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
    for (const uint32_t choice : {0u, 1u, 77u}) {
      for (const uint64_t position : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 32}) {
        seen.insert(DrawBits(seed, choice, position));
      }
    }
  }
  EXPECT_EQ(seen.size(), 27u);
}

// One row of logits and what is drawn from it.
class SamplerTest : public testing::Test {
 protected:
  static constexpr int32_t kVocab = 2000;

  SamplerTest()
      : kernels_(GetCpuKernels(SupportedKernelTargets().front())),
        sampler_(kernels_, kVocab),
        logits_(PadToPanel(kVocab)) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0.0f, 2.0f);
    for (int32_t i = 0; i < kVocab; ++i) logits_[i] = normal(random);
    // Ties, also at the top.
    for (int32_t i = 0; i < kVocab; i += 7) logits_[i] = std::round(logits_[i] * 2) / 2;
    row_.sampling = &sampling_;
  }

  int32_t Draw(int64_t position = 3, absl::Span<const int32_t> block_tokens = {}) {
    absl::StatusOr<int32_t> token = TryDraw(position, block_tokens);
    EXPECT_TRUE(token.ok()) << token.status();
    return token.value_or(-1);
  }
  absl::StatusOr<int32_t> TryDraw(int64_t position, absl::Span<const int32_t> block_tokens = {}) {
    const LogitStatistics statistics = StatisticsOf(kernels_, logits_.data(), kVocab);
    const absl::StatusOr<int32_t> token =
        sampler_.Draw(logits_.data(), statistics, row_, block_tokens, position);
    // Where the best ids are enough, they give the same.
    const BestNeeded needed = sampler_.NeededToDraw(row_, position);
    if (needed.count > 0) {
      std::vector<TokenLogit> best;
      for (int32_t i = 0; i < needed.limit; ++i) best.push_back({logits_[i], i});
      std::sort(best.begin(), best.end(), IsBetter);
      best.resize(std::min<size_t>(best.size(), needed.count));
      const absl::StatusOr<int32_t> from_best = sampler_.DrawFromBest(best, row_, position);
      EXPECT_EQ(from_best.value_or(-1), token.value_or(-2));
      ++drawn_from_best_;
    }
    return token;
  }

  // docs/sampling.md, word by word: sorts everything. The exponentials are the kernels'.
  int32_t Slow(int64_t position, absl::Span<const int32_t> block_tokens = {}) {
    const int32_t n = row_.vocab_limit > 0 ? row_.vocab_limit : kVocab;
    std::vector<float> l(logits_.begin(), logits_.begin() + n);
    for (const LogitBias& bias : row_.logit_bias) {
      if (bias.token < n) l[bias.token] = l[bias.token] + bias.bias;
    }
    std::map<int32_t, std::array<int32_t, 2>> counts;
    for (const TokenCount& count : row_.counts)
      counts[count.token] = {count.in_prompt, count.in_output};
    for (size_t i = 0; i < block_tokens.size(); ++i) {
      ++counts[block_tokens[i]][static_cast<int32_t>(i) < row_.forced_in_prompt ? 0 : 1];
    }
    if (HasPenalties(sampling_)) {
      for (const auto& [token, count] : counts) {
        if (token >= n) continue;
        float& x = l[token];
        if (count[0] + count[1] > 0 && sampling_.repetition_penalty != 1.0f) {
          x = x > 0 ? x / sampling_.repetition_penalty : x * sampling_.repetition_penalty;
        }
        if (count[1] > 0) {
          x = x - sampling_.presence_penalty;
          const float product = sampling_.frequency_penalty * static_cast<float>(count[1]);
          x = x - product;
        }
      }
    }
    if (position < row_.min_tokens_position) {
      for (const int32_t token : row_.stop_ids) {
        if (token < n) l[token] = -std::numeric_limits<float>::infinity();
      }
    }
    std::vector<int32_t> order(n);
    for (int32_t i = 0; i < n; ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return l[a] > l[b]; });
    if (sampling_.temperature == 0) return order[0];

    const float m = l[order[0]];
    std::vector<float> w(PadToPanel(n));
    std::vector<float> padded(PadToPanel(n));
    std::copy(l.begin(), l.end(), padded.begin());
    kernels_.softmax_weights(padded.data(), n, m, sampling_.temperature, w.data());
    const auto mass = [&](int32_t i) { return static_cast<uint64_t>(w[i] * 0x1p40f); };
    if (sampling_.top_k > 0 && sampling_.top_k < n) order.resize(sampling_.top_k);
    if (sampling_.top_p < 1) {
      uint64_t total = 0;
      for (const int32_t i : order) total += mass(i);
      const uint64_t needed = std::min(
          total, std::max<uint64_t>(
                     1, static_cast<uint64_t>(std::ceil(static_cast<double>(sampling_.top_p) *
                                                        static_cast<double>(total)))));
      uint64_t sum = 0;
      size_t keep = 0;
      while (sum < needed) sum += mass(order[keep++]);
      order.resize(keep);
    }
    std::vector<int32_t> kept;
    for (const int32_t i : order) {
      if (w[i] >= sampling_.min_p) kept.push_back(i);
    }
    std::sort(kept.begin(), kept.end());
    uint64_t total = 0;
    for (const int32_t i : kept) total += mass(i);
    const uint64_t target = static_cast<uint64_t>(
        static_cast<unsigned __int128>(DrawBits(row_.seed, row_.choice, position)) * total >> 64);
    uint64_t sum = 0;
    for (const int32_t i : kept) {
      sum += mass(i);
      if (sum > target) return i;
    }
    return -1;
  }

  const CpuKernels& kernels_;
  Sampler sampler_;
  std::vector<float> logits_;
  SamplingParameters sampling_;
  TokenRow row_;
  int drawn_from_best_ = 0;
};

TEST_F(SamplerTest, GreedyTakesTheLowestOfEquals) {
  sampling_.temperature = 0;
  logits_[700] = logits_[701] = logits_[1999] = 50.0f;
  EXPECT_EQ(Draw(), 700);
  row_.vocab_limit = 700;
  EXPECT_LT(Draw(), 700);
}

TEST_F(SamplerTest, DrawsWhatTheSlowDefinitionDraws) {
  std::vector<TokenCount> counts = {{3, 2, 0}, {10, 0, 3}, {14, 1, 1}, {1900, 5, 0}};
  std::vector<LogitBias> bias = {{14, 3.5f}, {20, -100.0f}, {1999, 5.0f}};
  const std::vector<int32_t> block_tokens = {14, 21, 21, 900};
  const std::vector<int32_t> stop_ids = {14, 0};
  int distinct = 0;
  for (const float temperature : {0.0f, 0.01f, 0.7f, 1.0f, 3.0f, 1000.0f}) {
    for (const int32_t top_k : {0, 1, 5, 64, 700, 1999, 2000, 5000}) {
      for (const float top_p : {1.0f, 0.999f, 0.9f, 0.3f, 1e-6f}) {
        for (const float min_p : {0.0f, 0.05f, 1.0f}) {
          for (const int adjustment : {0, 1, 2}) {
            sampling_ = {temperature, top_k, top_p, min_p};
            row_ = TokenRow();
            row_.sampling = &sampling_;
            row_.seed = 99;
            if (adjustment > 0) {
              row_.logit_bias = bias;
              row_.counts = counts;
              row_.forced_in_prompt = 1;
              row_.stop_ids = stop_ids;
              row_.min_tokens_position = 10;
              sampling_.repetition_penalty = 1.3f;
              sampling_.presence_penalty = 0.4f;
              sampling_.frequency_penalty = 0.25f;
            }
            if (adjustment == 2) row_.vocab_limit = 1501;
            for (int64_t position = 8; position < 12; ++position) {
              ASSERT_EQ(Draw(position, block_tokens), Slow(position, block_tokens))
                  << "temperature " << temperature << ", top_k " << top_k << ", top_p " << top_p
                  << ", min_p " << min_p << ", adjustment " << adjustment;
              ++distinct;
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(distinct, 6 * 8 * 5 * 3 * 3 * 4);
  // Greedy, and top-k of 1, 5 and 64 at the other temperatures; without adjustments.
  EXPECT_EQ(drawn_from_best_, (8 + 5 * 3) * 5 * 3 * 4);
}

TEST_F(SamplerTest, FrequenciesFollowTheProbabilities) {
  for (int32_t i = 0; i < kVocab; ++i) logits_[i] = -60.0f;
  const std::vector<double> probabilities = {0.5, 0.3, 0.15, 0.05};
  for (size_t i = 0; i < probabilities.size(); ++i) {
    logits_[i * 400] = static_cast<float>(std::log(probabilities[i]));
  }
  std::map<int32_t, int> seen;
  const int draws = 20000;
  for (int i = 0; i < draws; ++i) ++seen[Draw(i)];
  for (size_t i = 0; i < probabilities.size(); ++i) {
    const double p = probabilities[i];
    // Five standard deviations; the seed is fixed, so this passes always or never.
    EXPECT_NEAR(seen[static_cast<int32_t>(i) * 400], draws * p, 5 * std::sqrt(draws * p * (1 - p)));
  }
}

TEST_F(SamplerTest, StopIdsCannotBeDrawnBeforeTheMinimum) {
  sampling_.temperature = 0;
  logits_[42] = 90.0f;
  const std::vector<int32_t> stop_ids = {42};
  row_.stop_ids = stop_ids;
  row_.min_tokens_position = 5;
  EXPECT_NE(Draw(4), 42);
  EXPECT_EQ(Draw(5), 42);
}

TEST_F(SamplerTest, MassesOfTheLargestVocabularyAddUp) {
  // The bound of model/config.cc; all ids have the largest mass.
  constexpr int32_t kLargest = 1 << 23;
  Sampler sampler(kernels_, kLargest);
  const std::vector<float> logits(kLargest, 0.0f);
  const LogitStatistics statistics = StatisticsOf(kernels_, logits.data(), kLargest);
  for (int64_t position = 0; position < 3; ++position) {
    // The high bits of the random ones are the id.
    EXPECT_EQ(*sampler.Draw(logits.data(), statistics, row_, {}, position),
              static_cast<int32_t>(DrawBits(row_.seed, row_.choice, position) >> 41));
  }
}

TEST_F(SamplerTest, NothingLeftToDrawIsAnError) {
  row_.vocab_limit = 1;
  const std::vector<int32_t> stop_ids = {0};
  row_.stop_ids = stop_ids;
  row_.min_tokens_position = 5;
  EXPECT_EQ(TryDraw(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(TryDraw(5).ok());
}

TEST_F(SamplerTest, TheLargestCountsAndPenaltiesThatAreTakenGiveADraw) {
  sampling_.temperature = 0;
  const int32_t best = Draw();
  const std::vector<TokenCount> counts = {{best, 1 << 30, 1 << 30}};
  row_.counts = counts;
  sampling_.repetition_penalty = 2;
  EXPECT_NE(Draw(), best) << "2^31 occurrences in all";
  const std::vector<LogitBias> bias = {{best, 1e6f}};
  row_.logit_bias = bias;
  sampling_.presence_penalty = 1e6f;
  sampling_.frequency_penalty = 1e6f;
  const int32_t next = Draw();
  EXPECT_NE(next, best);
  EXPECT_EQ(next, Draw(3, std::vector<int32_t>{best, best}));
}

TEST_F(SamplerTest, TargetsDrawTheSame) {
  sampling_ = {0.9f, 0, 0.95f, 0.001f};
  for (const KernelTarget target : SupportedKernelTargets()) {
    const CpuKernels& kernels = GetCpuKernels(target);
    Sampler sampler(kernels, kVocab);
    const LogitStatistics statistics = StatisticsOf(kernels, logits_.data(), kVocab);
    for (int64_t position = 0; position < 200; ++position) {
      EXPECT_EQ(*sampler.Draw(logits_.data(), statistics, row_, {}, position), Draw(position));
    }
  }
}

TEST_F(SamplerTest, TopListsTheBestIdsInOrder) {
  const LogitStatistics statistics = StatisticsOf(kernels_, logits_.data(), kVocab);
  std::vector<int32_t> order(kVocab);
  for (int32_t i = 0; i < kVocab; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return logits_[a] > logits_[b]; });
  for (const int32_t count : {1, 5, 100}) {
    const std::vector<TokenLogprob> top = sampler_.Top(logits_.data(), statistics, count);
    ASSERT_EQ(static_cast<int32_t>(top.size()), count);
    for (int32_t i = 0; i < count; ++i) {
      EXPECT_EQ(top[i].token, order[i]);
      EXPECT_EQ(top[i].logprob, RawLogprob(statistics, logits_[order[i]]));
    }
  }
}

TEST_F(SamplerTest, LogprobsAreTheLogarithmsOfASoftmax) {
  const LogitStatistics statistics = StatisticsOf(kernels_, logits_.data(), kVocab);
  double sum = 0;
  for (int32_t i = 0; i < kVocab; ++i)
    sum += std::exp(static_cast<double>(RawLogprob(statistics, logits_[i])));
  EXPECT_NEAR(sum, 1.0, 1e-6);
}

}  // namespace
}  // namespace blockserve
