#include "app/evaluation.h"

#include <cmath>
#include <optional>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(LayWindows, CountsEveryTokenOnce) {
  for (const auto& [tokens, window, stride] :
       {std::tuple{10, 4, 2}, {10, 4, 4}, {3, 8, 8}, {9, 4, 1}, {4, 4, 4}, {17, 5, 3}}) {
    int64_t counted = 0;
    for (const Window& w : LayWindows(tokens, window, stride)) {
      EXPECT_EQ(w.first_counted, counted);
      EXPECT_GE(w.first_counted, w.begin);
      EXPECT_LE(w.end - w.begin, window);
      EXPECT_GT(w.end, counted);
      counted = w.end;
    }
    EXPECT_EQ(counted, tokens);
  }
}

TEST(LayWindows, GivesLaterWindowsTheContextOfTheirOverlap) {
  const std::vector<Window> windows = LayWindows(10, 4, 2);
  ASSERT_EQ(windows.size(), 4u);
  EXPECT_EQ(windows[0].first_counted, 0);
  EXPECT_EQ(windows[1].begin, 2);
  EXPECT_EQ(windows[1].first_counted, 4);
  EXPECT_EQ(windows[3].begin, 6);
  EXPECT_EQ(windows[3].end, 10);
}

TEST(Evaluation, SumsByPositionAndByContext) {
  Evaluation evaluation(2);
  // Alignment start: one pad, so that tokens 0, 2, … end their blocks.
  const std::vector<std::optional<float>> logprobs = {std::nullopt, -1.0f, -2.0f, -3.0f, -4.0f};
  evaluation.Add({0, 5, 0}, logprobs, 1);
  const nlohmann::ordered_json json = evaluation.Json(10);
  EXPECT_EQ(json["tokens"], 4);
  EXPECT_DOUBLE_EQ(json["loss"], 2.5);
  EXPECT_DOUBLE_EQ(json["perplexity"], std::exp(2.5));
  EXPECT_DOUBLE_EQ(json["bits_per_byte"], 10 / std::log(2.0) / 10);
  EXPECT_DOUBLE_EQ(json["by_position_in_block"][0]["loss"], 2.0);  // tokens 1 and 3
  EXPECT_DOUBLE_EQ(json["by_position_in_block"][1]["loss"], 3.0);  // tokens 2 and 4
  ASSERT_EQ(json["by_context_length"].size(), 3u);
  EXPECT_EQ(json["by_context_length"][1]["context_tokens_from"], 2);
  EXPECT_DOUBLE_EQ(json["by_context_length"][1]["loss"], 2.5);  // tokens 2 and 3
  EXPECT_THAT(Evaluation::Table(json), HasSubstr("4 tokens, loss 2.5000"));
}

TEST(Evaluation, APositionWithoutTokensHasNoLoss) {
  Evaluation evaluation(4);
  const std::vector<std::optional<float>> logprobs = {std::nullopt, -1.0f};
  evaluation.Add({0, 2, 0}, logprobs, 0);
  EXPECT_THAT(Evaluation::Table(evaluation.Json(2)),
              HasSubstr("\n3                                 0        -            -\n"));
}

TEST(Evaluation, TellsWhichTokensHaveNoScore) {
  Evaluation evaluation(2);
  const std::vector<std::optional<float>> logprobs = {std::nullopt, -1.0f, -2.0f};
  evaluation.Add({0, 3, 0}, logprobs, 1);
  evaluation.Add({3, 6, 3}, logprobs, 1);
  evaluation.Add({5, 8, 6}, logprobs, 1);  // its first token is the last of the window before
  EXPECT_THAT(evaluation.unscored(), ElementsAre(0, 3));
  EXPECT_EQ(evaluation.num_scored(), 6);
}

TEST(Evaluation, LeavesOutTokensThatAnEarlierWindowCounted) {
  Evaluation evaluation(4);
  const std::vector<std::optional<float>> logprobs = {std::nullopt, -100.0f, -1.0f, -3.0f};
  evaluation.Add({2, 6, 4}, logprobs, 3);
  EXPECT_EQ(evaluation.Json(0)["tokens"], 2);
  EXPECT_DOUBLE_EQ(evaluation.Json(0)["loss"], 2.0);
  EXPECT_TRUE(evaluation.Json(0)["bits_per_byte"].is_null());
}

}  // namespace
}  // namespace blockserve
