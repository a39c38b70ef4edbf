// What each engine does with what it is given, and what it refuses.
#include "model/engine.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/engine_test_util.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

class BlockEngineTest : public EngineTest {};
class TokenEngineTest : public EngineTest {};

TEST_F(BlockEngineTest, ForksShareTheBlocksOfACopiedPage) {
  TestModelOptions options;
  options.page_blocks = 8;
  const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", options);
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
  const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", {});
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
  const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", {});
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
  const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", options);
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
    const std::unique_ptr<TestModel> model = LoadGolden(folder, {});
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
    const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", options);
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
  const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", {});
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
  const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", {});
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

}  // namespace
}  // namespace blockserve
