#include "block_service/scheduler.h"

#include <limits>
#include <vector>

#include "block_service/scheduler_harness.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using absl::StatusCode;
using Harness = SchedulerHarness;
using testing::HasSubstr;

BlockSchedulerOptions Options() { return Harness::DefaultOptions(); }

TEST(BlockScheduler, OpensAppendsAndCloses) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(5, 1);
  const uint64_t open = harness.Open(1, prompt, 8);
  EXPECT_EQ(harness.RunUntilIdle(), 1);
  EXPECT_EQ(harness.row(open), Harness::Expected(prompt));
  EXPECT_EQ(harness.of(open).first_block, 4);
  const uint64_t append = harness.Append(1, 5, {3, 4});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(append), Harness::Expected(Joined(prompt, {3, 4})));
  EXPECT_EQ(harness.of(append).first_block, 5);
  EXPECT_EQ(harness.code(harness.Close(1)), StatusCode::kOk);
  EXPECT_EQ(harness.load().sequences, 0);
  EXPECT_EQ(harness.available_pages(), 64);
  EXPECT_EQ(harness.code(harness.Close(1)), StatusCode::kOk) << "closing is idempotent";
}

TEST(BlockScheduler, PipelinedItemsOfASequenceRunInOrder) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(3, 1);
  const uint64_t open = harness.Open(1, prompt, 8);
  const uint64_t first = harness.Append(1, 3, {1, 2});
  const uint64_t second = harness.Append(1, 4, {3, 4});
  EXPECT_EQ(harness.RunUntilIdle(), 3);
  EXPECT_EQ(harness.row(open), Harness::Expected(prompt));
  EXPECT_EQ(harness.row(first), Harness::Expected(Joined(prompt, {1, 2})));
  EXPECT_EQ(harness.row(second), Harness::Expected(Joined(prompt, {1, 2, 3, 4})));
}

TEST(BlockScheduler, PromptsArePrefilledInChunksOfAnySizeToTheSameRows) {
  const std::vector<int32_t> prompt = Prompt(23, 1);
  for (const int32_t chunk : {1, 3, 4, 7, 22, 23, 100}) {
    BlockSchedulerOptions options = Options();
    options.prefill_chunk_blocks = chunk;
    Harness harness(options);
    const uint64_t open = harness.Open(1, prompt, 0, 0);
    EXPECT_EQ(harness.RunUntilIdle(), (23 + chunk - 1) / chunk);
    ASSERT_EQ(harness.of(open).rows.size(), 23u) << "chunk " << chunk;
    for (int64_t block = 0; block < 23; ++block) {
      EXPECT_EQ(harness.of(open).rows[static_cast<size_t>(block)],
                Harness::Expected({prompt.begin(), prompt.begin() + (block + 1) * 2}));
    }
  }
}

TEST(BlockScheduler, ALongPromptDoesNotStallRunningSequences) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 4;
  Harness harness(options);
  harness.Open(1, Prompt(2, 1), 8);
  harness.RunUntilIdle();
  const uint64_t open = harness.Open(2, Prompt(40, 2));
  for (int64_t block = 2; block < 8; ++block) {
    const uint64_t append = harness.Append(1, block, {5, 6});
    harness.Step();
    EXPECT_EQ(harness.code(append), StatusCode::kOk);
    EXPECT_EQ(harness.decoded, 1);
    EXPECT_EQ(harness.prefilled, 4);
  }
  EXPECT_FALSE(harness.of(open).done);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(open), Harness::Expected(Prompt(40, 2)));
}

TEST(BlockScheduler, SeveralPromptsShareAChunkInOrderOfArrival) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 10;
  Harness harness(options);
  const uint64_t first = harness.Open(1, Prompt(6, 1));
  const uint64_t second = harness.Open(2, Prompt(3, 2));
  const uint64_t third = harness.Open(3, Prompt(6, 3));
  harness.Step();
  EXPECT_EQ(harness.prefilled, 10);
  EXPECT_TRUE(harness.of(first).done && harness.of(second).done);
  EXPECT_FALSE(harness.of(third).done);
}

TEST(BlockScheduler, AShortPromptDoesNotWaitBehindLongOnes) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 8;
  Harness harness(options);
  std::vector<uint64_t> longs;
  for (uint64_t sequence = 1; sequence <= 3; ++sequence) {
    longs.push_back(harness.Open(sequence, Prompt(40, static_cast<int32_t>(sequence))));
  }
  harness.Step();
  const uint64_t small = harness.Open(4, Prompt(3, 4));
  harness.Step();
  EXPECT_EQ(harness.prefilled, 8);
  EXPECT_EQ(harness.row(small), Harness::Expected(Prompt(3, 4)));
  // One after another, each has the whole chunk while there is nobody with less.
  EXPECT_EQ(harness.RunUntilIdle(), (3 * 40 + 3 + 7) / 8 - 2);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(harness.row(longs[i]), Harness::Expected(Prompt(40, static_cast<int32_t>(i + 1))));
  }
}

TEST(BlockScheduler, ShortPromptsWithoutEndLeaveALongOneHalfOfTheChunk) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 8;
  Harness harness(options);
  const uint64_t open = harness.Open(1, Prompt(40, 1));
  uint64_t sequence = 2;
  int steps = 0;
  for (; steps < 100 && !harness.of(open).done; ++steps) {
    for (int i = 0; i < 4; ++i, ++sequence) {
      harness.Open(sequence, Prompt(2, static_cast<int32_t>(sequence)), 0, -1, true);
    }
    harness.Step();
  }
  EXPECT_EQ(steps, 40 / 4);
}

TEST(BlockScheduler, AShortPromptOfLowerPriorityDoesNotGoFirst) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 8;
  Harness harness(options);
  const uint64_t normal = harness.Open(1, Prompt(20, 1));
  BlockWorkItem item = harness.Item(2);
  item.priority = 3;
  item.call = OpenCall{Prompt(3, 2)};
  const uint64_t batch = harness.Submit(item);
  harness.Step();
  harness.Step();
  EXPECT_FALSE(harness.of(batch).done);
  harness.Step();
  EXPECT_TRUE(harness.of(normal).done);
  EXPECT_TRUE(harness.of(batch).done) << "what is left of the chunk";
}

TEST(BlockScheduler, HigherPriorityIsPrefilledFirstButNobodyStarves) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 4;
  Harness harness(options);
  BlockWorkItem batch = harness.Item(1);
  batch.priority = 3;
  batch.call = OpenCall{Prompt(4, 1), 0, -1, true};
  const uint64_t low = harness.Submit(batch);
  uint64_t sequence = 2;
  int64_t served_before_low = 0;
  // As much high-priority work as can be done, without end.
  for (int step = 0; step < 300 && !harness.of(low).done; ++step) {
    BlockWorkItem high = harness.Item(sequence++);
    high.priority = 1;
    high.call = OpenCall{Prompt(4, static_cast<int32_t>(sequence)), 0, -1, true};
    harness.Submit(high);
    harness.Step();
    ++served_before_low;
  }
  EXPECT_TRUE(harness.of(low).done);
  EXPECT_GT(served_before_low, 100) << "priority counts";
}

TEST(BlockScheduler, AStepDecodesAtMostOneGroup) {
  BlockSchedulerOptions options = Options();
  options.groups = 2;
  options.min_group_blocks = 2;
  Harness harness(options);
  for (uint64_t sequence = 1; sequence <= 9; ++sequence) {
    harness.Open(sequence, Prompt(1, static_cast<int32_t>(sequence)), 2);
  }
  harness.RunUntilIdle();
  std::vector<uint64_t> appends;
  for (uint64_t sequence = 1; sequence <= 9; ++sequence) {
    appends.push_back(harness.Append(sequence, 1, {1, 1}));
  }
  harness.Step();
  EXPECT_EQ(harness.decoded, 5);
  for (size_t i = 0; i < 5; ++i) EXPECT_TRUE(harness.of(appends[i]).done) << "oldest first";
  harness.Step();
  EXPECT_EQ(harness.decoded, 4);
  // Few sequences are not split.
  for (uint64_t sequence = 3; sequence <= 9; ++sequence) harness.Close(sequence);
  harness.Append(1, 2, {1, 1});
  harness.Append(2, 2, {1, 1});
  harness.Step();
  EXPECT_EQ(harness.decoded, 2);
}

TEST(BlockScheduler, RepeatingTheLastBlockReturnsItsRowWithoutAStep) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(3, 1);
  harness.Open(1, prompt, 8);
  harness.RunUntilIdle();
  const uint64_t first = harness.Append(1, 3, {1, 2});
  harness.RunUntilIdle();
  const int64_t steps = harness.engine.steps();
  EXPECT_EQ(harness.row(harness.Append(1, 3, {1, 2})), harness.row(first));
  // The prompt's last block may be repeated too, as long as it is the last.
  EXPECT_EQ(harness.engine.steps(), steps);
  EXPECT_EQ(harness.code(harness.Append(1, 3, {1, 3})), StatusCode::kAborted);
  EXPECT_EQ(harness.code(harness.Append(1, 2, {1, 2})), StatusCode::kInvalidArgument);
  EXPECT_EQ(harness.code(harness.Append(1, 5, {1, 2})), StatusCode::kInvalidArgument);
  EXPECT_EQ(harness.code(harness.Append(1, -1, {1, 2})), StatusCode::kInvalidArgument);
  EXPECT_EQ(harness.code(harness.Append(9, 3, {1, 2})), StatusCode::kNotFound);
  const uint64_t next = harness.Append(1, 4, {5, 6});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(next), Harness::Expected(Joined(prompt, {1, 2, 5, 6})))
      << "what was refused changed nothing";
}

TEST(BlockScheduler, RepeatingTheLastBlockReturnsItsRowAlsoAfterManyStepsOfOthers) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(3, 1);
  harness.Open(1, prompt, 8);
  harness.Open(2, Prompt(3, 2), 20);
  harness.RunUntilIdle();
  harness.Append(1, 3, {1, 2});
  harness.RunUntilIdle();
  for (int64_t block = 3; block < 15; ++block) {
    harness.Append(2, block, {1, 1});
    harness.RunUntilIdle();
    const int64_t steps = harness.engine.steps();
    EXPECT_EQ(harness.row(harness.Append(1, 3, {1, 2})), Harness::Expected(Joined(prompt, {1, 2})));
    EXPECT_EQ(harness.engine.steps(), steps);
  }
}

TEST(BlockScheduler, OpeningAgainReturnsTheLastRow) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(6, 1);
  const uint64_t open = harness.Open(1, prompt, 8);
  const uint64_t during = harness.Open(1, prompt, 8);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(during), harness.row(open));
  EXPECT_EQ(harness.row(harness.Open(1, prompt, 8)), harness.row(open));
  EXPECT_EQ(harness.code(harness.Open(1, Prompt(6, 2), 8)), StatusCode::kAborted);
  EXPECT_EQ(harness.code(harness.Open(1, Prompt(5, 1), 8)), StatusCode::kAborted);
  harness.Append(1, 6, {1, 2});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(harness.Open(1, Joined(prompt, {1, 2}), 8)),
            Harness::Expected(Joined(prompt, {1, 2})));
  EXPECT_EQ(harness.load().sequences, 1);
}

TEST(BlockScheduler, SequencesOfDifferentGatewaysAreApart) {
  Harness harness;
  harness.scheduler.OpenStream(2, 8, harness.now);
  harness.Open(1, Prompt(2, 1));
  BlockWorkItem other = harness.Item(1);
  other.stream = 2;
  other.sequence.incarnation = 8;
  other.call = OpenCall{Prompt(3, 2)};
  const uint64_t id = harness.Submit(other);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(id), Harness::Expected(Prompt(3, 2)));
  EXPECT_EQ(harness.load().sequences, 2);
}

TEST(BlockScheduler, MalformedItemsFailAloneNamingTheField) {
  BlockSchedulerOptions options = Options();
  options.max_positions = 20;
  Harness harness(options);
  const uint64_t good = harness.Open(1, Prompt(2, 1));
  const auto refused = [&](uint64_t id, const char* text) {
    EXPECT_EQ(harness.code(id), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(harness.of(id).status.message()), HasSubstr(text));
  };
  refused(harness.Open(2, {}), "open.tokens");
  refused(harness.Open(2, {1, 2, 3}), "open.tokens");
  refused(harness.Open(2, {1, 100}), "open.tokens[1] is 100");
  refused(harness.Open(2, {-1, 5}), "open.tokens[0] is -1");
  refused(harness.Open(2, Prompt(3, 1), 0, 3), "open.first_context");
  refused(harness.Open(2, Prompt(3, 1), -1), "reserve_blocks");
  refused(harness.Open(2, Prompt(21, 1)), "max_position_embeddings is 20");
  refused(harness.Append(1, 2, {1}), "append.tokens");
  refused(harness.Append(1, 2, {1, 2, 3}), "append.tokens");
  refused(harness.Append(1, 2, {1, std::numeric_limits<int32_t>::max()}), "append.tokens[1]");
  refused(harness.Fork(3, 1, 0), "fork.blocks");
  refused(harness.Fork(3, 1, std::numeric_limits<int64_t>::max()), "fork.blocks");
  refused(harness.Fork(3, 1, 21), "fork.blocks: 21 blocks; the model's");
  BlockWorkItem empty = harness.Item(1);
  refused(harness.Submit(empty), "call");
  const uint64_t too_far = harness.Fork(4, 1, 3);
  harness.RunUntilIdle();
  refused(too_far, "the parent has 2");
  EXPECT_EQ(harness.row(good), Harness::Expected(Prompt(2, 1)));
  EXPECT_EQ(harness.load().sequences, 1);
}

TEST(BlockScheduler, AnAppendBeyondTheModelsPositionsIsRefused) {
  BlockSchedulerOptions options = Options();
  options.max_positions = 4;
  Harness harness(options);
  harness.Open(1, Prompt(3, 1), 100);
  harness.RunUntilIdle();
  harness.Append(1, 3, {1, 2});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(harness.Append(1, 4, {1, 2})), StatusCode::kInvalidArgument);
}

TEST(BlockScheduler, AReservationEndsAtTheModelsPositions) {
  BlockSchedulerOptions options = Options();
  options.max_positions = 8;
  options.num_pages = 2;
  Harness harness(options);
  // The last block of the output is reserved for, but never embedded.
  const uint64_t open = harness.Open(1, Prompt(6, 1), 3);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(open), Harness::Expected(Prompt(6, 1)));
  harness.Close(1);
  harness.Open(1, Prompt(4, 1));
  const uint64_t fork = harness.Fork(2, 1, 4, 5);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(fork), StatusCode::kOk);
}

TEST(BlockScheduler, AForkOfMoreBlocksThanCanBeCountedIsRefused) {
  for (const int64_t max_positions : {0, 8}) {
    BlockSchedulerOptions options = Options();
    options.max_positions = max_positions;
    Harness harness(options);
    harness.Open(1, Prompt(4, 1));
    const int64_t most = std::numeric_limits<int64_t>::max();
    const uint64_t fork = harness.Fork(2, 1, most, most);
    EXPECT_EQ(harness.code(fork), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(harness.of(fork).status.message()), HasSubstr("fork.blocks"));
  }
}

TEST(BlockScheduler, WhatCanNeverFitIsInvalidAndWhatDoesNotFitNowIsRefused) {
  BlockSchedulerOptions options = Options();
  options.num_pages = 8;
  Harness harness(options);
  const uint64_t never = harness.Open(1, Prompt(10, 1), 23);
  EXPECT_EQ(harness.code(never), StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(harness.of(never).status.message()), HasSubstr("9 KV pages"));
  EXPECT_EQ(harness.code(harness.Open(1, Prompt(4, 1), std::numeric_limits<int64_t>::max())),
            StatusCode::kInvalidArgument);
  harness.Open(1, Prompt(16, 1), 4);
  EXPECT_EQ(harness.code(harness.Open(2, Prompt(16, 2), 0)), StatusCode::kResourceExhausted)
      << "at once, without a step";
  EXPECT_EQ(harness.load().sequences, 1);
  harness.RunUntilIdle();
  harness.Close(1);
  const uint64_t fits = harness.Open(2, Prompt(16, 2), 0);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(fits), StatusCode::kOk) << "cached pages made room";
}

TEST(BlockScheduler, TheNumberOfSequencesIsBounded) {
  BlockSchedulerOptions options = Options();
  options.max_sequences = 2;
  Harness harness(options);
  harness.Open(1, Prompt(1, 1));
  harness.Open(2, Prompt(1, 2));
  EXPECT_EQ(harness.code(harness.Open(3, Prompt(1, 3))), StatusCode::kResourceExhausted);
  EXPECT_EQ(harness.code(harness.Fork(3, 1, 1)), StatusCode::kResourceExhausted);
  EXPECT_FALSE(harness.of(harness.Open(2, Prompt(1, 2))).done) << "a repetition is no new one";
}

TEST(BlockScheduler, ScoringDeliversEveryRowAndClosesItself) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 5;
  options.max_rows_per_reply = 2;
  Harness harness(options);
  const std::vector<int32_t> prompt = Prompt(12, 1);
  const uint64_t score = harness.Open(1, prompt, 0, 3, /*close_after=*/true);
  harness.RunUntilIdle();
  const Answer& answer = harness.of(score);
  EXPECT_TRUE(answer.done && answer.status.ok());
  EXPECT_EQ(answer.first_block, 3);
  EXPECT_EQ(answer.rows.size(), 9u);
  EXPECT_EQ(answer.replies, 1 + 3 + 1);
  for (size_t i = 0; i < answer.rows.size(); ++i) {
    EXPECT_EQ(answer.rows[i],
              Harness::Expected({prompt.begin(), prompt.begin() + static_cast<long>(2 * (i + 4))}));
  }
  EXPECT_EQ(harness.load().sequences, 0);
  EXPECT_EQ(harness.available_pages(), 64);
}

TEST(BlockScheduler, ATextIsNotScoredForAReaderThatIsBehind) {
  Harness harness;
  const uint64_t score = harness.Open(1, Prompt(12, 1), 0, 0, /*close_after=*/true);
  const uint64_t open = harness.Open(2, Prompt(12, 2), 8);
  harness.scheduler.SetSlowReaders({harness.stream});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(open), Harness::Expected(Prompt(12, 2))) << "what streams need goes on";
  const uint64_t append = harness.Append(2, 12, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(append), StatusCode::kOk);
  EXPECT_EQ(harness.of(score).replies, 0);
  EXPECT_TRUE(harness.scheduler.has_work());
  harness.scheduler.SetSlowReaders({harness.stream + 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(score), StatusCode::kOk);
  EXPECT_EQ(harness.of(score).rows.size(), 12u);
}

}  // namespace
}  // namespace blockserve
