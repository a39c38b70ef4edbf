#include "model/simulated_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <fstream>

namespace blockserve {
namespace {

using ::testing::HasSubstr;

ModelConfig SmallConfig() {
  ModelConfig config;
  config.block_length = 4;
  config.vocab_size = 100;
  config.block.hidden_size = 10;
  return config;
}

std::string TempFile(const std::string& name, const std::string& content) {
  const std::string path = ::testing::TempDir() + "simulated_engine_test_" + name;
  std::ofstream(path) << content;
  return path;
}

TEST(StepTable, ReadsFilesAndDrawsStraightLinesBetweenTheirRows) {
  const auto table = StepTable::Parse(TempFile("table", "# rows ms\n1 2\n4, 5  # four\n\n8 13\n"));
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->Time(1), absl::Milliseconds(2));
  EXPECT_EQ(table->Time(2), absl::Milliseconds(3));
  EXPECT_EQ(table->Time(4), absl::Milliseconds(5));
  EXPECT_EQ(table->Time(6), absl::Milliseconds(9));
  EXPECT_EQ(table->Time(10), absl::Milliseconds(17));
  EXPECT_EQ(StepTable::Parse("1.5")->Time(1000), absl::Milliseconds(1.5));
  EXPECT_EQ(StepTable().Time(5), absl::ZeroDuration());
  EXPECT_EQ(StepTable(0.5, 0.25).Time(100), absl::Milliseconds(25.5));
}

TEST(StepTable, FaultsNameTheLine) {
  EXPECT_THAT(StepTable::Parse(TempFile("back", "4 1\n2 1\n")).status().message(),
              HasSubstr("back:2: rows do not rise"));
  EXPECT_THAT(StepTable::Parse(TempFile("word", "4 fast\n")).status().message(),
              HasSubstr("word:1"));
  EXPECT_FALSE(StepTable::Parse(TempFile("empty", "# nothing\n")).ok());
  EXPECT_FALSE(StepTable::Parse("-1").ok());
  EXPECT_EQ(StepTable::Parse("/no/such/table").status().code(), absl::StatusCode::kNotFound);
}

TEST(SimulatedDevice, StepsFollowOneAnotherWhoeverTheyAreOf) {
  SimulatedDevice device;
  const auto at = [](int milliseconds) {
    return SimulatedDevice::Time() + std::chrono::milliseconds(milliseconds);
  };
  EXPECT_EQ(device.Run(at(100), absl::Milliseconds(3)), at(103));
  EXPECT_EQ(device.Run(at(101), absl::Milliseconds(2)), at(105));
  EXPECT_EQ(device.Run(at(105), absl::ZeroDuration()), at(105));
  EXPECT_EQ(device.Run(at(109), absl::Milliseconds(1)), at(110));
}

std::vector<float> Contexts(SimulatedBlockEngine& engine, const std::vector<int32_t>& tokens,
                            int64_t first_block, const std::vector<int32_t>& pages) {
  BlockChunk chunk;
  chunk.tokens = tokens;
  chunk.first_block = first_block;
  chunk.first_context = first_block;
  chunk.pages = pages;
  std::vector<float> contexts(tokens.size() / 4 * 10);
  EXPECT_TRUE(engine.Step({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  return contexts;
}

TEST(SimulatedBlockEngine, PrefillAndDecodingAgreeWhateverThePages) {
  SimulatedBlockEngine engine(SmallConfig(), StepTable());
  ASSERT_TRUE(engine.AllocateKv(8, 2).ok());
  std::vector<int32_t> tokens(3 * 4);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i * i % 50);
  const std::vector<float> whole = Contexts(engine, tokens, 0, {0, 1});
  std::vector<float> singly;
  for (int64_t block = 0; block < 3; ++block) {
    const std::vector<float> one = Contexts(
        engine, {tokens.begin() + block * 4, tokens.begin() + block * 4 + 4}, block, {5, 3});
    singly.insert(singly.end(), one.begin(), one.end());
  }
  EXPECT_EQ(whole, singly);
  EXPECT_NE(std::vector<float>(whole.begin(), whole.begin() + 10),
            std::vector<float>(whole.begin() + 10, whole.begin() + 20));
}

TEST(SimulatedBlockEngine, AWrongPageShowsInTheContext) {
  SimulatedBlockEngine engine(SmallConfig(), StepTable());
  ASSERT_TRUE(engine.AllocateKv(8, 1).ok());
  (void)Contexts(engine, {1, 2, 3, 4}, 0, {0});
  (void)Contexts(engine, {9, 9, 9, 9}, 0, {1});
  engine.CopyPage(0, 2, 1);
  const std::vector<float> right = Contexts(engine, {5, 6, 7, 8}, 1, {0, 4});
  EXPECT_EQ(Contexts(engine, {5, 6, 7, 8}, 1, {2, 4}), right);
  EXPECT_NE(Contexts(engine, {5, 6, 7, 8}, 1, {1, 4}), right);
}

class SimulatedTokenEngineTest : public ::testing::Test {
 protected:
  TokenRow Row() {
    TokenRow row;
    row.context = context_;
    row.limit = 4;
    row.position = 20;
    row.seed = 5;
    row.sampling = &sampling_;
    return row;
  }
  TokenRowResult Decode(const TokenRow& row) {
    TokenRowResult result;
    engine_.Decode({&row, 1}, {&result, 1});
    return result;
  }

  std::vector<float> context_ = std::vector<float>(10, 0.5f);
  SamplingParameters sampling_;
  SimulatedTokenEngine engine_{SmallConfig(), StepTable(), 8};
};

TEST_F(SimulatedTokenEngineTest, BatchesUnderWayAreThoseOneAfterAnother) {
  SimulatedTokenEngine engine(SmallConfig(), *StepTable::Parse("5"), 8, /*in_flight=*/2);
  EXPECT_EQ(engine.max_in_flight(), 2);
  EXPECT_EQ(engine.batch_rows(), 4);
  TokenRow other = Row();
  other.seed = 6;
  const TokenRow rows[] = {Row(), other};
  TokenRowResult results[2];
  engine.Start({&rows[0], 1}, {&results[0], 1});
  engine.Start({&rows[1], 1}, {&results[1], 1});
  engine.Finish();
  engine.Finish();
  EXPECT_EQ(results[0].tokens, Decode(Row()).tokens);
  EXPECT_EQ(results[1].tokens, Decode(other).tokens);
  EXPECT_EQ(engine.work().steps, 2);
  EXPECT_EQ(engine.work().busy_us, 10'000);
}

TEST_F(SimulatedTokenEngineTest, TokensAreAFunctionOfTheRow) {
  const TokenRowResult once = Decode(Row());
  EXPECT_EQ(once.tokens.size(), 4u);
  EXPECT_EQ(once.logprobs.size(), 4u);
  EXPECT_EQ(Decode(Row()).tokens, once.tokens);
  TokenRow other = Row();
  other.seed = 6;
  EXPECT_NE(Decode(other).tokens, once.tokens);
  sampling_.temperature = 0;
  EXPECT_EQ(Decode(other).tokens, Decode(Row()).tokens);
  context_[9] = 0.25f;
  const std::vector<int32_t> greedy = Decode(Row()).tokens;
  context_[9] = 0.5f;
  EXPECT_NE(Decode(Row()).tokens, greedy);
}

TEST_F(SimulatedTokenEngineTest, ABlockCutInTwoGoesOnWithTheSameTokens) {
  const TokenRowResult whole = Decode(Row());
  TokenRow rest = Row();
  const std::vector<int32_t> begun(whole.tokens.begin(), whole.tokens.begin() + 2);
  rest.forced = begun;
  rest.position = 22;
  EXPECT_EQ(Decode(rest).tokens,
            std::vector<int32_t>(whole.tokens.begin() + 2, whole.tokens.end()));
}

TEST_F(SimulatedTokenEngineTest, StopIdsEndARowButNotBeforeItsLeast) {
  const TokenRowResult whole = Decode(Row());
  const std::vector<int32_t> stop = {whole.tokens[1]};
  TokenRow row = Row();
  row.stop_ids = stop;
  EXPECT_TRUE(Decode(row).stopped);
  EXPECT_EQ(Decode(row).tokens.size(), whole.tokens[0] == stop[0] ? 1u : 2u);
  row.min_tokens_position = 1000;
  EXPECT_FALSE(Decode(row).stopped);
  EXPECT_EQ(Decode(row).tokens.size(), 4u);
}

}  // namespace
}  // namespace blockserve
