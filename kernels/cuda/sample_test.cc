// What a row of Sample does beside drawing; that it draws what the CPU's sampler draws is
// model/cuda_sampler_test.cc.
#include "kernels/cuda/sample.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/cuda/device_test_util.h"
#include "kernels/exact_math.h"
#include "kernels/reference.h"

namespace blockserve::cuda {
namespace {

constexpr int32_t kVocab = 700;
constexpr int32_t kStride = 704;
constexpr int32_t kLength = 4;
constexpr int32_t kTop = 8;

struct Outcome {
  SampleState state;
  std::vector<int32_t> tokens;  // [L]
  std::vector<float> logprobs;
  std::vector<int32_t> top_tokens;  // [L, kTop]
  std::vector<float> top_logprobs;
};

class SampleTest : public DeviceTest {
 protected:
  SampleTest() {
    std::mt19937 random(11);
    logits_ = Normal(random, int64_t{kLength} * kStride, 2.0f);
    // Ties, also near the top, and both zeros.
    for (size_t i = 0; i < logits_.size(); i += 5) logits_[i] = std::round(logits_[i] * 2) / 2;
    logits_[3] = -0.0f;
    logits_[4] = 0.0f;
  }

  // All steps of a block of these rows; row r sees the logits of step i at [i], whatever r is.
  std::vector<Outcome> Run(std::vector<SampleRow> rows, std::vector<int32_t> forced_tokens = {}) {
    const int64_t count = static_cast<int64_t>(rows.size());
    std::vector<int32_t> tokens(count * kLength, 99);
    for (int64_t r = 0; r < count; ++r) {
      std::copy(forced_tokens.begin(), forced_tokens.end(), tokens.begin() + r * kLength);
      rows[r].saved_begin = static_cast<int32_t>(r * 64);
    }
    const DeviceBuffer device_rows = Upload(rows);
    const DeviceBuffer biases = Upload(biases_);
    const DeviceBuffer counts = Upload(counts_);
    const DeviceBuffer stops = Upload(stops_);
    const DeviceBuffer saved = Upload(std::vector<float>(count * 64));
    const DeviceBuffer states = Upload(std::vector<SampleState>(count));
    const DeviceBuffer device_tokens = Upload(tokens);
    const DeviceBuffer logprobs = Upload(std::vector<float>(count * kLength));
    const DeviceBuffer top_tokens = Upload(std::vector<int32_t>(count * kLength * kTop));
    const DeviceBuffer top_logprobs = Upload(std::vector<float>(count * kLength * kTop));
    for (int32_t index = 0; index < kLength; ++index) {
      std::vector<float> step;
      for (int64_t r = 0; r < count; ++r) {
        const std::vector<float> row = Rows(logits_, kStride, index, 1);
        step.insert(step.end(), row.begin(), row.end());
      }
      const DeviceBuffer logits = Upload(step);
      SampleArgs args;
      args.rows = count;
      args.vocab_size = kVocab;
      args.logits = logits.as<float>();
      args.logits_stride = kStride;
      args.index = index;
      args.block_length = kLength;
      args.sample_rows = device_rows.as<SampleRow>();
      args.biases = biases.as<SampleBias>();
      args.counts = counts.as<SampleCount>();
      args.stops = stops.as<int32_t>();
      args.saved = saved.as<float>();
      args.states = states.as<SampleState>();
      args.tokens = device_tokens.as<int32_t>();
      args.logprobs = logprobs.as<float>();
      args.top_tokens = top_tokens.as<int32_t>();
      args.top_logprobs = top_logprobs.as<float>();
      args.top_stride = kTop;
      const absl::Status status = Sample(args, stream());
      EXPECT_TRUE(status.ok()) << status;
      EXPECT_TRUE(SameBits(Download<float>(logits), step)) << "the logits are not restored";
    }
    std::vector<Outcome> outcomes;
    for (int64_t r = 0; r < count; ++r) {
      outcomes.push_back({Download<SampleState>(states)[r],
                          Rows(Download<int32_t>(device_tokens), kLength, r, 1),
                          Rows(Download<float>(logprobs), kLength, r, 1),
                          Rows(Download<int32_t>(top_tokens), kLength * kTop, r, 1),
                          Rows(Download<float>(top_logprobs), kLength * kTop, r, 1)});
    }
    return outcomes;
  }
  Outcome RunOne(const SampleRow& row, std::vector<int32_t> forced_tokens = {}) {
    return Run({row}, std::move(forced_tokens))[0];
  }

  absl::Span<const float> Logits(int32_t index) const {
    return absl::MakeConstSpan(logits_).subspan(index * kStride, kVocab);
  }
  int32_t Best(int32_t index, int32_t n = kVocab) const {
    const auto logits = Logits(index);
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.begin() + n) -
                                logits.begin());
  }
  double Logprob(int32_t index, int32_t token) const {
    return Logits(index)[token] - reference::LogSumExp(Logits(index));
  }

  static SampleRow Greedy() {
    SampleRow row;
    row.limit = kLength;
    row.temperature = 0;
    return row;
  }

  std::vector<float> logits_;  // [L, kStride]
  std::vector<SampleBias> biases_;
  std::vector<SampleCount> counts_;
  std::vector<int32_t> stops_;
};

TEST_F(SampleTest, GreedyTakesTheBestAndReportsRawLogprobs) {
  const Outcome outcome = RunOne(Greedy());
  EXPECT_EQ(outcome.state.status, SampleStatus::kDone);
  EXPECT_EQ(outcome.state.length, kLength);
  for (int32_t i = 0; i < kLength; ++i) {
    EXPECT_EQ(outcome.tokens[i], Best(i));
    EXPECT_NEAR(outcome.logprobs[i], Logprob(i, Best(i)), 2e-6);
  }
}

TEST_F(SampleTest, TheLowestOfEqualsIsTheBest) {
  logits_[300] = logits_[301] = logits_[699] = 50.0f;
  SampleRow row = Greedy();
  EXPECT_EQ(RunOne(row).tokens[0], 300);
  row.vocab_limit = 300;
  EXPECT_EQ(RunOne(row).tokens[0], Best(0, 300));
}

TEST_F(SampleTest, ForcedTokensAreKeptAndScoredWhenAsked) {
  SampleRow row = Greedy();
  row.forced = 2;
  const std::vector<int32_t> forced = {17, 4};
  Outcome outcome = RunOne(row, forced);
  EXPECT_EQ(outcome.tokens, (std::vector<int32_t>{17, 4, Best(2), Best(3)}));
  EXPECT_EQ(outcome.logprobs[0], 0.0f) << "not reported";
  row.score_forced = 1;
  outcome = RunOne(row, forced);
  EXPECT_NEAR(outcome.logprobs[0], Logprob(0, 17), 2e-6);
  EXPECT_NEAR(outcome.logprobs[1], Logprob(1, 4), 2e-6);
  EXPECT_NEAR(outcome.logprobs[2], Logprob(2, Best(2)), 2e-6);
  // Nothing but forced tokens.
  row.limit = 2;
  outcome = RunOne(row, forced);
  EXPECT_EQ(outcome.state.status, SampleStatus::kDone);
  EXPECT_EQ(outcome.state.length, 2);
  EXPECT_EQ(outcome.tokens, (std::vector<int32_t>{17, 4, 0, 0}));
}

TEST_F(SampleTest, AStopIdEndsTheRowAndIsReturned) {
  stops_ = {5, Best(1)};
  SampleRow row = Greedy();
  row.stops_end = 2;
  Outcome outcome = RunOne(row);
  EXPECT_EQ(outcome.state.status, SampleStatus::kStopped);
  EXPECT_EQ(outcome.state.length, 2);
  EXPECT_EQ(outcome.tokens, (std::vector<int32_t>{Best(0), Best(1), 0, 0}));
  // Not before the minimum.
  row.position = 100;
  row.min_tokens_position = 102;
  outcome = RunOne(row);
  EXPECT_NE(outcome.tokens[1], Best(1));
  EXPECT_NE(outcome.tokens[1], 0);
  EXPECT_EQ(outcome.state.status, SampleStatus::kDone);
}

TEST_F(SampleTest, NonFiniteLogitsEndTheirRowAlone) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    for (const int32_t at : {0, 511, 512, kVocab - 1}) {
      const std::vector<float> before = logits_;
      logits_[2 * kStride + at] = bad;
      SampleRow forced = Greedy();
      forced.forced = 4;
      const std::vector<Outcome> outcomes = Run({Greedy(), forced});
      EXPECT_EQ(outcomes[0].state.status, SampleStatus::kNotFinite);
      EXPECT_EQ(outcomes[0].state.length, 2);
      EXPECT_EQ(outcomes[0].tokens, (std::vector<int32_t>{Best(0), Best(1), 0, 0}));
      EXPECT_EQ(outcomes[1].state.status, SampleStatus::kDone) << "its logits are not used";
      logits_ = before;
    }
  }
  // Padding of the rows is not looked at.
  for (int32_t i = 0; i < kLength; ++i) {
    logits_[i * kStride + kVocab] = std::numeric_limits<float>::quiet_NaN();
  }
  EXPECT_EQ(RunOne(Greedy()).state.status, SampleStatus::kDone);
}

TEST_F(SampleTest, NothingLeftToDrawIsToldAsSuch) {
  stops_ = {0};
  SampleRow row = Greedy();
  row.vocab_limit = 1;
  row.stops_end = 1;
  row.min_tokens_position = 1;
  for (const float temperature : {0.0f, 1.0f}) {
    row.temperature = temperature;
    const Outcome outcome = RunOne(row);
    EXPECT_EQ(outcome.state.status, SampleStatus::kNothingLeft);
    EXPECT_EQ(outcome.state.length, 0);
  }
}

TEST_F(SampleTest, TopListsTheBestIdsInOrder) {
  for (const int32_t count : {1, 5, kTop}) {
    for (int32_t i = 0; i < kLength; ++i) logits_[i * kStride + 600] = 6.5f;  // of several
    SampleRow row = Greedy();
    row.top_logprobs = count;
    const Outcome outcome = RunOne(row);
    for (int32_t i = 0; i < kLength; ++i) {
      std::vector<int32_t> order(kVocab);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return Logits(i)[a] > Logits(i)[b]; });
      for (int32_t j = 0; j < count; ++j) {
        EXPECT_EQ(outcome.top_tokens[i * kTop + j], order[j]);
        EXPECT_NEAR(outcome.top_logprobs[i * kTop + j], Logprob(i, order[j]), 2e-6);
      }
      EXPECT_EQ(outcome.top_logprobs[i * kTop], outcome.logprobs[i]);
    }
  }
}

TEST_F(SampleTest, EqualLogitsAreListedByIdEvenWhenAllAreEqual) {
  std::fill(logits_.begin(), logits_.end(), -1.5f);
  SampleRow row = Greedy();
  row.top_logprobs = kTop;
  const Outcome outcome = RunOne(row);
  for (int32_t j = 0; j < kTop; ++j) {
    EXPECT_EQ(outcome.top_tokens[j], j);
    // The sum is exact here, and the logarithm is the CPU's, bit for bit.
    EXPECT_EQ(outcome.top_logprobs[j], static_cast<float>(-ExactLog(kVocab)));
  }
}

TEST_F(SampleTest, RowsDoNotDependOnTheBatch) {
  biases_ = {{14, 3.5f}, {14, 1.0f}, {20, -100.0f}};
  counts_ = {{3, 2, 0}, {10, 0, 3}};
  std::vector<SampleRow> rows;
  for (int32_t i = 0; i < 6; ++i) {
    SampleRow row;
    row.limit = kLength;
    row.seed = 77;
    row.choice = i;
    row.temperature = 0.8f;
    row.top_k = i % 2 == 0 ? 40 : 0;
    row.top_p = i % 3 == 0 ? 0.9f : 1.0f;
    row.min_p = i == 4 ? 0.05f : 0.0f;
    row.top_logprobs = i;
    if (i >= 3) {
      row.bias_end = 3;
      row.counts_end = 2;
      row.repetition_penalty = 1.2f;
      row.frequency_penalty = 0.3f;
    }
    rows.push_back(row);
  }
  const std::vector<Outcome> all = Run(rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    const Outcome alone = RunOne(rows[i]);
    EXPECT_EQ(alone.tokens, all[i].tokens);
    EXPECT_TRUE(SameBits(alone.logprobs, all[i].logprobs));
    EXPECT_EQ(alone.top_tokens, all[i].top_tokens);
    EXPECT_TRUE(SameBits(alone.top_logprobs, all[i].top_logprobs));
  }
}

// Each thread takes several groups of four at a time, then single ones, and one thread the rest.
TEST_F(SampleTest, TheLargestLogitIsFoundWhereverItLies) {
  constexpr int32_t kIds = 9003;
  constexpr int32_t kIdsStride = 9004;
  const std::vector<int32_t> places = {0,    1,    3,    2047, 2048, 6142, 6143,
                                       8191, 8192, 8998, 8999, 9000, 9002};
  std::mt19937 random(12);
  const std::vector<float> plain = Normal(random, kIdsStride, 1.0f);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float not_finite[] = {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()};
  std::vector<float> logits;
  std::vector<SampleStatus> statuses;
  std::vector<int32_t> tokens;
  const auto add = [&](const std::vector<float>& row, SampleStatus status, int32_t token) {
    logits.insert(logits.end(), row.begin(), row.end());
    statuses.push_back(status);
    tokens.push_back(token);
  };
  for (size_t i = 0; i < places.size(); ++i) {
    std::vector<float> row = plain;
    row[places[i]] = 9.5f;
    add(row, SampleStatus::kDone, places[i]);
    // Of equals the lowest, in whichever part of whichever thread the others are.
    for (size_t j = i; j < places.size(); ++j) row[places[j]] = 9.5f;
    add(row, SampleStatus::kDone, places[i]);
    row = plain;
    row[places[i]] = not_finite[i % 3];
    add(row, SampleStatus::kNotFinite, 0);
  }
  // The difference of these is beyond float32: finite all the same.
  std::vector<float> far_apart = plain;
  far_apart[5] = std::numeric_limits<float>::max();
  far_apart[8995] = -std::numeric_limits<float>::max();
  add(far_apart, SampleStatus::kDone, 5);

  const int64_t rows = static_cast<int64_t>(tokens.size());
  SampleRow greedy = Greedy();
  greedy.limit = 1;
  const DeviceBuffer device_logits = Upload(logits);
  const DeviceBuffer sample_rows = Upload(std::vector<SampleRow>(rows, greedy));
  const DeviceBuffer states = Upload(std::vector<SampleState>(rows));
  const DeviceBuffer device_tokens = Upload(std::vector<int32_t>(rows, 99));
  const DeviceBuffer logprobs = Upload(std::vector<float>(rows));
  SampleArgs args;
  args.rows = rows;
  args.vocab_size = kIds;
  args.logits = device_logits.as<float>();
  args.logits_stride = kIdsStride;
  args.block_length = 1;
  args.sample_rows = sample_rows.as<SampleRow>();
  args.states = states.as<SampleState>();
  args.tokens = device_tokens.as<int32_t>();
  args.logprobs = logprobs.as<float>();
  ASSERT_TRUE(Sample(args, stream()).ok());
  const std::vector<SampleState> end_states = Download<SampleState>(states);
  const std::vector<float> reported = Download<float>(logprobs);
  EXPECT_EQ(Download<int32_t>(device_tokens), tokens);
  for (int64_t r = 0; r < rows; ++r) {
    EXPECT_EQ(end_states[r].status, statuses[r]) << r;
    if (statuses[r] != SampleStatus::kDone) continue;
    const auto row = absl::MakeConstSpan(logits).subspan(r * kIdsStride, kIds);
    EXPECT_NEAR(reported[r], row[tokens[r]] - reference::LogSumExp(row), 2e-6) << r;
  }
}

TEST_F(SampleTest, NoRowGetsTokenZeroAndNothingElse) {
  const Outcome outcome = RunOne(SampleRow());
  EXPECT_EQ(outcome.tokens, (std::vector<int32_t>{0, 0, 0, 0}));
  EXPECT_EQ(outcome.state.length, 0);
}

}  // namespace
}  // namespace blockserve::cuda
