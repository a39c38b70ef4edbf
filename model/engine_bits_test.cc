// The determinism contract of the engines, bit for bit.
#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/engine.h"
#include "model/engine_test_util.h"

namespace blockserve {
namespace {

class EngineBits : public testing::TestWithParam<std::tuple<std::string, Arithmetic>> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNotHere(std::get<1>(GetParam())); !why.empty()) {
      GTEST_SKIP() << why;
    }
  }
  TestModelOptions Options() const {
    TestModelOptions options;
    options.arithmetic = std::get<1>(GetParam());
    return options;
  }
  std::unique_ptr<TestModel> LoadWith(const TestModelOptions& options) const {
    return LoadGolden(std::get<0>(GetParam()), options);
  }
};

TEST_P(EngineBits, PrefillInChunksOfAnySizeIsDecodingBlockByBlock) {
  const std::unique_ptr<TestModel> model = LoadWith(Options());
  ASSERT_NE(model, nullptr);
  std::mt19937 random(1);
  const std::vector<int32_t> tokens =
      RandomTokens(random, model->config(), 75 * model->config().block_length);
  const std::vector<float> expected = *model->Prefill(tokens, 1);
  for (const int64_t chunk : {2, 3, 7, 16, 63, 64, 65, 75}) {
    EXPECT_TRUE(SameBits(expected, *model->Prefill(tokens, chunk))) << chunk;
  }
}

TEST_P(EngineBits, PagesThreadsAndRowsChangeNothing) {
  TestModelOptions options = Options();
  const std::unique_ptr<TestModel> model = LoadWith(options);
  ASSERT_NE(model, nullptr);
  std::mt19937 random(2);
  const std::vector<int32_t> tokens =
      RandomTokens(random, model->config(), 40 * model->config().block_length);
  const std::vector<float> expected = *model->Prefill(tokens, 40);
  SamplingParameters sampling;
  const std::vector<int32_t> prompt(tokens.begin(), tokens.begin() + 9);
  const Generated generated = *model->Generate(Alignment::kStart, prompt, 24, sampling, 1);

  const auto check = [&](const TestModelOptions& changed, const std::string& what) {
    const std::unique_ptr<TestModel> other = LoadWith(changed);
    ASSERT_NE(other, nullptr);
    EXPECT_TRUE(SameBits(expected, *other->Prefill(tokens, 40))) << what;
    const Generated again = *other->Generate(Alignment::kStart, prompt, 24, sampling, 1);
    EXPECT_EQ(generated.tokens, again.tokens) << what;
    EXPECT_TRUE(SameBits(generated.logprobs, again.logprobs)) << what;
    EXPECT_TRUE(SameBits(generated.logits, again.logits)) << what;
  };
  const bool in_pairs = options.arithmetic == Arithmetic::kBf16Dot;
  for (const int32_t page_blocks : {in_pairs ? 2 : 1, in_pairs ? 6 : 5, 48}) {
    TestModelOptions changed = options;
    changed.page_blocks = page_blocks;
    check(changed, absl::StrCat("pages of ", page_blocks));
  }
  for (const int threads : {2, 3}) {
    TestModelOptions changed = options;
    changed.num_threads = threads;
    check(changed, absl::StrCat(threads, " threads"));
  }
  for (const int32_t rows : {1, 3, 100}) {
    TestModelOptions changed = options;
    changed.max_rows = rows;
    check(changed, absl::StrCat("activations of ", rows, " rows"));
  }
}

// Rows that keep their logits are drawn from and reported out of them, others out of the best ids
// and statistics of segments: by one thread or by several, which see segments in any order.
TEST_P(EngineBits, RowsThatKeepNoLogitsGetTheSameTokensAndLogprobs) {
  TestModelOptions options = Options();
  const std::unique_ptr<TestModel> one = LoadWith(options);
  options.num_threads = 3;
  const std::unique_ptr<TestModel> three = LoadWith(options);
  ASSERT_NE(one, nullptr);
  ASSERT_NE(three, nullptr);
  const ModelConfig& config = one->config();
  const int64_t width = config.block.hidden_size;
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0.0f, 1.0f);

  const std::vector<SamplingParameters> samplings = {
      {.temperature = 0},
      {.temperature = 1},
      {.temperature = 0.9f, .top_k = 1},
      {.temperature = 0.9f, .top_k = 7},
      {.temperature = 2, .top_k = 100, .top_p = 0.9f},
      {.temperature = 2, .top_k = 100, .min_p = 0.2f},
      {.temperature = 2, .top_k = 300}};
  std::vector<TokenRow> rows;
  std::vector<std::vector<float>> contexts;
  std::vector<int32_t> forced(1, 5);
  for (const SamplingParameters& sampling : samplings) {
    for (const int32_t top_logprobs : {0, 3, 100}) {
      for (const int32_t vocab_limit : {0, config.vocab_size - 37, 200}) {
        contexts.emplace_back(width);
        for (float& value : contexts.back()) value = normal(random);
        TokenRow& row = rows.emplace_back();
        row.limit = config.block_length;
        row.seed = rows.size();
        row.sampling = &sampling;
        row.top_logprobs = top_logprobs;
        row.vocab_limit = vocab_limit;
        if (config.block_length > 1 && rows.size() % 2 == 0) {
          row.forced = forced;
          row.score_forced = rows.size() % 4 == 0;
        }
      }
    }
  }
  std::vector<std::vector<float>> logits(rows.size());
  const auto decode = [&](TestModel& model, bool keep) {
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].context = contexts[i];
      logits[i].resize(int64_t{config.block_length} * config.vocab_size);
      rows[i].logits = keep ? absl::MakeSpan(logits[i]) : absl::Span<float>();
    }
    std::vector<TokenRowResult> results(rows.size());
    model.token().Decode(rows, absl::MakeSpan(results));
    return results;
  };
  const std::vector<TokenRowResult> expected = decode(*one, true);
  for (TestModel* model : {one.get(), three.get()}) {
    const std::vector<TokenRowResult> results = decode(*model, false);
    for (size_t i = 0; i < rows.size(); ++i) {
      SCOPED_TRACE(absl::StrCat("row ", i));
      ASSERT_TRUE(results[i].status.ok()) << results[i].status;
      EXPECT_EQ(results[i].tokens, expected[i].tokens);
      EXPECT_TRUE(SameBits(results[i].logprobs, expected[i].logprobs));
      ASSERT_EQ(results[i].top.size(), expected[i].top.size());
      for (size_t t = 0; t < results[i].top.size(); ++t) {
        ASSERT_EQ(results[i].top[t].size(), expected[i].top[t].size());
        for (size_t j = 0; j < results[i].top[t].size(); ++j) {
          EXPECT_EQ(results[i].top[t][j].token, expected[i].top[t][j].token);
          EXPECT_EQ(results[i].top[t][j].logprob, expected[i].top[t][j].logprob);
        }
      }
    }
  }
}

TEST_P(EngineBits, ASequenceAloneAndAmongSixtyThreeOthers) {
  TestModelOptions options = Options();
  options.num_threads = 2;
  options.num_pages = 64 * 3;
  options.page_blocks = 4;
  const std::unique_ptr<TestModel> model = LoadWith(options);
  ASSERT_NE(model, nullptr);
  const ModelConfig& config = model->config();
  const int64_t width = config.block.hidden_size;
  std::mt19937 random(3);

  // 64 sequences of 1 to 12 blocks, pages interleaved; each step takes chunks of different sizes.
  struct Sequence {
    std::vector<int32_t> tokens;
    std::vector<int32_t> pages;
    int64_t blocks;
    int64_t done = 0;
    std::vector<float> contexts;
  };
  std::vector<Sequence> sequences(64);
  for (int64_t s = 0; s < 64; ++s) {
    Sequence& sequence = sequences[s];
    sequence.blocks = 1 + s * 5 % 12;
    sequence.tokens = RandomTokens(random, config, sequence.blocks * config.block_length);
    sequence.pages = {static_cast<int32_t>(s), static_cast<int32_t>(191 - s),
                      static_cast<int32_t>(64 + s)};
  }
  for (int64_t step = 0;; ++step) {
    std::vector<BlockChunk> chunks;
    std::vector<std::pair<Sequence*, int64_t>> parts;
    int64_t rows = 0;
    for (int64_t s = 0; s < 64; ++s) {
      Sequence& sequence = sequences[s];
      const int64_t count = std::min(sequence.blocks - sequence.done, 1 + (s + step) % 3);
      if (count == 0) continue;
      BlockChunk chunk;
      chunk.tokens = absl::MakeConstSpan(sequence.tokens)
                         .subspan(sequence.done * config.block_length, count * config.block_length);
      chunk.first_block = sequence.done;
      chunk.pages = sequence.pages;
      chunks.push_back(chunk);
      parts.push_back({&sequence, count});
      rows += count;
    }
    if (chunks.empty()) break;
    std::vector<float> contexts(rows * width);
    ASSERT_TRUE(model->block().Step(chunks, absl::MakeSpan(contexts)).ok());
    auto from = contexts.begin();
    for (auto& [sequence, count] : parts) {
      sequence->contexts.insert(sequence->contexts.end(), from, from + count * width);
      sequence->done += count;
      from += count * width;
    }
  }

  // The token decoder: all last contexts in one batch, with different beginnings and parameters.
  std::vector<SamplingParameters> sampling(64);
  std::vector<TokenRow> rows(64);
  const std::vector<LogitBias> bias = {{5, 2.0f}, {9, -1.0f}};
  for (int64_t s = 0; s < 64; ++s) {
    sampling[s].temperature = s % 4 == 0 ? 0.0f : 0.5f + 0.1f * static_cast<float>(s % 7);
    sampling[s].top_k = s % 3 == 0 ? 20 : 0;
    sampling[s].top_p = s % 5 == 0 ? 0.8f : 1.0f;
    TokenRow& row = rows[s];
    row.context = absl::MakeConstSpan(sequences[s].contexts).last(width);
    row.forced = absl::MakeConstSpan(sequences[s].tokens).first(s % config.block_length);
    row.limit = config.block_length;
    row.seed = 7;
    row.position = s;
    row.sampling = &sampling[s];
    row.score_forced = s % 2 == 0;
    row.top_logprobs = s % 6 == 0 ? 3 : 0;
    if (s % 8 == 1) row.logit_bias = bias;
    ASSERT_TRUE(ValidateTokenRow(config, row).ok());
  }
  std::vector<TokenRowResult> together(64);
  model->token().Decode(rows, absl::MakeSpan(together));

  for (int64_t s = 0; s < 64; s += 7) {
    const std::vector<float> alone = *model->Prefill(sequences[s].tokens, sequences[s].blocks);
    EXPECT_TRUE(SameBits(alone, sequences[s].contexts)) << "sequence " << s;
  }
  for (int64_t s = 0; s < 64; ++s) {
    TokenRowResult alone;
    model->token().Decode({&rows[s], 1}, {&alone, 1});
    ASSERT_TRUE(together[s].status.ok()) << together[s].status;
    EXPECT_EQ(alone.tokens, together[s].tokens) << "row " << s;
    EXPECT_EQ(alone.tokens.size() + rows[s].forced.size(),
              static_cast<size_t>(config.block_length));
    EXPECT_EQ(alone.logprobs.size(),
              alone.tokens.size() + (rows[s].score_forced ? rows[s].forced.size() : 0));
    EXPECT_TRUE(SameBits(alone.logprobs, together[s].logprobs)) << "row " << s;
    ASSERT_EQ(alone.top.size(), together[s].top.size());
    for (size_t i = 0; i < alone.top.size(); ++i) {
      ASSERT_EQ(alone.top[i].size(), 3u);
      for (size_t j = 0; j < 3; ++j) {
        EXPECT_EQ(alone.top[i][j].token, together[s].top[i][j].token);
        EXPECT_EQ(alone.top[i][j].logprob, together[s].top[i][j].logprob);
      }
    }
  }
}

// The score of what was generated is what was reported while generating, to the bit.
TEST_P(EngineBits, ScoresOfGeneratedTokensAreTheirReportedLogprobs) {
  const std::unique_ptr<TestModel> model = LoadWith(Options());
  ASSERT_NE(model, nullptr);
  std::mt19937 random(4);
  const std::vector<int32_t> prompt = RandomTokens(random, model->config(), 11);
  SamplingParameters sampling;
  sampling.temperature = 1.2f;
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    const Generated generated = *model->Generate(alignment, prompt, 22, sampling);
    const std::vector<float> scores = *model->Score(alignment, prompt, generated.tokens);
    EXPECT_TRUE(SameBits(generated.logprobs, scores)) << AlignmentName(alignment);
  }
}

// (folder, arithmetic): every kind of embedder, decoding strategy and residual. Of the CUDA engines
// bfloat16 differs from float32 in kernels alone, whose own tests run over both.
std::vector<std::tuple<std::string, Arithmetic>> Cases() {
  std::vector<std::tuple<std::string, Arithmetic>> cases;
  for (const Arithmetic arithmetic : kTestedArithmetics) {
    for (const std::string folder :
         {"concat_l4", "projection_layer_f16", "summation", "vanilla", "concat_l2_sharded",
          "widths_differ_l8", "sequential_residual", "sum_embedder"}) {
      if (IsCuda(arithmetic) && StoresBf16(arithmetic) && folder == "concat_l2_sharded") break;
      cases.emplace_back(folder, arithmetic);
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(
    Models, EngineBits, testing::ValuesIn(Cases()),
    [](const testing::TestParamInfo<std::tuple<std::string, Arithmetic>>& info) {
      return absl::StrCat(std::get<0>(info.param), "_", TestName(std::get<1>(info.param)));
    });

class NumericIdTest : public EngineTest {};

TEST_F(NumericIdTest, TellsArithmeticsApartAndNothingElse) {
  TestModelOptions options;
  const std::unique_ptr<TestModel> first = LoadGolden("concat_l4", options);
  ASSERT_NE(first, nullptr);
  const std::string block = *ProbeNumericId(first->block());
  const std::string token = *ProbeNumericId(first->token());
  const std::string form = absl::StrCat(ArithmeticName(kTestedF32), "-[0-9a-f]{16}");
  EXPECT_THAT(block, testing::MatchesRegex(form));
  EXPECT_THAT(token, testing::MatchesRegex(form));
  EXPECT_NE(block, token);

  options.num_threads = 3;
  options.page_blocks = 1;
  const std::unique_ptr<TestModel> second = LoadGolden("concat_l4", options);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(*ProbeNumericId(second->block()), block);
  EXPECT_EQ(*ProbeNumericId(second->token()), token);

  options.arithmetic = kTestedBf16;
  const std::unique_ptr<TestModel> bf16 = LoadGolden("concat_l4", options);
  ASSERT_NE(bf16, nullptr);
  EXPECT_NE(*ProbeNumericId(bf16->block()), block);
  EXPECT_NE(*ProbeNumericId(bf16->token()), token);

  options.num_pages = kNumericProbeBlocks - 1;
  const std::unique_ptr<TestModel> small = LoadGolden("concat_l4", options);
  ASSERT_NE(small, nullptr);
  EXPECT_FALSE(ProbeNumericId(small->block()).ok());
}

}  // namespace
}  // namespace blockserve
