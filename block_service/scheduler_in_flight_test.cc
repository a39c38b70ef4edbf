// Steps that are planned while others are under way: what happens to sequences in the meantime.
#include <vector>

#include "block_service/scheduler_harness.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using absl::StatusCode;
using Harness = SchedulerHarness;

BlockSchedulerOptions Chunks(int32_t prefill_chunk_blocks) {
  BlockSchedulerOptions options = Harness::DefaultOptions();
  options.prefill_chunk_blocks = prefill_chunk_blocks;
  return options;
}

// Sequence 1, of three blocks, has its fourth computed: the append's id.
uint64_t BeginFourthBlock(Harness& harness) {
  harness.Open(1, Prompt(3, 1), 4);
  harness.RunUntilIdle();
  const uint64_t append = harness.Append(1, 3, {1, 1});
  EXPECT_TRUE(harness.Begin());
  return append;
}

TEST(SchedulerInFlight, APromptGoesOnInTheNextStep) {
  Harness harness(Chunks(4), 3);
  const std::vector<int32_t> prompt = Prompt(10, 1);
  const uint64_t id = harness.Open(1, prompt, 0, 0);
  for (const int32_t blocks : {4, 4, 2}) {
    EXPECT_TRUE(harness.Begin());
    EXPECT_EQ(harness.prefilled, blocks);
  }
  EXPECT_FALSE(harness.Begin()) << "all of it is under way";
  EXPECT_EQ(harness.of(id).replies, 0);
  while (!harness.under_way.empty()) harness.End();
  ASSERT_EQ(harness.code(id), StatusCode::kOk);
  ASSERT_EQ(harness.of(id).rows.size(), 10u);
  for (size_t i = 0; i < 10; ++i) {
    const auto end = prompt.begin() + static_cast<std::ptrdiff_t>(i + 1) * Harness::kLength;
    EXPECT_EQ(harness.of(id).rows[i], Harness::Expected({prompt.begin(), end}));
  }
}

TEST(SchedulerInFlight, SequencesThatAreReadyAreDecodedBesideOthers) {
  Harness harness(Harness::DefaultOptions(), 2);
  for (const uint64_t sequence : {1, 2}) {
    harness.Open(sequence, Prompt(3, static_cast<int32_t>(sequence)));
  }
  harness.RunUntilIdle();
  const uint64_t first = harness.Append(1, 3, {1, 1});
  EXPECT_TRUE(harness.Begin());
  const uint64_t second = harness.Append(2, 3, {2, 2});
  EXPECT_TRUE(harness.Begin());
  EXPECT_EQ(harness.decoded, 1);
  // The next block of a sequence waits for the one that is under way.
  const uint64_t third = harness.Append(1, 4, {3, 3});
  EXPECT_FALSE(harness.Begin());
  harness.End();
  EXPECT_EQ(harness.row(first), Harness::Expected(Joined(Prompt(3, 1), {1, 1})));
  EXPECT_FALSE(harness.of(second).done);
  EXPECT_TRUE(harness.Begin());
  harness.End();
  harness.End();
  EXPECT_EQ(harness.row(second), Harness::Expected(Joined(Prompt(3, 2), {2, 2})));
  EXPECT_EQ(harness.row(third), Harness::Expected(Joined(Prompt(3, 1), {1, 1, 3, 3})));
}

TEST(SchedulerInFlight, PagesOfASequenceThatEndsMeanwhileAreAnothersInTheNextStep) {
  BlockSchedulerOptions options = Chunks(16);
  options.num_pages = 4;
  Harness harness(options, 2);
  const uint64_t closed = harness.Open(1, Prompt(16, 1));
  EXPECT_TRUE(harness.Begin());
  EXPECT_EQ(harness.code(harness.Close(1)), StatusCode::kOk);
  EXPECT_EQ(harness.code(closed), StatusCode::kCancelled);
  const uint64_t opened = harness.Open(2, Prompt(15, 2), 1);
  EXPECT_TRUE(harness.Begin());
  harness.End();
  EXPECT_FALSE(harness.of(opened).done);
  harness.End();
  EXPECT_EQ(harness.row(opened), Harness::Expected(Prompt(15, 2)));
  const uint64_t appended = harness.Append(2, 15, {4, 4});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(appended), Harness::Expected(Joined(Prompt(15, 2), {4, 4})));
  // Nothing of what was computed for the first is kept as its prefix.
  harness.Close(2);
  const uint64_t again = harness.Open(1, Prompt(16, 1));
  harness.RunUntilIdle();
  EXPECT_EQ(harness.of(again).cached_blocks, 0);
  EXPECT_EQ(harness.row(again), Harness::Expected(Prompt(16, 1)));
}

TEST(SchedulerInFlight, ABlockThatIsCancelledMeanwhileIsNotAppended) {
  Harness harness(Harness::DefaultOptions(), 2);
  const uint64_t cancelled = BeginFourthBlock(harness);
  const uint64_t instead = harness.Append(1, 3, {2, 2});
  harness.Cancel(cancelled);
  EXPECT_EQ(harness.code(cancelled), StatusCode::kCancelled);
  EXPECT_TRUE(harness.Begin());
  harness.End();
  EXPECT_FALSE(harness.of(instead).done);
  harness.End();
  EXPECT_EQ(harness.row(instead), Harness::Expected(Joined(Prompt(3, 1), {2, 2})));
  const uint64_t next = harness.Append(1, 4, {5, 5});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(next), Harness::Expected(Joined(Prompt(3, 1), {2, 2, 5, 5})));
}

TEST(SchedulerInFlight, AStreamThatClosesMeanwhileIsNotAnswered) {
  Harness harness(Harness::DefaultOptions(), 2);
  harness.Open(1, Prompt(3, 1), 4);
  harness.RunUntilIdle();
  const uint64_t append = harness.Append(1, 3, {1, 1});
  const uint64_t open = harness.Open(2, Prompt(5, 2));
  EXPECT_TRUE(harness.Begin());
  harness.scheduler.CloseStream(1, harness.now);
  harness.stream = 2;
  harness.scheduler.OpenStream(2, Harness::kGateway, harness.now);
  // The sequence is as it was before; the prompt is gone.
  const uint64_t repeated = harness.Append(1, 3, {1, 1});
  const uint64_t unknown = harness.Append(2, 5, {1, 1});
  EXPECT_TRUE(harness.Begin());
  harness.End();
  harness.End();
  EXPECT_FALSE(harness.of(append).done);
  EXPECT_FALSE(harness.of(open).done);
  EXPECT_EQ(harness.row(repeated), Harness::Expected(Joined(Prompt(3, 1), {1, 1})));
  EXPECT_EQ(harness.code(unknown), StatusCode::kNotFound);
}

TEST(SchedulerInFlight, APrefixThatIsUnderWayIsWaitedForAndShared) {
  Harness harness(Chunks(8), 2);
  const std::vector<int32_t> common = Prompt(8, 1);
  const uint64_t first = harness.Open(1, Joined(common, {1, 1}));
  EXPECT_TRUE(harness.Begin());
  EXPECT_EQ(harness.prefilled, 8);
  const uint64_t second = harness.Open(2, Joined(common, {2, 2}));
  EXPECT_TRUE(harness.Begin()) << "the rest of the first";
  EXPECT_EQ(harness.prefilled, 1);
  harness.End();
  EXPECT_TRUE(harness.Begin());
  EXPECT_EQ(harness.prefilled, 1);
  while (!harness.under_way.empty()) harness.End();
  EXPECT_EQ(harness.of(second).cached_blocks, 8);
  EXPECT_EQ(harness.row(first), Harness::Expected(Joined(common, {1, 1})));
  EXPECT_EQ(harness.row(second), Harness::Expected(Joined(common, {2, 2})));

  // Where it is given up meanwhile, the one that waits computes it.
  const std::vector<int32_t> other = Prompt(8, 3);
  harness.Open(3, Joined(other, {1, 1}));
  EXPECT_TRUE(harness.Begin());
  const uint64_t fourth = harness.Open(4, Joined(other, {2, 2}));
  harness.Close(3);
  EXPECT_TRUE(harness.Begin());
  EXPECT_EQ(harness.prefilled, 8);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.of(fourth).cached_blocks, 0);
  EXPECT_EQ(harness.row(fourth), Harness::Expected(Joined(other, {2, 2})));
}

TEST(SchedulerInFlight, AForkWaitsForTheBlockThatIsUnderWay) {
  Harness harness(Harness::DefaultOptions(), 2);
  const uint64_t append = BeginFourthBlock(harness);
  const uint64_t before = harness.Fork(2, 1, 3, 4);
  const uint64_t at_it = harness.Fork(3, 1, 4, 4);
  EXPECT_EQ(harness.code(before), StatusCode::kOk) << "its blocks are there";
  EXPECT_FALSE(harness.of(at_it).done);
  const uint64_t child = harness.Append(2, 3, {2, 2});
  EXPECT_TRUE(harness.Begin());
  harness.End();
  EXPECT_EQ(harness.code(at_it), StatusCode::kOk);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(append), Harness::Expected(Joined(Prompt(3, 1), {1, 1})));
  EXPECT_EQ(harness.row(child), Harness::Expected(Joined(Prompt(3, 1), {2, 2})));
}

TEST(SchedulerInFlight, AStepThatFailsTakesNothingOfTheNextWithIt) {
  for (const bool at_start : {false, true}) {
    Harness harness(Chunks(4), 2);
    harness.Open(1, Prompt(3, 1), 4);
    harness.RunUntilIdle();
    const uint64_t long_prompt = harness.Open(2, Prompt(6, 2));
    if (at_start) harness.engine.RefuseStep(0, absl::UnavailableError("lost"));
    EXPECT_TRUE(harness.Begin());
    // The rest of the prompt that fails, and a block of a sequence that is not in that step.
    const uint64_t append = harness.Append(1, 3, {1, 1});
    EXPECT_TRUE(harness.Begin());
    EXPECT_EQ(harness.prefilled, 2);
    EXPECT_EQ(harness.decoded, 1);
    if (!at_start) harness.engine.FailNextSteps(absl::UnavailableError("lost"));
    harness.End();
    harness.engine.FailNextSteps(absl::OkStatus());
    EXPECT_EQ(harness.code(long_prompt), StatusCode::kUnavailable);
    EXPECT_FALSE(harness.of(append).done);
    harness.End();
    EXPECT_EQ(harness.row(append), Harness::Expected(Joined(Prompt(3, 1), {1, 1})));
    EXPECT_EQ(harness.load().sequences, 1);
  }
}

TEST(SchedulerInFlight, ASequenceThatGivesWayMeanwhileIsOpenedAnew) {
  BlockSchedulerOptions options = Chunks(16);
  options.num_pages = 5;
  options.reserve_tokens = 0;
  Harness harness(options, 2);
  harness.Open(1, Prompt(8, 1));
  harness.Open(2, Prompt(8, 2));
  harness.RunUntilIdle();
  const uint64_t newer = harness.Append(2, 8, {2, 2});
  EXPECT_TRUE(harness.Begin()) << "in the last free page";
  const uint64_t older = harness.Append(1, 8, {1, 1});
  EXPECT_TRUE(harness.Begin());
  EXPECT_TRUE(harness.of(newer).suspended);
  harness.End();
  harness.End();
  EXPECT_EQ(harness.row(older), Harness::Expected(Joined(Prompt(8, 1), {1, 1})));
  harness.Close(1);
  const uint64_t again = harness.Open(2, Joined(Prompt(8, 2), {2, 2}));
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(again), Harness::Expected(Joined(Prompt(8, 2), {2, 2})));
}

}  // namespace
}  // namespace blockserve
