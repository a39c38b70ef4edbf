// The determinism contract of the engines, bit for bit, and what they refuse.
#include "model/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/engine_test_util.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<int32_t> RandomTokens(std::mt19937& random, const ModelConfig& config, int64_t count) {
  std::uniform_int_distribution<int32_t> ids(0, config.vocab_size - 1);
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = ids(random);
  return tokens;
}

std::unique_ptr<TestModel> Load(const std::string& folder, const TestModelOptions& options) {
  absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load(absl::StrCat("tests/golden/", folder), options);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

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
    return Load(std::get<0>(GetParam()), options);
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

class BlockEngineTest : public EngineTest {};
class TokenEngineTest : public EngineTest {};
class NumericIdTest : public EngineTest {};

TEST_F(BlockEngineTest, ForksShareTheBlocksOfACopiedPage) {
  TestModelOptions options;
  options.page_blocks = 8;
  const std::unique_ptr<TestModel> model = Load("concat_l4", options);
  ASSERT_NE(model, nullptr);
  const ModelConfig& config = model->config();
  std::mt19937 random(5);
  std::vector<int32_t> tokens = RandomTokens(random, config, 11 * 4);
  const std::vector<float> expected = *model->Prefill(tokens, 11);
  // Blocks 8 and 9 lie in page 1: a copy of it, continued with block 10.
  ASSERT_TRUE(model->Prefill(absl::MakeConstSpan(tokens).first(10 * 4), 10).ok());
  model->block().CopyPage(1, 40, 2);
  const std::vector<int32_t> pages = {0, 40};
  BlockChunk chunk;
  chunk.tokens = absl::MakeConstSpan(tokens).subspan(40);
  chunk.first_block = 10;
  chunk.pages = pages;
  std::vector<float> context(config.block.hidden_size);
  ASSERT_TRUE(model->block().Step({&chunk, 1}, absl::MakeSpan(context)).ok());
  EXPECT_TRUE(SameBits(context, absl::MakeConstSpan(expected).last(context.size())));
}

TEST_F(BlockEngineTest, OnlyWantedContextsAreWritten) {
  const std::unique_ptr<TestModel> model = Load("concat_l4", {});
  ASSERT_NE(model, nullptr);
  const ModelConfig& config = model->config();
  const int64_t width = config.block.hidden_size;
  std::mt19937 random(6);
  const std::vector<int32_t> tokens = RandomTokens(random, config, 10 * 4);
  const std::vector<float> expected = *model->Prefill(tokens, 10);
  const std::vector<int32_t> pages = {7};
  BlockChunk chunk;
  chunk.tokens = tokens;
  chunk.pages = pages;
  chunk.first_context = 8;
  std::vector<float> contexts(2 * width);
  ASSERT_TRUE(model->block().Step({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  EXPECT_TRUE(SameBits(contexts, absl::MakeConstSpan(expected).last(2 * width)));
  chunk.first_context = 10;
  EXPECT_TRUE(model->block().Step({&chunk, 1}, {}).ok());
}

TEST_F(BlockEngineTest, RefusesWhatDoesNotFit) {
  const std::unique_ptr<TestModel> model = Load("concat_l4", {});
  ASSERT_NE(model, nullptr);
  const int64_t width = model->config().block.hidden_size;
  std::vector<float> contexts(width);
  const auto step = [&](std::vector<int32_t> tokens, int64_t first, std::vector<int32_t> pages,
                        int64_t rows) {
    BlockChunk chunk;
    chunk.tokens = tokens;
    chunk.first_block = first;
    chunk.pages = pages;
    return std::string(
        model->block().Step({&chunk, 1}, absl::MakeSpan(contexts).first(rows * width)).message());
  };
  EXPECT_EQ(step({1, 2, 3, 4}, 0, {0}, 1), "");
  EXPECT_THAT(step({1, 2, 3}, 0, {0}, 1), HasSubstr("tokens"));
  EXPECT_THAT(step({1, 2, 3, 512}, 0, {0}, 1), HasSubstr("512"));
  EXPECT_THAT(step({1, 2, 3, -1}, 0, {0}, 1), HasSubstr("-1"));
  EXPECT_THAT(step({1, 2, 3, 4}, -1, {0}, 1), HasSubstr("first_block"));
  EXPECT_THAT(step({1, 2, 3, 4}, 16, {0}, 1), HasSubstr("pages"));
  EXPECT_THAT(step({1, 2, 3, 4}, 0, {64}, 1), HasSubstr("pages"));
  EXPECT_THAT(step({1, 2, 3, 4}, 0, {0}, 0), HasSubstr("contexts"));
  EXPECT_EQ(model->block().AllocateKv(int64_t{1} << 30, 1 << 20).code(),
            absl::StatusCode::kResourceExhausted);
}

TEST_F(BlockEngineTest, Bf16ContextsAreBf16Values) {
  TestModelOptions options;
  options.arithmetic = kTestedBf16;
  const std::unique_ptr<TestModel> model = Load("concat_l4", options);
  ASSERT_NE(model, nullptr);
  const std::vector<float> context = *model->Prefill(std::vector<int32_t>{1, 2, 3, 4}, 1);
  ASSERT_FALSE(context.empty());
  for (const float value : context) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    EXPECT_EQ(bits & 0xffffu, 0u);
  }
}

TEST_F(TokenEngineTest, NonFiniteContextHarmsItsRowAlone) {
  for (const std::string folder : {"concat_l4", "summation", "vanilla"}) {
    SCOPED_TRACE(folder);
    const std::unique_ptr<TestModel> model = Load(folder, {});
    ASSERT_NE(model, nullptr);
    const ModelConfig& config = model->config();
    std::vector<float> good(config.block.hidden_size, 0.25f);
    good[0] = -1.0f;
    std::vector<float> bad = good;
    bad[3] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> infinite = good;
    infinite[1] = std::numeric_limits<float>::infinity();
    const SamplingParameters sampling;
    std::vector<TokenRow> rows(3);
    rows[0].context = bad;
    rows[1].context = good;
    rows[2].context = infinite;
    for (TokenRow& row : rows) {
      row.limit = config.block_length;
      row.sampling = &sampling;
    }
    std::vector<TokenRowResult> results(3);
    model->token().Decode(rows, absl::MakeSpan(results));
    TokenRowResult alone;
    // Also after the others have been through the same buffers.
    model->token().Decode({&rows[1], 1}, {&alone, 1});
    EXPECT_EQ(results[0].status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(results[2].status.code(), absl::StatusCode::kInternal);
    ASSERT_TRUE(results[1].status.ok());
    ASSERT_TRUE(alone.status.ok());
    EXPECT_EQ(alone.tokens, results[1].tokens);
    EXPECT_TRUE(SameBits(alone.logprobs, results[1].logprobs));
    EXPECT_EQ(alone.tokens.size(), static_cast<size_t>(config.block_length));
  }
}

// More rows than one batch holds: several are in flight at a time where the engine can.
TEST_F(TokenEngineTest, RowsOfSeveralBatchesAreWhatTheyAreAlone) {
  for (const Arithmetic arithmetic : {kTestedF32, kTestedBf16}) {
    SCOPED_TRACE(TestName(arithmetic));
    TestModelOptions options;
    options.arithmetic = arithmetic;
    options.max_rows = 128;
    const std::unique_ptr<TestModel> model = Load("concat_l4", options);
    ASSERT_NE(model, nullptr);
    const ModelConfig& config = model->config();
    const int64_t width = config.block.hidden_size;
    constexpr int64_t kRows = 300;
    std::mt19937 random(8);
    std::uniform_int_distribution<int32_t> eighths(-16, 16);
    std::vector<float> contexts(kRows * width);
    for (float& value : contexts) value = static_cast<float>(eighths(random)) / 8.0f;
    const std::vector<int32_t> forced = {3, 1};
    const std::vector<TokenCount> counts = {{5, 1, 2}, {9, 0, 1}};
    const SamplingParameters plain;
    SamplingParameters penalized;
    penalized.repetition_penalty = 1.5f;
    penalized.frequency_penalty = 0.25f;
    std::vector<TokenRow> rows(kRows);
    for (int64_t r = 0; r < kRows; ++r) {
      TokenRow& row = rows[r];
      row.context = absl::MakeConstSpan(contexts).subspan(r * width, width);
      row.limit = static_cast<int32_t>(1 + r % config.block_length);
      row.forced = absl::MakeConstSpan(forced).first(std::min<int64_t>(r % 3, row.limit));
      row.seed = static_cast<uint64_t>(r);
      row.sampling = r % 5 == 0 ? &penalized : &plain;
      if (r % 5 == 0) row.counts = counts;
      row.top_logprobs = r % 70 == 3 ? 2 : 0;
    }
    std::vector<TokenRowResult> together(kRows);
    model->token().Decode(rows, absl::MakeSpan(together));
    for (int64_t r = 0; r < kRows; r += 23) {
      TokenRowResult alone;
      model->token().Decode({&rows[r], 1}, {&alone, 1});
      ASSERT_TRUE(together[r].status.ok()) << together[r].status;
      EXPECT_EQ(together[r].tokens.size() + rows[r].forced.size(),
                static_cast<size_t>(rows[r].limit));
      EXPECT_EQ(alone.tokens, together[r].tokens) << "row " << r;
      EXPECT_TRUE(SameBits(alone.logprobs, together[r].logprobs)) << "row " << r;
      EXPECT_EQ(alone.top.size(), together[r].top.size());
    }
  }
}

TEST_F(TokenEngineTest, StopsAtAStopIdAndAtTheLimit) {
  const std::unique_ptr<TestModel> model = Load("concat_l4", {});
  ASSERT_NE(model, nullptr);
  const std::vector<float> context(model->config().block.hidden_size, 0.5f);
  SamplingParameters greedy;
  greedy.temperature = 0;
  TokenRow row;
  row.context = context;
  row.limit = 4;
  row.position = 10;
  row.sampling = &greedy;
  TokenRowResult whole;
  model->token().Decode({&row, 1}, {&whole, 1});
  ASSERT_EQ(whole.tokens.size(), 4u);
  EXPECT_FALSE(whole.stopped);

  TokenRowResult limited;
  row.limit = 3;
  model->token().Decode({&row, 1}, {&limited, 1});
  EXPECT_EQ(limited.tokens, std::vector<int32_t>(whole.tokens.begin(), whole.tokens.begin() + 3));
  EXPECT_FALSE(limited.stopped);

  const std::vector<int32_t> stop = {whole.tokens[1]};
  const size_t first =
      std::find(whole.tokens.begin(), whole.tokens.end(), stop[0]) - whole.tokens.begin();
  row.limit = 4;
  row.stop_ids = stop;
  TokenRowResult stopped;
  model->token().Decode({&row, 1}, {&stopped, 1});
  EXPECT_TRUE(stopped.stopped);
  EXPECT_EQ(stopped.tokens.size(), first + 1);
  EXPECT_EQ(stopped.logprobs.size(), first + 1);
  EXPECT_EQ(stopped.tokens.back(), stop[0]);

  // Not before its minimum.
  row.min_tokens_position = 14;
  TokenRowResult banned;
  model->token().Decode({&row, 1}, {&banned, 1});
  EXPECT_FALSE(banned.stopped);
  EXPECT_EQ(std::count(banned.tokens.begin(), banned.tokens.end(), stop[0]), 0);
}

TEST_F(TokenEngineTest, AFullyForcedRowThatIsNotScoredReportsNothing) {
  const std::unique_ptr<TestModel> model = Load("concat_l4", {});
  ASSERT_NE(model, nullptr);
  const std::vector<float> context(model->config().block.hidden_size, 0.5f);
  const std::vector<int32_t> forced = {1, 2, 3};
  const SamplingParameters sampling;
  TokenRow row;
  row.context = context;
  row.forced = forced;
  row.limit = 3;
  row.sampling = &sampling;
  TokenRowResult result;
  model->token().Decode({&row, 1}, {&result, 1});
  EXPECT_TRUE(result.status.ok());
  EXPECT_TRUE(result.tokens.empty());
  EXPECT_TRUE(result.logprobs.empty());
}

TEST(ValidateTokenRow, NamesTheField) {
  ModelConfig config;
  config.block_length = 4;
  config.vocab_size = 100;
  config.block.hidden_size = 8;
  const std::vector<float> context(8);
  SamplingParameters sampling;
  TokenRow good;
  good.context = context;
  good.limit = 4;
  good.sampling = &sampling;
  ASSERT_TRUE(ValidateTokenRow(config, good).ok());

  const auto message = [&](auto change) {
    TokenRow row = good;
    SamplingParameters changed;
    row.sampling = &changed;
    change(row, changed);
    const absl::Status status = ValidateTokenRow(config, row);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const std::vector<int32_t> five = {1, 2, 3, 4, 5};
  const std::vector<int32_t> outside = {100};
  const std::vector<int32_t> negative = {-1};
  const std::vector<LogitBias> infinite = {{1, INFINITY}};
  const std::vector<LogitBias> far = {{100, 1}};
  const std::vector<LogitBias> absurd = {{1, -2e6f}};
  const std::vector<TokenCount> counts = {{1, -1, 0}};
  const std::vector<TokenCount> many_in_prompt = {{1, (1 << 30) + 1, 0}};
  const std::vector<TokenCount> many_in_output = {{1, 0, std::numeric_limits<int32_t>::max()}};
  const std::vector<TokenCount> twice = {{7, 1, 0}, {1, 1, 0}, {7, 0, 1}};
  using P = SamplingParameters;
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.context = r.context.first(7); }),
              HasSubstr("context"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.limit = 0; }), HasSubstr("limit"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.limit = 5; }), HasSubstr("limit"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.forced = five; }), HasSubstr("forced"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.forced = outside; }), HasSubstr("forced"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.forced_in_prompt = 1; }),
              HasSubstr("forced_in_prompt"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.position = -1; }), HasSubstr("position"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.sampling = nullptr; }), HasSubstr("sampling"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.stop_ids = negative; }), HasSubstr("stop_ids"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.logit_bias = infinite; }), HasSubstr("logit_bias"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.logit_bias = far; }), HasSubstr("logit_bias"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.logit_bias = absurd; }), HasSubstr("logit_bias"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.counts = counts; }), HasSubstr("counts"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.counts = many_in_prompt; }), HasSubstr("counts"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.counts = many_in_output; }), HasSubstr("counts"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.counts = twice; }), HasSubstr("counts: id 7"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.vocab_limit = 101; }), HasSubstr("vocab_limit"));
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.top_logprobs = 101; }), HasSubstr("top_logprobs"));
  config.vocab_size = 15;
  EXPECT_THAT(message([&](TokenRow& r, P&) { r.top_logprobs = 16; }), HasSubstr("[0, 15]"));
  config.vocab_size = 100;
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.temperature = -1; }), HasSubstr("temperature"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.temperature = NAN; }), HasSubstr("temperature"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.top_k = -1; }), HasSubstr("top_k"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.top_p = 0; }), HasSubstr("top_p"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.min_p = 1.5f; }), HasSubstr("min_p"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.repetition_penalty = 0; }),
              HasSubstr("repetition_penalty"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.presence_penalty = NAN; }),
              HasSubstr("presence_penalty"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.presence_penalty = 2e6f; }),
              HasSubstr("presence_penalty"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.frequency_penalty = -2e6f; }),
              HasSubstr("frequency_penalty"));
  EXPECT_THAT(message([&](TokenRow&, P& p) { p.frequency_penalty = INFINITY; }),
              HasSubstr("frequency_penalty"));
}

TEST_F(NumericIdTest, TellsArithmeticsApartAndNothingElse) {
  TestModelOptions options;
  const std::unique_ptr<TestModel> first = Load("concat_l4", options);
  ASSERT_NE(first, nullptr);
  const std::string block = *ProbeNumericId(first->block());
  const std::string token = *ProbeNumericId(first->token());
  const std::string form = absl::StrCat(ArithmeticName(kTestedF32), "-[0-9a-f]{16}");
  EXPECT_THAT(block, testing::MatchesRegex(form));
  EXPECT_THAT(token, testing::MatchesRegex(form));
  EXPECT_NE(block, token);

  options.num_threads = 3;
  options.page_blocks = 1;
  const std::unique_ptr<TestModel> second = Load("concat_l4", options);
  ASSERT_NE(second, nullptr);
  EXPECT_EQ(*ProbeNumericId(second->block()), block);
  EXPECT_EQ(*ProbeNumericId(second->token()), token);

  options.arithmetic = kTestedBf16;
  const std::unique_ptr<TestModel> bf16 = Load("concat_l4", options);
  ASSERT_NE(bf16, nullptr);
  EXPECT_NE(*ProbeNumericId(bf16->block()), block);
  EXPECT_NE(*ProbeNumericId(bf16->token()), token);

  options.num_pages = kNumericProbeBlocks - 1;
  const std::unique_ptr<TestModel> small = Load("concat_l4", options);
  ASSERT_NE(small, nullptr);
  EXPECT_FALSE(ProbeNumericId(small->block()).ok());
}

}  // namespace
}  // namespace blockserve
