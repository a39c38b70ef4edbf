// The kernel that samples on the device draws, from equal logits, the tokens that the CPU's sampler
// draws (docs/sampling.md is one definition for both).
#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_test_util.h"
#include "kernels/cuda/sample.h"
#include "model/sampler.h"

namespace blockserve {
namespace {

constexpr int32_t kLength = 8;

// One draw of the CPU and the row that asks the device for the same.
struct Case {
  SamplingParameters sampling;
  int32_t vocab_limit = 0;
  bool adjusted = false;
  int64_t position = 0;
  uint32_t choice = 0;

  std::string Describe() const {
    return absl::StrCat("temperature ", sampling.temperature, ", top_k ", sampling.top_k,
                        ", top_p ", sampling.top_p, ", min_p ", sampling.min_p, ", limit ",
                        vocab_limit, ", adjusted ", adjusted, ", position ", position);
  }
};

class CudaSampler : public cuda::DeviceTest {
 protected:
  // Draws every case from these logits on both, and compares.
  void ExpectEqualDraws(const std::vector<float>& logits, const std::vector<Case>& cases) {
    const int32_t vocab = static_cast<int32_t>(logits.size());
    const CpuKernels& kernels = GetCpuKernels(SupportedKernelTargets().front());
    Sampler sampler(kernels, vocab);
    std::vector<float> padded = logits;
    padded.resize(PadToPanel(vocab));
    const LogitStatistics statistics = StatisticsOf(kernels, padded.data(), vocab);
    ASSERT_TRUE(statistics.finite);

    const int64_t rows = static_cast<int64_t>(cases.size());
    const int32_t index = static_cast<int32_t>(block_tokens_.size());
    const int32_t forced_in_prompt = std::min(index, 1);
    const int32_t edits = static_cast<int32_t>(bias_.size() + counts_.size() + stops_.size());
    const int64_t stride = (vocab + 3) / 4 * 4;
    std::vector<float> all_logits;
    std::vector<cuda::SampleRow> sample_rows;
    std::vector<int32_t> tokens(rows * kLength);
    for (int64_t r = 0; r < rows; ++r) {
      const Case& c = cases[r];
      all_logits.insert(all_logits.end(), logits.begin(), logits.end());
      all_logits.resize((r + 1) * stride);
      std::copy(block_tokens_.begin(), block_tokens_.end(), tokens.begin() + r * kLength);
      cuda::SampleRow row;
      row.seed = kSeed;
      row.choice = c.choice;
      row.limit = kLength;
      row.forced = index;
      row.forced_in_prompt = forced_in_prompt;
      row.position = c.position;
      row.vocab_limit = c.vocab_limit;
      row.temperature = c.sampling.temperature;
      row.top_k = c.sampling.top_k;
      row.top_p = c.sampling.top_p;
      row.min_p = c.sampling.min_p;
      row.repetition_penalty = c.sampling.repetition_penalty;
      row.presence_penalty = c.sampling.presence_penalty;
      row.frequency_penalty = c.sampling.frequency_penalty;
      if (c.adjusted) {
        row.bias_end = static_cast<int32_t>(bias_.size());
        row.counts_end = static_cast<int32_t>(counts_.size());
        row.stops_end = static_cast<int32_t>(stops_.size());
        row.min_tokens_position = kMinTokensPosition;
      }
      row.saved_begin = static_cast<int32_t>(r) * (edits + kLength);
      sample_rows.push_back(row);
    }
    std::vector<cuda::SampleBias> biases;
    for (const LogitBias& bias : bias_) biases.push_back({bias.token, bias.bias});
    std::stable_sort(biases.begin(), biases.end(),
                     [](const auto& a, const auto& b) { return a.token < b.token; });
    std::vector<int32_t> stops = stops_;
    std::sort(stops.begin(), stops.end());
    std::vector<cuda::SampleCount> counts;
    for (const TokenCount& count : counts_) {
      counts.push_back({count.token, count.in_prompt, count.in_output});
    }
    const cuda::DeviceBuffer device_logits = Upload(all_logits);
    const cuda::DeviceBuffer device_rows = Upload(sample_rows);
    const cuda::DeviceBuffer device_biases = Upload(biases);
    const cuda::DeviceBuffer device_counts = Upload(counts);
    const cuda::DeviceBuffer device_stops = Upload(stops);
    const cuda::DeviceBuffer saved = Upload(std::vector<float>(rows * (edits + kLength)));
    const cuda::DeviceBuffer states = Upload(std::vector<cuda::SampleState>(rows));
    const cuda::DeviceBuffer device_tokens = Upload(tokens);
    const cuda::DeviceBuffer logprobs = Upload(std::vector<float>(rows * kLength));
    cuda::SampleArgs args;
    args.rows = rows;
    args.vocab_size = vocab;
    args.logits = device_logits.as<float>();
    args.logits_stride = stride;
    args.index = index;
    args.block_length = kLength;
    args.sample_rows = device_rows.as<cuda::SampleRow>();
    args.biases = device_biases.as<cuda::SampleBias>();
    args.counts = device_counts.as<cuda::SampleCount>();
    args.stops = device_stops.as<int32_t>();
    args.saved = saved.as<float>();
    args.states = states.as<cuda::SampleState>();
    args.tokens = device_tokens.as<int32_t>();
    args.logprobs = logprobs.as<float>();
    const absl::Status status = cuda::Sample(args, stream());
    ASSERT_TRUE(status.ok()) << status;
    const std::vector<int32_t> drawn = Download<int32_t>(device_tokens);
    const std::vector<float> drawn_logprobs = Download<float>(logprobs);
    const std::vector<cuda::SampleState> drawn_states = Download<cuda::SampleState>(states);
    EXPECT_TRUE(cuda::SameBits(Download<float>(device_logits), all_logits));

    for (int64_t r = 0; r < rows; ++r) {
      const Case& c = cases[r];
      TokenRow row;
      row.sampling = &c.sampling;
      row.seed = kSeed;
      row.choice = c.choice;
      row.forced_in_prompt = forced_in_prompt;
      row.vocab_limit = c.vocab_limit;
      if (c.adjusted) {
        row.logit_bias = bias_;
        row.counts = counts_;
        row.stop_ids = stops_;
        row.min_tokens_position = kMinTokensPosition;
      }
      const absl::StatusOr<int32_t> expected =
          sampler.Draw(padded.data(), statistics, row, block_tokens_, c.position);
      if (!expected.ok()) {
        EXPECT_EQ(drawn_states[r].status, cuda::SampleStatus::kNothingLeft) << c.Describe();
        continue;
      }
      ASSERT_EQ(drawn[r * kLength + index], *expected) << c.Describe();
      // Rounded once to float32, of sums in another order.
      EXPECT_NEAR(drawn_logprobs[r * kLength + index], RawLogprob(statistics, logits[*expected]),
                  2e-6);
    }
  }

  static constexpr uint64_t kSeed = 0x123456789abcdef0u;
  static constexpr int64_t kMinTokensPosition = 10;
  std::vector<LogitBias> bias_;
  std::vector<TokenCount> counts_;
  std::vector<int32_t> stops_;
  std::vector<int32_t> block_tokens_;
};

std::vector<float> LogitsWithTies(int32_t vocab, float scale) {
  std::mt19937 random(5);
  std::vector<float> logits = cuda::Normal(random, vocab, scale);
  for (int32_t i = 0; i < vocab; i += 3) logits[i] = std::round(logits[i] * 2) / 2;
  // Both zeros are equal.
  for (int32_t i = 9; i < vocab; i += 90) logits[i] = i % 4 == 1 ? -0.0f : 0.0f;
  return logits;
}

TEST_F(CudaSampler, DrawsWhatTheCpuDraws) {
  const int32_t vocab = 900;
  bias_ = {{14, 3.5f}, {20, -100.0f}, {899, 5.0f}, {14, -0.25f}, {21, 1.0f}};
  counts_ = {{3, 2, 0}, {10, 0, 3}, {14, 1, 1}, {850, 5, 0}};
  stops_ = {14, 0, 14};
  block_tokens_ = {14, 21, 21, 400};
  std::vector<Case> cases;
  for (const float temperature : {0.0f, 0.01f, 0.7f, 1.0f, 1000.0f}) {
    for (const int32_t top_k : {0, 1, 64, 450, 899, 5000}) {
      for (const float top_p : {1.0f, 0.999f, 0.9f, 1e-6f}) {
        for (const int adjustment : {0, 1, 2}) {
          Case c;
          c.sampling = {temperature, top_k, top_p, cases.size() % 3 == 2 ? 0.05f : 0.0f};
          c.adjusted = adjustment > 0;
          if (c.adjusted) {
            c.sampling.repetition_penalty = 1.3f;
            c.sampling.presence_penalty = 0.4f;
            c.sampling.frequency_penalty = 0.25f;
          }
          if (adjustment == 2) c.vocab_limit = 701;
          c.position = 8 + static_cast<int64_t>(cases.size()) % 4;
          c.choice = static_cast<uint32_t>(cases.size());
          cases.push_back(c);
        }
      }
    }
  }
  ExpectEqualDraws(LogitsWithTies(vocab, 2.0f), cases);
}

TEST_F(CudaSampler, DrawsWhatTheCpuDrawsWithLongLists) {
  const int32_t vocab = 900;
  std::mt19937 random(6);
  // Three biases of each of 341 ids, far from one another in the list.
  const std::vector<float> values = cuda::Normal(random, 1023, 1.5f);
  for (int32_t i = 0; i < 1023; ++i) bias_.push_back({i * 7 % 341, values[i]});
  for (int32_t i = 0; i < 300; ++i) stops_.push_back(i * 11 % 150 * 3);
  std::vector<Case> cases;
  for (const float temperature : {0.0f, 0.9f}) {
    for (int64_t position = 6; position < 14; ++position) {
      Case c;
      c.sampling = {temperature, 0, 1.0f, 0.0f};
      c.adjusted = true;
      c.vocab_limit = position % 2 == 0 ? 300 : 0;
      c.position = position;
      cases.push_back(c);
    }
  }
  ExpectEqualDraws(LogitsWithTies(vocab, 1.0f), cases);
}

TEST_F(CudaSampler, DrawsWhatTheCpuDrawsFromFlatLogits) {
  // Equal logits and masses: where the cut falls is decided by the ids alone.
  std::vector<Case> cases;
  for (const int32_t top_k : {0, 1, 31, 32, 33, 599}) {
    for (const float top_p : {1.0f, 0.5f, 0.01f}) {
      for (int64_t position = 0; position < 3; ++position) {
        Case c;
        c.sampling = {1.0f, top_k, top_p, 0.0f};
        c.position = position;
        cases.push_back(c);
      }
    }
  }
  ExpectEqualDraws(std::vector<float>(600, 0.0f), cases);
}

TEST_F(CudaSampler, DrawsWhatTheCpuDrawsFromAWholeVocabulary) {
  std::vector<Case> cases;
  for (const auto& [top_k, top_p] : std::vector<std::pair<int32_t, float>>{
           {0, 1.0f}, {0, 0.95f}, {0, 0.3f}, {50, 1.0f}, {50, 0.8f}, {2000, 0.9f}, {40000, 0.9f}}) {
    for (const float min_p : {0.0f, 0.02f}) {
      Case c;
      c.sampling = {0.8f, top_k, top_p, min_p};
      c.position = static_cast<int64_t>(cases.size());
      cases.push_back(c);
    }
  }
  ExpectEqualDraws(LogitsWithTies(50304, 4.0f), cases);
}

TEST_F(CudaSampler, AnIdThatCannotBeDrawnMayHaveTheLargestLogit) {
  const int32_t limit = 700;
  for (const int32_t largest : {5, limit - 1, limit, 899}) {
    std::vector<float> logits = LogitsWithTies(900, 2.0f);
    logits[largest] = 20.0f;
    std::vector<Case> cases;
    for (const float temperature : {0.0f, 5.0f}) {
      for (const auto& [top_k, top_p] :
           std::vector<std::pair<int32_t, float>>{{0, 1.0f}, {0, 0.7f}, {20, 1.0f}}) {
        Case c;
        c.sampling = {temperature, top_k, top_p, 0.0f};
        c.vocab_limit = limit;
        c.position = static_cast<int64_t>(cases.size());
        cases.push_back(c);
      }
    }
    ExpectEqualDraws(logits, cases);
  }
}

TEST_F(CudaSampler, DrawsWhatTheCpuDrawsWhereMoreIdsAreCloseThanFitIntoSharedMemory) {
  const int32_t vocab = 9000;
  std::vector<float> steep = LogitsWithTies(vocab, 1.0f);
  // As far apart as floats can be, and ids whose weight is nothing.
  for (int32_t i = 0; i < vocab; i += 7) steep[i] *= 3e37f;
  std::vector<float> few_values(vocab);
  for (int32_t i = 0; i < vocab; ++i) few_values[i] = static_cast<float>(i * 37 % 11 / 4) - 1.0f;
  for (const std::vector<float>& logits : {LogitsWithTies(vocab, 1.0f), steep, few_values}) {
    std::vector<Case> cases;
    for (const float temperature : {0.5f, 2.0f, 1e37f}) {
      for (const auto& [top_k, top_p] : std::vector<std::pair<int32_t, float>>{
               {0, 0.95f}, {0, 0.4f}, {2048, 1.0f}, {2049, 1.0f}, {4500, 0.9f}, {8999, 1.0f}}) {
        Case c;
        c.sampling = {temperature, top_k, top_p, 0.0f};
        c.position = static_cast<int64_t>(cases.size());
        cases.push_back(c);
      }
    }
    ExpectEqualDraws(logits, cases);
  }
}

TEST_F(CudaSampler, DrawsWhatTheCpuDrawsFromAnyNumberOfIds) {
  for (const int32_t vocab : {1, 2, 17, 33, 3000}) {
    std::vector<Case> cases;
    for (int64_t position = 0; position < 4; ++position) {
      Case c;
      c.sampling = {1.5f, position % 2 == 0 ? 0 : 2, 0.8f, 0.0f};
      c.position = position;
      cases.push_back(c);
    }
    ExpectEqualDraws(LogitsWithTies(vocab, 1.0f), cases);
  }
}

TEST_F(CudaSampler, PenaltiesBeyondFloat32LeaveNothingOnBoth) {
  counts_ = {{0, 1, 0}, {1, 1, 0}, {2, 0, 1}};
  std::vector<Case> cases(2);
  for (Case& c : cases) {
    c.adjusted = true;
    c.sampling.repetition_penalty = 1e-38f;  // positive logits become infinite
    c.position = 20;
  }
  cases[1].sampling.temperature = 0;
  ExpectEqualDraws({30.0f, 1.0f, 2.0f}, cases);
}

}  // namespace
}  // namespace blockserve
