#include "gateway/retry.h"

#include <gtest/gtest.h>

#include "gateway/backoff.h"

namespace blockserve {
namespace {

absl::Status Of(absl::StatusCode code) { return absl::Status(code, "why"); }

TEST(JudgeRowReply, Table) {
  using absl::StatusCode;
  EXPECT_EQ(JudgeRowReply(absl::OkStatus()), RowAction::kDone);
  EXPECT_EQ(JudgeRowReply(Of(StatusCode::kUnavailable)), RowAction::kElsewhere);
  EXPECT_EQ(JudgeRowReply(Of(StatusCode::kUnknown)), RowAction::kElsewhere);
  EXPECT_EQ(JudgeRowReply(Of(StatusCode::kCancelled)), RowAction::kElsewhere);
  EXPECT_EQ(JudgeRowReply(Of(StatusCode::kResourceExhausted)), RowAction::kWorkerFull);
  EXPECT_EQ(JudgeRowReply(Of(StatusCode::kInternal)), RowAction::kSecondOpinion);
  EXPECT_EQ(JudgeRowReply(Of(StatusCode::kInvalidArgument)), RowAction::kFail);
  EXPECT_EQ(JudgeRowReply(Of(StatusCode::kDeadlineExceeded)), RowAction::kFail);
}

TEST(JudgeBlockReply, Table) {
  using absl::StatusCode;
  struct Case {
    StatusCode code;
    BlockAction open, append, fork;
  };
  const Case cases[] = {
      {StatusCode::kOk, BlockAction::kDone, BlockAction::kDone, BlockAction::kDone},
      {StatusCode::kResourceExhausted, BlockAction::kOtherReplica, BlockAction::kAgain,
       BlockAction::kOtherReplica},
      {StatusCode::kUnavailable, BlockAction::kOtherReplica, BlockAction::kReopen,
       BlockAction::kReopen},
      {StatusCode::kNotFound, BlockAction::kReopen, BlockAction::kReopen, BlockAction::kReopen},
      {StatusCode::kAborted, BlockAction::kReopen, BlockAction::kReopen, BlockAction::kReopen},
      {StatusCode::kInvalidArgument, BlockAction::kFail, BlockAction::kReopen,
       BlockAction::kReopen},
      {StatusCode::kInternal, BlockAction::kFail, BlockAction::kFail, BlockAction::kFail},
      {StatusCode::kDeadlineExceeded, BlockAction::kFail, BlockAction::kFail, BlockAction::kFail},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(JudgeBlockReply(BlockCall::kOpen, Of(c.code), false), c.open) << Of(c.code);
    EXPECT_EQ(JudgeBlockReply(BlockCall::kAppend, Of(c.code), false), c.append) << Of(c.code);
    EXPECT_EQ(JudgeBlockReply(BlockCall::kFork, Of(c.code), false), c.fork) << Of(c.code);
    EXPECT_EQ(JudgeBlockReply(BlockCall::kClose, Of(c.code), false), BlockAction::kDone);
  }
  EXPECT_EQ(JudgeBlockReply(BlockCall::kAppend, Of(StatusCode::kUnavailable), /*suspended=*/true),
            BlockAction::kReopen);
}

TEST(RowHistory, ARowThatHasSilencedTwoWorkersRunsAlone) {
  RowHistory history;
  history.Stalled();
  EXPECT_FALSE(history.suspect());
  history.Stalled();
  EXPECT_EQ(history.cohort(), 1);
  EXPECT_TRUE(history.last_try());
  EXPECT_FALSE(history.given_up());
}

TEST(RowHistory, AWorkersDeathMakesARowRunApartAndTwoAloneEndIt) {
  RowHistory history;
  EXPECT_FALSE(history.suspect());
  history.WorkerDied(/*alone=*/false, /*rows=*/400);
  EXPECT_EQ(history.cohort(), 20);
  history.WorkerDied(/*alone=*/false, /*rows=*/20);
  EXPECT_EQ(history.cohort(), 1);
  EXPECT_FALSE(history.given_up());
  history.WorkerDied(/*alone=*/true, /*rows=*/1);
  EXPECT_FALSE(history.given_up());
  EXPECT_TRUE(history.last_try());
  history.WorkerDied(/*alone=*/true, /*rows=*/1);
  EXPECT_TRUE(history.given_up());
}

TEST(RowHistory, AfterADeathWithFewRowsTheyRunOneByOne) {
  RowHistory history;
  history.WorkerDied(/*alone=*/false, /*rows=*/16);
  EXPECT_EQ(history.cohort(), 1);
  EXPECT_EQ(CohortSize(1), 1);
  EXPECT_EQ(CohortSize(17), 5);
  EXPECT_EQ(CohortSize(4096), 64);
}

TEST(RowHistory, WhatSilencedAWorkerFirstCostsNoMoreThanFour) {
  RowHistory history;
  history.Stalled();
  history.WorkerDied(/*alone=*/false, /*rows=*/400);
  EXPECT_EQ(history.cohort(), 20);
  history.WorkerDied(/*alone=*/false, /*rows=*/20);
  EXPECT_TRUE(history.last_try());
  EXPECT_FALSE(history.given_up());
  history.WorkerDied(/*alone=*/true, /*rows=*/1);
  EXPECT_TRUE(history.given_up());
}

TEST(RowHistory, AWorkerThatIsBackWasNotKilled) {
  RowHistory history;
  for (int i = 0; i < 20; ++i) {
    history.WorkerDied(/*alone=*/false, /*rows=*/400);
    history.WorkerIsBack(/*alone=*/false);
    EXPECT_FALSE(history.suspect());
    history.WorkerDied(/*alone=*/true, /*rows=*/1);
    history.WorkerIsBack(/*alone=*/true);
    EXPECT_FALSE(history.suspect());
  }
}

TEST(RowHistory, PatienceGrowsWithEveryStall) {
  RowHistory history;
  EXPECT_EQ(history.Patience(absl::Seconds(10)), absl::Seconds(10));
  history.Stalled();
  EXPECT_EQ(history.Patience(absl::Seconds(10)), absl::Seconds(20));
  for (int i = 0; i < 100; ++i) history.Stalled();
  EXPECT_EQ(history.Patience(absl::Seconds(10)), absl::Seconds(640));
}

TEST(SequenceHistory, GivenUpOnlyWithoutProgressBetween) {
  SequenceHistory history;
  for (int i = 0; i < 3; ++i) history.ReplicaLost();
  EXPECT_FALSE(history.given_up());
  history.Progress();
  for (int i = 0; i < 3; ++i) history.ReplicaLost();
  EXPECT_FALSE(history.given_up());
  history.ReplicaLost();
  EXPECT_TRUE(history.given_up());
}

TEST(SequenceHistory, AfterTheSecondLossItIsOpenedAloneUnlessTheProcessWasBack) {
  SequenceHistory history;
  history.ReplicaLost();
  EXPECT_FALSE(history.must_open_alone());
  history.ReplicaLost();
  EXPECT_TRUE(history.must_open_alone());
  history.ReplicaIsBack();
  EXPECT_FALSE(history.must_open_alone());
  for (int i = 0; i < 20; ++i) {
    history.ReplicaLost();
    history.ReplicaIsBack();
  }
  EXPECT_FALSE(history.given_up());
}

TEST(GiveUpTime, TheTiersWaitOrShortlyBeforeTheDeadline) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  EXPECT_EQ(GiveUpTime(now, absl::Seconds(10), now + absl::Minutes(1)), now + absl::Seconds(10));
  EXPECT_EQ(GiveUpTime(now, absl::Seconds(10), now + absl::Seconds(2)),
            now + absl::Milliseconds(1800));
  EXPECT_EQ(GiveUpTime(absl::InfiniteFuture(), absl::Seconds(10), now + absl::Seconds(2)),
            now + absl::Milliseconds(1800));
}

TEST(ClientStatus, KeepsWhatConcernsTheClientAndHidesTheRest) {
  EXPECT_EQ(ClientStatus(Of(absl::StatusCode::kInvalidArgument), "t").code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ClientStatus(Of(absl::StatusCode::kInternal), "t").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ClientStatus(Of(absl::StatusCode::kAborted), "t").code(), absl::StatusCode::kInternal);
  EXPECT_EQ(ClientStatus(Of(absl::StatusCode::kInternal), "t").message(), "t: why");
}

TEST(Backoff, GrowsToItsBoundWithJitterAndStartsAgain) {
  Backoff backoff(absl::Milliseconds(100), absl::Seconds(1), /*seed=*/7);
  absl::Duration step = absl::Milliseconds(100);
  for (int i = 0; i < 20; ++i) {
    const absl::Duration next = backoff.Next();
    EXPECT_GE(next, step / 2);
    EXPECT_LE(next, step);
    step = std::min(absl::Seconds(1), 2 * step);
  }
  backoff.Reset();
  EXPECT_LE(backoff.Next(), absl::Milliseconds(100));
  Backoff one(absl::Seconds(1), absl::Seconds(1), 1);
  Backoff two(absl::Seconds(1), absl::Seconds(1), 2);
  EXPECT_NE(one.Next(), two.Next());
}

}  // namespace
}  // namespace blockserve
