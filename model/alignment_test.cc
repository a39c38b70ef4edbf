#include "model/alignment.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

ModelConfig Config(int32_t block_length) {
  ModelConfig config;
  config.block_length = block_length;
  config.bos_token_id = 7;
  config.pad_token_id = 9;
  return config;
}

TEST(Alignment, EndPadsOnTheLeftSoThatGenerationStartsOnABoundary) {
  const PromptLayout layout =
      LayoutPrompt(Config(4), Alignment::kEnd, std::vector<int32_t>{1, 2, 3, 4, 5});
  EXPECT_THAT(layout.block_tokens, ElementsAre(9, 9, 9, 1, 2, 3, 4, 5));
  EXPECT_THAT(layout.forced, IsEmpty());
  EXPECT_EQ(layout.num_pads, 3);
  EXPECT_EQ(layout.num_text_tokens, 5);
  EXPECT_EQ(LayoutPrompt(Config(4), Alignment::kEnd, std::vector<int32_t>{1, 2, 3, 4}).num_pads, 0);
}

TEST(Alignment, StartPutsTheFirstTokenAtTheEndOfTheFirstBlock) {
  const PromptLayout layout =
      LayoutPrompt(Config(4), Alignment::kStart, std::vector<int32_t>{1, 2, 3, 4, 5, 6});
  EXPECT_THAT(layout.block_tokens, ElementsAre(9, 9, 9, 1, 2, 3, 4, 5));
  EXPECT_THAT(layout.forced, ElementsAre(6));
}

TEST(Alignment, StartGivesBlocksThatDoNotDependOnWhereThePromptEnds) {
  std::vector<int32_t> text(23);
  for (int32_t i = 0; i < 23; ++i) text[i] = 100 + i;
  const PromptLayout whole = LayoutPrompt(Config(4), Alignment::kStart, text);
  for (size_t length = 1; length <= text.size(); ++length) {
    const PromptLayout part =
        LayoutPrompt(Config(4), Alignment::kStart, absl::MakeConstSpan(text).first(length));
    ASSERT_LE(part.block_tokens.size(), whole.block_tokens.size());
    for (size_t i = 0; i < part.block_tokens.size(); ++i) {
      EXPECT_EQ(part.block_tokens[i], whole.block_tokens[i]);
    }
  }
}

TEST(Alignment, NonePadsOnlyATextShorterThanOneBlock) {
  const PromptLayout layout =
      LayoutPrompt(Config(4), Alignment::kNone, std::vector<int32_t>{1, 2, 3});
  EXPECT_THAT(layout.block_tokens, ElementsAre(9, 1, 2, 3));
  EXPECT_THAT(layout.forced, IsEmpty());
  const PromptLayout longer =
      LayoutPrompt(Config(4), Alignment::kNone, std::vector<int32_t>{1, 2, 3, 4, 5});
  EXPECT_THAT(longer.block_tokens, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(longer.forced, ElementsAre(5));
  EXPECT_EQ(longer.num_pads, 0);
}

TEST(Alignment, AnEmptyPromptIsTheBosToken) {
  for (Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    const PromptLayout layout = LayoutPrompt(Config(4), alignment, {});
    EXPECT_THAT(layout.block_tokens, ElementsAre(9, 9, 9, 7));
    EXPECT_THAT(layout.forced, IsEmpty());
    EXPECT_EQ(layout.num_text_tokens, 1);
  }
}

TEST(Alignment, ABlockOfOneTokenIsNeverPadded) {
  for (Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    const PromptLayout layout = LayoutPrompt(Config(1), alignment, std::vector<int32_t>{1, 2});
    EXPECT_THAT(layout.block_tokens, ElementsAre(1, 2));
    EXPECT_EQ(layout.num_pads, 0);
  }
}

}  // namespace
}  // namespace blockserve
