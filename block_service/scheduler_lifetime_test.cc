// How items and sequences end: cancelled, too late, with their stream, suspended for want of pages,
// failed or drained.
#include <limits>
#include <vector>

#include "block_service/scheduler.h"
#include "block_service/scheduler_harness.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using absl::StatusCode;
using Harness = SchedulerHarness;
using testing::HasSubstr;

BlockSchedulerOptions Options() { return Harness::DefaultOptions(); }

TEST(BlockSchedulerLifetime, CancelledItemsThatWaitAreAnswered) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 4;
  Harness harness(options);
  harness.Open(1, Prompt(2, 1), 8);
  harness.RunUntilIdle();
  const uint64_t append = harness.Append(1, 2, {1, 1});
  const uint64_t cancel = harness.Cancel(append);
  EXPECT_EQ(harness.code(append), StatusCode::kCancelled);
  EXPECT_EQ(harness.code(cancel), StatusCode::kOk);
  EXPECT_EQ(harness.code(harness.Cancel(append)), StatusCode::kOk) << "too late is no error";
  const uint64_t again = harness.Append(1, 2, {2, 2});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(again), Harness::Expected(Joined(Prompt(2, 1), {2, 2})))
      << "the sequence stays";
  const uint64_t open = harness.Open(2, Prompt(12, 2), 8);
  harness.Step();
  harness.Cancel(open);
  EXPECT_EQ(harness.code(open), StatusCode::kCancelled) << "also when partly prefilled";
  EXPECT_EQ(harness.load().sequences, 1);
  EXPECT_FALSE(harness.Step()) << "no work is left for it";
}

TEST(BlockSchedulerLifetime, ACancelIsForItemsOfItsSequenceAlone) {
  Harness harness;
  harness.Open(1, Prompt(2, 1), 8);
  harness.Open(2, Prompt(2, 2), 8);
  harness.RunUntilIdle();
  const uint64_t append = harness.Append(1, 2, {1, 1});
  for (const uint64_t other : {2, 3}) {
    EXPECT_EQ(harness.code(harness.Cancel(append, other)), StatusCode::kOk);
  }
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(append), Harness::Expected(Joined(Prompt(2, 1), {1, 1})));
}

TEST(BlockSchedulerLifetime, FreesPagesBeforeTheNextStepWhenASequenceIsClosedOrCancelled) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 4;
  Harness harness(options);
  const uint64_t open = harness.Open(1, Prompt(20, 1), 8);
  harness.Open(2, Prompt(20, 2), 8);
  harness.Step();
  EXPECT_EQ(harness.available_pages(), 64 - 7 - 7);
  harness.Cancel(open);
  EXPECT_EQ(harness.available_pages(), 64 - 7);
  harness.Close(2);
  EXPECT_EQ(harness.available_pages(), 64);
  EXPECT_FALSE(harness.Step());
}

TEST(BlockSchedulerLifetime, ItemsWhoseTimeIsOverAreNotWorkedOn) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 4;
  Harness harness(options);
  BlockWorkItem late = harness.Item(1);
  late.deadline = harness.now;
  late.call = OpenCall{Prompt(2, 1)};
  EXPECT_EQ(harness.code(harness.Submit(late)), StatusCode::kDeadlineExceeded);
  BlockWorkItem waits = harness.Item(2);
  waits.deadline = harness.now + absl::Milliseconds(50);
  waits.call = OpenCall{Prompt(20, 2)};
  const uint64_t open = harness.Submit(waits);
  harness.Step();
  harness.now += absl::Milliseconds(50);
  const int64_t computed = harness.engine.computed_blocks();
  EXPECT_FALSE(harness.Step());
  EXPECT_EQ(harness.code(open), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(harness.engine.computed_blocks(), computed);
  EXPECT_EQ(harness.load().sequences, 0);
}

TEST(BlockSchedulerLifetime, AnExpiredAppendLeavesItsSequence) {
  Harness harness;
  harness.Open(1, Prompt(2, 1), 8);
  harness.RunUntilIdle();
  BlockWorkItem item = harness.Item(1);
  item.deadline = harness.now + absl::Milliseconds(1);
  item.call = AppendCall{2, {1, 1}};
  const uint64_t late = harness.Submit(item);
  const uint64_t behind = harness.Append(1, 2, {2, 2});
  harness.now += absl::Milliseconds(1);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(late), StatusCode::kDeadlineExceeded);
  EXPECT_EQ(harness.row(behind), Harness::Expected(Joined(Prompt(2, 1), {2, 2})));
}

TEST(BlockSchedulerLifetime, SequencesOutliveABrokenStreamByTheLease) {
  Harness harness;
  harness.Open(1, Prompt(5, 1), 8);
  harness.RunUntilIdle();
  harness.scheduler.CloseStream(1, harness.now);
  EXPECT_EQ(harness.scheduler.NextWakeUp(), harness.now + absl::Seconds(10));
  harness.now += absl::Milliseconds(9999);
  harness.Step();
  EXPECT_EQ(harness.load().sequences, 1);
  harness.scheduler.OpenStream(2, Harness::kGateway, harness.now);
  harness.stream = 2;
  EXPECT_EQ(harness.scheduler.NextWakeUp(), absl::InfiniteFuture());
  harness.now += absl::Hours(1);
  const uint64_t append = harness.Append(1, 5, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(append), Harness::Expected(Joined(Prompt(5, 1), {1, 1})));
  harness.scheduler.CloseStream(2, harness.now);
  harness.now += absl::Seconds(10);
  harness.Step();
  EXPECT_EQ(harness.load().sequences, 0);
  EXPECT_EQ(harness.available_pages(), 64);
}

TEST(BlockSchedulerLifetime, AnotherGatewayDoesNotInheritSequences) {
  Harness harness;
  harness.Open(1, Prompt(5, 1), 8);
  harness.RunUntilIdle();
  harness.scheduler.CloseStream(1, harness.now);
  harness.scheduler.OpenStream(2, Harness::kGateway + 1, harness.now);
  harness.now += absl::Seconds(10);
  harness.Step();
  EXPECT_EQ(harness.load().sequences, 0);
}

// Another gateway, on a stream of its own.
constexpr uint64_t kOther = Harness::kGateway + 1;

uint64_t OpenByOther(Harness& harness, StreamId stream, uint64_t sequence,
                     std::vector<int32_t> tokens, int64_t reserve_blocks) {
  BlockWorkItem item = harness.Item(sequence);
  item.stream = stream;
  item.sequence.incarnation = kOther;
  item.call = OpenCall{std::move(tokens), reserve_blocks};
  return harness.Submit(item);
}

TEST(BlockSchedulerLifetime, SequencesWithoutAGatewayMakeRoomForOthersOldestLeaseFirst) {
  BlockSchedulerOptions options = Options();
  options.max_sequences = 3;
  Harness harness(options);
  harness.scheduler.OpenStream(2, kOther, harness.now);
  harness.Open(1, Prompt(5, 1), 8);
  harness.Open(2, Prompt(5, 2), 8);
  harness.RunUntilIdle();
  harness.scheduler.CloseStream(1, harness.now);
  const uint64_t last = OpenByOther(harness, 2, 1, Prompt(5, 3), 8);
  const uint64_t beyond = OpenByOther(harness, 2, 2, Prompt(5, 4), 8);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(last), StatusCode::kOk);
  EXPECT_EQ(harness.code(beyond), StatusCode::kOk);
  EXPECT_EQ(harness.load().sequences, 3);
  // It comes back: what stayed is its own, what made room is opened again from its tokens.
  harness.scheduler.OpenStream(3, Harness::kGateway, harness.now);
  harness.stream = 3;
  const uint64_t kept = harness.Append(1, 5, {1, 1});
  const uint64_t gone = harness.Append(2, 5, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(kept), Harness::Expected(Joined(Prompt(5, 1), {1, 1})));
  EXPECT_EQ(harness.code(gone), StatusCode::kNotFound);
  EXPECT_EQ(harness.code(harness.Open(2, Joined(Prompt(5, 2), {1, 1}), 7)),
            StatusCode::kResourceExhausted)
      << "nobody who is here makes room";
  EXPECT_EQ(harness.load().sequences, 3);
}

TEST(BlockSchedulerLifetime, OfEqualLeasesTheNewestSequenceGoesFirst) {
  BlockSchedulerOptions options = Options();
  options.max_sequences = 8;
  Harness harness(options);
  harness.scheduler.OpenStream(2, kOther, harness.now);
  for (uint64_t sequence = 1; sequence <= 8; ++sequence) {
    harness.Open(sequence, Prompt(2, static_cast<int>(sequence)), 1);
  }
  harness.RunUntilIdle();
  harness.scheduler.CloseStream(1, harness.now);
  for (uint64_t sequence = 1; sequence <= 5; ++sequence) {
    OpenByOther(harness, 2, sequence, Prompt(2, 9), 1);
  }
  harness.RunUntilIdle();
  harness.scheduler.OpenStream(3, Harness::kGateway, harness.now);
  harness.stream = 3;
  for (uint64_t sequence = 1; sequence <= 8; ++sequence) {
    const uint64_t append = harness.Append(sequence, 2, {1, 1});
    harness.RunUntilIdle();
    EXPECT_EQ(harness.code(append), sequence <= 3 ? StatusCode::kOk : StatusCode::kNotFound)
        << sequence;
  }
}

TEST(BlockSchedulerLifetime, PagesOfSequencesWithoutAGatewayCountAsAvailableAndAreGivenUpFirst) {
  BlockSchedulerOptions options = Options();
  options.num_pages = 12;
  options.reserve_tokens = 2;  // one block
  Harness harness(options);
  harness.scheduler.OpenStream(2, kOther, harness.now);
  const uint64_t live = OpenByOther(harness, 2, 1, Prompt(15, 1), 20);  // 4 pages
  harness.Open(1, Prompt(15, 2), 20);
  harness.Open(2, Prompt(15, 3), 20);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.available_pages(), 0);
  harness.scheduler.CloseStream(1, harness.now);
  EXPECT_EQ(harness.available_pages(), 8);
  // More than all of them have: refused, and they stay.
  const uint64_t large = OpenByOther(harness, 2, 2, Prompt(35, 4), 1);
  EXPECT_EQ(harness.code(large), StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(harness.of(large).status.message()), HasSubstr("8 of 12 pages are free"));
  EXPECT_EQ(harness.available_pages(), 8);
  // One that grows takes the page of theirs, not of those who are here.
  const uint64_t newest = OpenByOther(harness, 2, 3, Prompt(3, 5), 1);
  const auto append = [&](uint64_t sequence, int64_t index) {
    BlockWorkItem item = harness.Item(sequence);
    item.stream = 2;
    item.sequence.incarnation = kOther;
    item.call = AppendCall{index, {1, 1}};
    const uint64_t id = harness.Submit(item);
    harness.RunUntilIdle();
    return id;
  };
  harness.RunUntilIdle();
  for (int64_t block = 15; block < 30; ++block) {
    EXPECT_EQ(harness.code(append(1, block)), StatusCode::kOk);
  }
  EXPECT_EQ(harness.code(append(3, 3)), StatusCode::kOk) << "the newest is still there";
  EXPECT_EQ(harness.code(live), StatusCode::kOk);
  EXPECT_EQ(harness.code(newest), StatusCode::kOk);
  // Those that gave way say so when their gateway is back.
  harness.scheduler.OpenStream(3, Harness::kGateway, harness.now);
  harness.stream = 3;
  const uint64_t told = harness.Append(2, 15, {1, 1});
  EXPECT_EQ(harness.code(told), StatusCode::kUnavailable);
  EXPECT_TRUE(harness.of(told).suspended);
}

TEST(BlockSchedulerLifetime, AForkTakesPagesOfSequencesWithoutAGateway) {
  BlockSchedulerOptions options = Options();
  options.num_pages = 8;
  Harness harness(options);
  harness.scheduler.OpenStream(2, kOther, harness.now);
  OpenByOther(harness, 2, 1, Prompt(14, 1), 0);
  harness.Open(1, Prompt(15, 2), 0);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.available_pages(), 0);
  harness.scheduler.CloseStream(1, harness.now);
  BlockWorkItem fork = harness.Item(2);
  fork.stream = 2;
  fork.sequence.incarnation = kOther;
  fork.call = ForkCall{1, 14, 4};
  const uint64_t id = harness.Submit(fork);
  EXPECT_EQ(harness.code(id), StatusCode::kOk);
}

TEST(BlockSchedulerLifetime, AStreamThatBreaksTakesItsWaitingItemsWithIt) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 4;
  Harness harness(options);
  harness.Open(1, Prompt(3, 1), 8);
  harness.RunUntilIdle();
  const uint64_t append = harness.Append(1, 3, {1, 1});
  const uint64_t open = harness.Open(2, Prompt(20, 2));
  const uint64_t fork = harness.Fork(3, 2, 20);
  harness.Step();
  const uint64_t second = harness.Append(1, 4, {1, 1});
  harness.scheduler.CloseStream(1, harness.now);
  EXPECT_FALSE(harness.Step());
  EXPECT_TRUE(harness.of(append).done) << "was in the step that ended before";
  EXPECT_FALSE(harness.of(second).done || harness.of(open).done || harness.of(fork).done);
  EXPECT_EQ(harness.load().sequences, 1) << "only what was open is kept";
  harness.scheduler.OpenStream(2, Harness::kGateway, harness.now);
  harness.stream = 2;
  const uint64_t again = harness.Append(1, 4, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(again), Harness::Expected(Joined(Prompt(3, 1), {1, 1, 1, 1})));
}

TEST(BlockSchedulerLifetime, AnOldStreamsLateEndDoesNotTouchItsSuccessor) {
  Harness harness;
  harness.Open(1, Prompt(3, 1), 8);
  harness.RunUntilIdle();
  harness.scheduler.OpenStream(2, Harness::kGateway, harness.now);
  harness.scheduler.CloseStream(1, harness.now);
  harness.now += absl::Minutes(1);
  harness.Step();
  EXPECT_EQ(harness.load().sequences, 1);
}

TEST(BlockSchedulerLifetime, AStreamThatOvertakesTheEndOfTheOldOneKeepsItsItems) {
  Harness harness;
  harness.Open(2, Prompt(4, 2), 8);
  harness.RunUntilIdle();
  harness.Open(1, Prompt(3, 1), 8);
  harness.Fork(3, 1, 3);
  harness.scheduler.OpenStream(2, Harness::kGateway, harness.now);
  harness.stream = 2;
  const uint64_t open = harness.Open(1, Prompt(3, 1), 8);
  const uint64_t fork = harness.Fork(3, 1, 3);
  const uint64_t append = harness.Append(3, 3, {1, 1});
  harness.scheduler.CloseStream(1, harness.now);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(open), Harness::Expected(Prompt(3, 1)));
  EXPECT_EQ(harness.code(fork), StatusCode::kOk);
  EXPECT_EQ(harness.row(append), Harness::Expected(Joined(Prompt(3, 1), {1, 1})));
  // What was open stays so, and is not on a lease.
  harness.now += absl::Minutes(1);
  harness.Step();
  EXPECT_EQ(harness.load().sequences, 3);
}

TEST(BlockSchedulerLifetime, TheNewestGivesWayWhenPagesRunOut) {
  BlockSchedulerOptions options = Options();
  options.num_pages = 8;
  options.reserve_tokens = 4;
  Harness harness(options);
  harness.Open(1, Prompt(12, 1), 20);
  harness.Open(2, Prompt(12, 2), 20);
  harness.RunUntilIdle();  // 4 pages each: all taken
  std::vector<int32_t> first = Prompt(12, 1), second = Prompt(12, 2);
  for (int64_t block = 12; block < 16; ++block) {
    harness.Append(1, block, {1, 1});
    harness.Append(2, block, {2, 2});
    first = Joined(first, {1, 1});
    second = Joined(second, {2, 2});
  }
  harness.RunUntilIdle();
  const uint64_t older = harness.Append(1, 16, {1, 1});
  const uint64_t newer = harness.Append(2, 16, {2, 2});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(older), Harness::Expected(Joined(first, {1, 1})));
  EXPECT_EQ(harness.code(newer), StatusCode::kUnavailable);
  EXPECT_TRUE(harness.of(newer).suspended);
  EXPECT_EQ(harness.code(harness.Append(2, 16, {2, 2})), StatusCode::kNotFound) << "it is gone";
  harness.Close(1);
  const uint64_t reopened = harness.Open(2, second, 8);
  const uint64_t again = harness.Append(2, 16, {2, 2});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(reopened), Harness::Expected(second));
  EXPECT_EQ(harness.row(again), Harness::Expected(Joined(second, {2, 2})));
}

TEST(BlockSchedulerLifetime, ASuspendedSequenceThatWasIdleHearsOfItLater) {
  BlockSchedulerOptions options = Options();
  options.num_pages = 8;
  options.reserve_tokens = 2;
  Harness harness(options);
  harness.Open(1, Prompt(15, 1), 9);
  harness.Open(2, Prompt(15, 2), 9);
  harness.RunUntilIdle();
  harness.Append(1, 15, {1, 1});
  harness.Append(2, 15, {1, 1});
  harness.RunUntilIdle();
  const uint64_t grows = harness.Append(1, 16, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(grows), StatusCode::kOk);
  const uint64_t fork = harness.Fork(3, 2, 4);
  EXPECT_EQ(harness.code(fork), StatusCode::kUnavailable);
  EXPECT_TRUE(harness.of(fork).suspended);
  const uint64_t told = harness.Append(2, 16, {1, 1});
  EXPECT_EQ(harness.code(told), StatusCode::kUnavailable);
  EXPECT_TRUE(harness.of(told).suspended);
  EXPECT_EQ(harness.load().sequences, 1);
}

TEST(BlockSchedulerLifetime, AForkThatWaitsForASequenceThatGivesWayIsSuspendedToo) {
  BlockSchedulerOptions options = Options();
  options.num_pages = 8;
  options.reserve_tokens = 2;
  Harness harness(options);
  harness.Open(1, Prompt(15, 1), 9);
  harness.Open(2, Prompt(15, 2), 9);
  harness.RunUntilIdle();
  harness.Append(1, 15, {1, 1});
  harness.Append(2, 15, {1, 1});
  harness.RunUntilIdle();
  harness.Append(1, 16, {1, 1});
  const uint64_t parent = harness.Append(2, 16, {1, 1});
  const uint64_t fork = harness.Fork(3, 2, 17);
  harness.RunUntilIdle();
  EXPECT_TRUE(harness.of(parent).suspended);
  EXPECT_EQ(harness.code(fork), StatusCode::kUnavailable);
  EXPECT_TRUE(harness.of(fork).suspended);
  EXPECT_EQ(harness.load().sequences, 1);
}

// One after another, the eight blocks that a sequence of eight has reserved.
void AppendReserved(Harness& harness, uint64_t sequence, const std::vector<int32_t>& tokens) {
  for (int64_t block = 8; block < 16; ++block) {
    const uint64_t append = harness.Append(sequence, block, tokens);
    harness.RunUntilIdle();
    EXPECT_EQ(harness.code(append), StatusCode::kOk);
  }
}

TEST(BlockSchedulerLifetime, ASequenceIsNotSuspendedWithinItsReservation) {
  BlockSchedulerOptions options = Options();
  options.num_pages = 8;
  options.reserve_tokens = 16;  // 8 blocks: two pages
  Harness harness(options);
  harness.Open(1, Prompt(8, 1), 24);
  harness.RunUntilIdle();
  harness.Open(2, Prompt(8, 2), 8);
  harness.RunUntilIdle();
  // The first needs more than it reserved; the second, newer, still has its share to come.
  AppendReserved(harness, 1, {1, 1});
  const uint64_t grows = harness.Append(1, 16, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(grows), StatusCode::kUnavailable);
  EXPECT_TRUE(harness.of(grows).suspended);
  AppendReserved(harness, 2, {1, 1});
}

TEST(BlockSchedulerLifetime, AForkIsNotSuspendedWithinItsReservation) {
  BlockSchedulerOptions options = Options();
  options.num_pages = 6;
  options.reserve_tokens = 16;  // 8 blocks: two pages
  Harness harness(options);
  harness.Open(1, Prompt(8, 1), 16);
  harness.RunUntilIdle();
  const uint64_t fork = harness.Fork(2, 1, 8, 8);  // shares the prompt's two pages
  EXPECT_EQ(harness.code(fork), StatusCode::kOk) << harness.of(fork).status;
  AppendReserved(harness, 1, {1, 1});
  // The parent needs a page more; the fork, newer, still has its share to come.
  const uint64_t grows = harness.Append(1, 16, {1, 1});
  harness.RunUntilIdle();
  EXPECT_TRUE(harness.of(grows).suspended);
  AppendReserved(harness, 2, {2, 2});
}

TEST(BlockSchedulerLifetime, ANonFiniteRowFailsItsOwnItemAlone) {
  Harness harness;
  harness.Open(1, Prompt(2, 1), 4);
  harness.Open(2, Prompt(2, 2), 4);
  harness.RunUntilIdle();
  const uint64_t bad = harness.Append(1, 2, {TestBlockEngine::kPoison, 1});
  const uint64_t good = harness.Append(2, 2, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(bad), StatusCode::kInternal);
  EXPECT_EQ(harness.row(good), Harness::Expected(Joined(Prompt(2, 2), {1, 1})));
  EXPECT_EQ(harness.load().sequences, 1);
}

TEST(BlockSchedulerLifetime, AWideRowIsFiniteOnlyWhereAllOfItIs) {
  constexpr size_t kWidth = 300;
  using Limits = std::numeric_limits<float>;
  const auto outcome = [](size_t index, float value) {
    BlockSchedulerOptions options = Harness::DefaultOptions();
    options.context_width = kWidth;
    options.copy_page = [](int32_t, int32_t, int32_t) {};
    BlockScheduler scheduler(options);
    scheduler.OpenStream(1, 7, absl::UnixEpoch());
    BlockWorkItem item;
    item.stream = 1;
    item.id = 1;
    item.sequence = {7, 1};
    item.call = OpenCall{{1, 1}};
    scheduler.Submit(std::move(item), absl::UnixEpoch());
    EXPECT_EQ(scheduler.PlanStep(absl::UnixEpoch()).context_rows, 1);
    const auto contexts = std::make_shared<float[]>(kWidth);
    contexts[index] = value;
    scheduler.FinishStep(absl::OkStatus(), contexts);
    EXPECT_EQ(scheduler.outbox().items.size(), 1u);
    return scheduler.outbox().items.at(0).status.code();
  };
  for (size_t index = 0; index < kWidth; ++index) {
    for (const float bad : {Limits::quiet_NaN(), Limits::infinity(), -Limits::infinity()}) {
      EXPECT_EQ(outcome(index, bad), StatusCode::kInternal) << index << " is " << bad;
    }
    for (const float good : {Limits::max(), Limits::lowest(), Limits::denorm_min(), -0.0f}) {
      EXPECT_EQ(outcome(index, good), StatusCode::kOk) << index << " is " << good;
    }
  }
}

TEST(BlockSchedulerLifetime, AStepThatFailsFailsItsItemsAndLeavesTheRest) {
  Harness harness;
  harness.Open(1, Prompt(2, 1), 4);
  harness.Open(2, Prompt(2, 2), 4);
  harness.RunUntilIdle();
  harness.engine.FailNextSteps(absl::InternalError("the device is gone"));
  const uint64_t bad = harness.Append(1, 2, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(bad), StatusCode::kInternal);
  harness.engine.FailNextSteps(absl::OkStatus());
  const uint64_t good = harness.Append(2, 2, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(good), StatusCode::kOk);
}

TEST(BlockSchedulerLifetime, WhileDrainingSequencesGoOnAndNewOnesAreRefused) {
  Harness harness;
  harness.Open(1, Prompt(2, 1), 4);
  harness.RunUntilIdle();
  harness.scheduler.StartDraining();
  EXPECT_EQ(harness.code(harness.Open(2, Prompt(2, 2))), StatusCode::kUnavailable);
  const uint64_t append = harness.Append(1, 2, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(append), StatusCode::kOk);
}

}  // namespace
}  // namespace blockserve
