#include "gateway/choice_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ChoiceSpec Spec(std::vector<int32_t> prompt, int32_t rest, int64_t blocks) {
  ChoiceSpec spec;
  spec.block_length = 4;
  spec.prompt = std::make_shared<const std::vector<int32_t>>(std::move(prompt));
  spec.prompt_rest = rest;
  spec.prompt_blocks = blocks;
  spec.max_tokens = 100;
  return spec;
}

// Up to the point where the choice's first row can be sent.
void ToFirstRow(ChoiceState& choice) {
  ASSERT_TRUE(choice.Open().ok());
  ASSERT_TRUE(choice.TakeContext(choice.blocks() - 1, true).ok());
}

TEST(ChoiceState, GoesRoundFromContextToBlockToContext) {
  ChoiceState choice(Spec({1, 2, 3}, 0, 1));
  EXPECT_EQ(choice.phase(), ChoicePhase::kQueued);
  ASSERT_TRUE(choice.Open().ok());
  EXPECT_EQ(choice.phase(), ChoicePhase::kOpening);
  ASSERT_TRUE(choice.TakeContext(0, true).ok());
  EXPECT_EQ(choice.phase(), ChoicePhase::kWaitingForBlock);
  const absl::StatusOr<std::vector<int32_t>> block = choice.AcceptBlock({5, 6, 7, 8});
  ASSERT_TRUE(block.ok());
  EXPECT_THAT(*block, ElementsAre(5, 6, 7, 8));
  EXPECT_EQ(choice.phase(), ChoicePhase::kWaitingForContext);
  EXPECT_EQ(choice.blocks(), 2);
  ASSERT_TRUE(choice.TakeContext(1, true).ok());
  ASSERT_TRUE(choice.Finish({9}).ok());
  EXPECT_EQ(choice.phase(), ChoicePhase::kFinished);
  EXPECT_THAT(choice.output(), ElementsAre(5, 6, 7, 8, 9));
}

TEST(ChoiceState, WaitsForASlowClientAndGoesOn) {
  ChoiceState choice(Spec({1}, 0, 1));
  ASSERT_TRUE(choice.Open().ok());
  ASSERT_TRUE(choice.TakeContext(0, /*may_run=*/false).ok());
  EXPECT_EQ(choice.phase(), ChoicePhase::kPaused);
  EXPECT_FALSE(choice.PlanRow().ok());
  ASSERT_TRUE(choice.Unpause().ok());
  EXPECT_TRUE(choice.PlanRow().ok());
}

// Every move that does not exist is refused and changes nothing.
TEST(ChoiceState, RefusesIllegalMoves) {
  const auto expect_only = [](ChoiceState& choice, bool open, bool context, bool unpause,
                              bool block, bool fail) {
    const ChoicePhase before = choice.phase();
    if (!open) {
      EXPECT_FALSE(choice.Open().ok());
    }
    if (!context) {
      EXPECT_FALSE(choice.TakeContext(choice.blocks() - 1, true).ok());
    }
    if (!unpause) {
      EXPECT_FALSE(choice.Unpause().ok());
    }
    if (!block) {
      EXPECT_FALSE(choice.PlanRow().ok());
      EXPECT_FALSE(choice.Judge({1, 2, 3, 4}, false).ok());
      EXPECT_FALSE(choice.AcceptBlock({1, 2, 3, 4}).ok());
      EXPECT_FALSE(choice.Finish({1}).ok());
    }
    if (!fail) {
      EXPECT_FALSE(choice.Fail().ok());
    }
    EXPECT_EQ(choice.phase(), before) << ChoicePhaseName(before);
    EXPECT_THAT(choice.output(), IsEmpty());
  };
  ChoiceState choice(Spec({1}, 0, 1));
  expect_only(choice, true, false, false, false, true);
  ASSERT_TRUE(choice.Open().ok());
  expect_only(choice, false, true, false, false, true);
  ASSERT_TRUE(choice.TakeContext(0, false).ok());
  expect_only(choice, false, false, true, false, true);
  ASSERT_TRUE(choice.Unpause().ok());
  expect_only(choice, false, false, false, true, true);
  ASSERT_TRUE(choice.Fail().ok());
  expect_only(choice, false, false, false, false, false);

  ChoiceState finished(Spec({1}, 0, 1));
  ToFirstRow(finished);
  ASSERT_TRUE(finished.Finish({}).ok());
  expect_only(finished, false, false, false, false, false);
}

TEST(ChoiceState, RefusesADoubledBlock) {
  ChoiceState choice(Spec({1}, 0, 1));
  ToFirstRow(choice);
  ASSERT_TRUE(choice.AcceptBlock({5, 6, 7, 8}).ok());
  const absl::StatusOr<std::vector<int32_t>> again = choice.AcceptBlock({5, 6, 7, 8});
  EXPECT_THAT(again.status().message(), HasSubstr("waiting for context"));
  EXPECT_THAT(choice.output(), ElementsAre(5, 6, 7, 8));
}

TEST(ChoiceState, RefusesTheContextRowOfAnotherBlock) {
  ChoiceState choice(Spec({1}, 0, 1));
  ASSERT_TRUE(choice.Open().ok());
  EXPECT_THAT(choice.TakeContext(1, true).message(), HasSubstr("block 1"));
  EXPECT_EQ(choice.phase(), ChoicePhase::kOpening);
}

TEST(ChoiceState, FirstRowForcesThePromptsRest) {
  ChoiceSpec spec = Spec({1, 2, 3, 4, 5, 6}, 2, 1);
  spec.seed = 77;
  spec.choice = 3;
  spec.min_tokens = 5;
  spec.vocab_limit = 500;
  ChoiceState choice(spec);
  ToFirstRow(choice);
  const absl::StatusOr<RowPlan> first = choice.PlanRow();
  ASSERT_TRUE(first.ok());
  EXPECT_THAT(first->forced, ElementsAre(5, 6));
  EXPECT_EQ(first->forced_in_prompt, 2);
  EXPECT_EQ(first->limit, 4);
  EXPECT_EQ(first->position, 6);
  EXPECT_EQ(first->min_tokens_position, 11);
  EXPECT_EQ(first->seed, 77u);
  EXPECT_EQ(first->choice, 3u);
  EXPECT_EQ(first->vocab_limit, 500);
  EXPECT_THAT(first->counts, IsEmpty());
  const absl::StatusOr<std::vector<int32_t>> block = choice.AcceptBlock({7, 8});
  ASSERT_TRUE(block.ok());
  EXPECT_THAT(*block, ElementsAre(5, 6, 7, 8));
  ASSERT_TRUE(choice.TakeContext(1, true).ok());
  const absl::StatusOr<RowPlan> second = choice.PlanRow();
  ASSERT_TRUE(second.ok());
  EXPECT_THAT(second->forced, IsEmpty());
  EXPECT_EQ(second->forced_in_prompt, 0);
  EXPECT_EQ(second->position, 8);
}

TEST(ChoiceState, LimitRespectsMaxTokens) {
  for (int32_t rest = 0; rest < 4; ++rest) {
    for (int32_t max_tokens = 1; max_tokens <= 9; ++max_tokens) {
      ChoiceSpec spec = Spec(std::vector<int32_t>(8, 1), rest, 2);
      spec.max_tokens = max_tokens;
      ChoiceState choice(spec);
      ToFirstRow(choice);
      int32_t written = 0;
      while (true) {
        const absl::StatusOr<RowPlan> plan = choice.PlanRow();
        ASSERT_TRUE(plan.ok());
        ASSERT_LE(plan->limit, 4);
        const std::vector<int32_t> tokens(static_cast<size_t>(plan->limit) - plan->forced.size(),
                                          9);
        ASSERT_FALSE(tokens.empty());
        written += static_cast<int32_t>(tokens.size());
        const absl::StatusOr<BlockVerdict> verdict = choice.Judge(tokens, false);
        ASSERT_TRUE(verdict.ok());
        if (*verdict == BlockVerdict::kMaxTokens) break;
        ASSERT_EQ(*verdict, BlockVerdict::kGoesOn);
        ASSERT_TRUE(choice.AcceptBlock(tokens).ok());
        ASSERT_TRUE(choice.TakeContext(choice.blocks() - 1, true).ok());
      }
      EXPECT_EQ(written, max_tokens) << "rest " << rest;
    }
  }
}

TEST(ChoiceState, JudgesAnswers) {
  ChoiceState choice(Spec({1}, 0, 1));
  ToFirstRow(choice);
  EXPECT_EQ(*choice.Judge({1, 2, 3, 4}, false), BlockVerdict::kGoesOn);
  EXPECT_EQ(*choice.Judge({1, 2}, true), BlockVerdict::kStopToken);
  EXPECT_EQ(*choice.Judge({1, 2, 3, 4}, true), BlockVerdict::kStopToken);
  EXPECT_EQ(choice.Judge({1, 2, 3}, false).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(choice.Judge({1, 2, 3, 4, 5}, false).status().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(choice.Judge({}, true).status().code(), absl::StatusCode::kInternal);
}

TEST(ChoiceState, CountsAreOfTheTokensBeforeTheBlock) {
  ChoiceSpec spec = Spec({3, 3, 4, 4, 3}, 1, 1);
  spec.count_output = true;
  spec.prompt_counts = std::make_shared<const std::vector<int32_t>>(CountPrompt({3, 3, 4, 4}));
  ChoiceState choice(spec);
  ToFirstRow(choice);
  // The rest of the prompt is forced in this block: it is not counted yet.
  EXPECT_THAT(choice.PlanRow()->counts, ElementsAre(3, 2, 0, 4, 2, 0));
  ASSERT_TRUE(choice.AcceptBlock({4, 9, 9}).ok());
  ASSERT_TRUE(choice.TakeContext(1, true).ok());
  EXPECT_THAT(choice.PlanRow()->counts, ElementsAre(3, 3, 0, 4, 2, 1, 9, 0, 2));
  ASSERT_TRUE(choice.AcceptBlock({5, 1, 3, 12}).ok());
  ASSERT_TRUE(choice.TakeContext(2, true).ok());
  EXPECT_THAT(choice.PlanRow()->counts,
              ElementsAre(1, 0, 1, 3, 3, 1, 4, 2, 1, 5, 0, 1, 9, 0, 2, 12, 0, 1));
}

TEST(ChoiceState, CountsLeaveThePromptOutWhereItDoesNotMatter) {
  ChoiceSpec spec = Spec({3, 3, 4, 4}, 0, 1);
  spec.count_output = true;
  ChoiceState choice(spec);
  ToFirstRow(choice);
  EXPECT_THAT(choice.PlanRow()->counts, IsEmpty());
  ASSERT_TRUE(choice.AcceptBlock({4, 9, 9, 9}).ok());
  ASSERT_TRUE(choice.TakeContext(1, true).ok());
  EXPECT_THAT(choice.PlanRow()->counts, ElementsAre(4, 0, 1, 9, 0, 3));
}

// A choice that goes on elsewhere after k tokens asks for the same rows as one that never moved.
TEST(ChoiceState, GoesOnFromTokensThatAreKnown) {
  const std::vector<int32_t> output = {10, 11, 12, 13, 14, 15, 16, 17, 18};
  for (int32_t rest = 0; rest < 4; ++rest) {
    for (size_t known = 0; known <= output.size(); ++known) {
      ChoiceSpec spec = Spec({1, 2, 3, 4, 5, 6, 7, 8}, rest, 2);
      spec.count_output = true;
      spec.prompt_counts = std::make_shared<const std::vector<int32_t>>(
          CountPrompt(absl::MakeConstSpan(*spec.prompt).subspan(0, static_cast<size_t>(8 - rest))));
      spec.already.assign(output.begin(), output.begin() + static_cast<int64_t>(known));
      ChoiceState moved(spec);
      ToFirstRow(moved);
      const absl::StatusOr<RowPlan> plan = moved.PlanRow();
      ASSERT_TRUE(plan.ok());
      const int32_t text = rest + static_cast<int32_t>(known);
      EXPECT_EQ(plan->position, 8 + static_cast<int64_t>(known));
      EXPECT_EQ(static_cast<int32_t>(plan->forced.size()), text % 4);
      EXPECT_EQ(moved.blocks(), 2 + text / 4);
      EXPECT_EQ(plan->forced_in_prompt, text < 4 ? rest : 0);
      EXPECT_EQ(moved.OwnBlocks().size(), static_cast<size_t>(text / 4 * 4));
      std::vector<int32_t> all(spec.prompt->end() - rest, spec.prompt->end());
      all.insert(all.end(), spec.already.begin(), spec.already.end());
      std::vector<int32_t> joined = moved.OwnBlocks();
      joined.insert(joined.end(), plan->forced.begin(), plan->forced.end());
      EXPECT_EQ(joined, all);
    }
  }
}

}  // namespace
}  // namespace blockserve
