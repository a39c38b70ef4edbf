// The core over token workers that die, freeze, slow down, refuse or leave.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "gateway/failover_fixture.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

using TokenFailoverTest = FailoverFixture;

TEST_F(TokenFailoverTest, ATokenWorkerKilled) {
  MakeCore(1, 3);
  const std::vector<Stream> streams = Load(30, 60);
  loop_.Advance(absl::Milliseconds(10));
  workers_[1]->Kill();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, TheOnlyTokenWorkerKilledAndBack) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 40);
  loop_.Advance(absl::Milliseconds(10));
  workers_[0]->Kill();
  loop_.Advance(absl::Seconds(5));
  workers_[0]->Restart();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, AFrozenTokenWorkersRowsRunElsewhereAndItsLateAnswersAreIgnored) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 60);
  loop_.Advance(absl::Milliseconds(10));
  workers_[0]->Freeze();
  loop_.Advance(options_.tier.progress_bound + absl::Seconds(1));
  workers_[0]->Thaw();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, AWorkerFrozenForGoodHoldsNobodyUp) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 60);
  loop_.Advance(absl::Milliseconds(10));
  workers_[0]->Freeze();
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(30)));
  for (const Stream& stream : streams) ExpectExact(stream);
}

// By its own history and by its peers, not by the bound.
TEST_F(TokenFailoverTest, AFrozenTokenWorkerIsFoundWithinASecond) {
  MakeCore(1, 3);
  const std::vector<Stream> streams = Load(12, 2000);
  loop_.Advance(absl::Milliseconds(200));
  workers_[0]->Freeze();
  loop_.Advance(absl::Milliseconds(700));
  std::vector<size_t> before;
  for (const Stream& stream : streams) before.push_back(Received(stream));
  loop_.Advance(absl::Milliseconds(50));
  for (size_t i = 0; i < streams.size(); ++i) {
    EXPECT_TRUE(streams[i].sink->done > 0 || Received(streams[i]) > before[i]);
  }
  EXPECT_EQ(core_->token_tier().stats().ejected, 1);
  const TokenTierStats& stats = core_->token_tier().stats();
  EXPECT_GT(stats.retried_silent + stats.hedges_won, 0);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
}

TEST_F(TokenFailoverTest, WhereEveryWorkerIsSilentNoneIsToBlame) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 400);
  loop_.Advance(absl::Milliseconds(100));
  for (const auto& worker : workers_) worker->Freeze();
  loop_.Advance(absl::Seconds(5));
  for (const auto& worker : workers_) worker->Thaw();
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(core_->token_tier().stats().ejected, 0);
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, AWorkerThatAnswersProbesAgainGetsRowsAgainFewAtFirst) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 6000);
  loop_.Advance(absl::Milliseconds(100));
  workers_[0]->Freeze();
  loop_.Advance(absl::Seconds(2));
  EXPECT_EQ(core_->token_tier().stats().ejected, 1);
  const int rows = workers_[0]->rows;
  workers_[0]->largest_batch = 0;
  workers_[0]->Thaw();
  ASSERT_TRUE(
      loop_.RunUntil([&] { return core_->token_tier().stats().returned == 1; }, absl::Seconds(3)));
  loop_.Advance(absl::Milliseconds(300));
  EXPECT_GT(workers_[0]->rows, rows + 100);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, ASlowWorkersRowsAreHedgedAndTheFirstAnswerWins) {
  MakeCore(1, 3);
  std::vector<Stream> streams = Load(12, 800);
  ASSERT_TRUE(RunUntilDone(streams));  // what is usual is known
  workers_[0]->service_time = absl::Milliseconds(400);
  const int64_t rows_before = core_->token_tier().stats().rows;
  std::vector<Stream> more;
  for (uint64_t i = 0; i < 6; ++i) more.push_back(Generate(Request(5, 400, 100 + i)));
  ASSERT_TRUE(RunUntilDone(more));
  const TokenTierStats& stats = core_->token_tier().stats();
  EXPECT_GT(stats.hedges_won, 0);
  EXPECT_LE(stats.hedged, 8 + (stats.rows - rows_before) / 20);
  // Lost again and again, it is taken out of turn.
  EXPECT_GE(stats.ejected, 1);
  ExpectAllExact(more);
}

TEST_F(TokenFailoverTest, ABusyTierIsNotGivenTheSameWorkTwice) {
  MakeCore(1, 3);
  for (const auto& worker : workers_) worker->busy_share = 0.9f;
  std::vector<Stream> streams = Load(12, 800);
  ASSERT_TRUE(RunUntilDone(streams));
  workers_[0]->service_time = absl::Milliseconds(300);
  const std::vector<Stream> more = Load(6, 200);
  ASSERT_TRUE(RunUntilDone(more));
  EXPECT_EQ(core_->token_tier().stats().hedged, 0);
  ExpectAllExact(more);
}

TEST_F(TokenFailoverTest, AWorkerThatHasNothingToTellIsNotShownBusyForEver) {
  MakeCore(1, 1);
  workers_[0]->busy_share = 0.9f;
  std::vector<Stream> streams = Load(2, 40);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(core_->token_tier().WorkerStatuses()[0].busy_share, 0.9f);
  loop_.Advance(kLoadGoodFor + absl::Seconds(1));
  const WorkerStatus status = core_->token_tier().WorkerStatuses()[0];
  EXPECT_TRUE(status.connected);
  EXPECT_EQ(status.busy_share, 0);
  EXPECT_EQ(status.batch, 0);
  EXPECT_GT(status.steps, 0u);
}

// It is given to three workers, the third alone; the others keep theirs.
TEST_F(TokenFailoverTest, ARowThatHangsWorkersEndsItsRequestAlone) {
  MakeCore(1, 6);
  int hung = 0;
  for (const auto& worker : workers_) {
    worker->hanging = [&](const v1::TokenRowRequest& row) {
      if (row.seed() != 4 || row.position() < 20) return false;
      ++hung;
      return true;
    };
  }
  const std::vector<Stream> streams = Load(30, 120);
  ASSERT_TRUE(RunUntilDone(streams, absl::Minutes(1)));
  EXPECT_EQ(hung, 3);
  for (const Stream& stream : streams) {
    if (stream.request.seed == 4) {
      EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(stream.sink->status.message(), HasSubstr("fell silent"));
    } else {
      ExpectExact(stream);
    }
  }
}

TEST_F(TokenFailoverTest, ARowWhoseFirstWorkerIsFrozenAndWhoseSecondDiesIsTriedOnAThird) {
  MakeCore(1, 3);
  const std::vector<Stream> streams = Load(6, 400);
  loop_.Advance(absl::Milliseconds(100));
  workers_[0]->Freeze();
  workers_[1]->Freeze();
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->token_tier().stats().retried_silent > 0; },
                             absl::Seconds(5)));
  loop_.Advance(absl::Milliseconds(5));
  workers_[2]->Break();
  workers_[2]->Mend();
  workers_[1]->Kill();
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(30)));
  for (const Stream& stream : streams) ExpectExact(stream);
}

TEST_F(TokenFailoverTest, ACondemnedWorkerGetsNothingMoreUntilItIsAnotherProcess) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 400);
  loop_.Advance(absl::Milliseconds(20));
  workers_[1]->incarnation = 7;
  workers_[1]->Break();
  workers_[1]->Mend();
  loop_.Advance(absl::Milliseconds(20));
  core_->token_tier().Condemn(7, "answers wrong bits");
  loop_.Advance(absl::Milliseconds(3));
  const int rows = workers_[1]->rows;
  workers_[1]->Break();
  workers_[1]->Mend();
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(workers_[1]->rows, rows);
  EXPECT_EQ(core_->token_tier().membership().presence().workers(), 1);
  workers_[1]->Kill();
  workers_[1]->Restart();
  loop_.Advance(absl::Milliseconds(3));
  EXPECT_EQ(core_->token_tier().membership().presence().workers(), 2);
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, AFullTokenWorkerIsLeftAloneForAMoment) {
  MakeCore(1, 2);
  int refusals = 20;
  workers_[0]->verdict = [&](const v1::TokenRowRequest&) {
    return refusals-- > 0 ? absl::ResourceExhaustedError("queue full") : absl::OkStatus();
  };
  const std::vector<Stream> streams = Load(20, 30);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, ADrainingTokenWorkerGetsNoNewRowsAndLosesNone) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 100);
  loop_.Advance(absl::Milliseconds(10));
  workers_[0]->Drain();
  loop_.Advance(absl::Milliseconds(3));
  const int rows = workers_[0]->rows;
  loop_.Advance(absl::Milliseconds(20));
  EXPECT_EQ(workers_[0]->rows, rows);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

// The poisonous row is found: it takes a worker with its batch, then two more alone, and no other.
TEST_F(TokenFailoverTest, ARowThatKillsWorkersEndsItsRequestAlone) {
  MakeCore(1, 5);
  int kills = 0;
  MakeDeadly(/*seed=*/4, kills);
  const std::vector<Stream> streams = Load(30, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(kills, 3);
  ExpectAllExactBut(4, "token workers died", streams);
}

TEST_F(TokenFailoverTest, TheVerdictOnARowThatKillsWorkersWaitsUntilTheLastIsSeenToBeGone) {
  MakeCore(1, 5);
  int kills = 0;
  MakeDeadly(/*seed=*/4, kills);
  const std::vector<Stream> streams = {Generate(Request(5, 60, 4))};
  ASSERT_TRUE(loop_.RunUntil([&] { return kills == 3; }));
  loop_.Advance(kConnectAgain / 2);
  EXPECT_EQ(streams[0].sink->done, 0);
  ASSERT_TRUE(RunUntilDone(streams, kConnectAgain));
  ExpectAllExactBut(4, "token workers died", streams);
}

TEST_F(TokenFailoverTest, ARowThatOnlyLostItsConnectionsIsAcquittedThoughTheyWereAwayForLong) {
  MakeCore(1, 4);
  int breaks = 0;
  for (const auto& worker : workers_) {
    worker->deadly = [&, lost = worker.get()](const v1::TokenRowRequest& row) {
      if (row.position() < 20 || ++breaks > 8) return false;
      lost->Break();
      loop_.PostAfter(9 * kReturnWait / 10, [lost] { lost->Mend(); });
      return false;
    };
  }
  const std::vector<Stream> streams = {Generate(Request(5, 60, 4))};
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_GT(breaks, 8);
  ExpectAllExact(streams);
}

// Neither gateway knows of the other's row.
TEST(TwoGatewaysTest, ARowThatKillsWorkersSeldomTakesOneOfAnotherGatewayAlong) {
  EXPECT_LE(InnocentsEnded(/*kills_replicas=*/false, "token workers died"), 2);
}

// As many as one of them would: the others wait for the verdict on the first that is tried alone.
TEST_F(TokenFailoverTest, ARequestOfWhichEveryChoiceKillsWorkersCostsNoMoreThanOne) {
  MakeCore(1, 12);
  Connect();
  int kills = 0;
  MakeDeadly(/*seed=*/4, kills);
  for (size_t i = 1; i < workers_.size(); ++i) workers_[i]->Kill();
  GenerationRequest request = Request(19, 60, 4);
  request.n = 8;
  std::vector<Stream> streams = {Generate(std::move(request)), Generate(Request(5, 60, 5))};
  ASSERT_TRUE(loop_.RunUntil([&] { return kills == 1; }));
  for (size_t i = 1; i < workers_.size(); ++i) workers_[i]->Restart();
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(kills, 3);
  ExpectAllExactBut(4, "token workers died", streams);
}

// Those that had some of it at first, one that has a cohort, and two for the verdict.
TEST_F(TokenFailoverTest, ATextOfWhichEveryRowKillsWorkersCostsFew) {
  MakeCore(1, 6);
  int kills = 0;
  for (const auto& worker : workers_) {
    worker->deadly = [&, killed = worker.get()](const v1::TokenRowRequest& row) {
      if (row.header().request_key() != "text") return false;
      ++kills;
      loop_.PostAfter(absl::Milliseconds(20), [killed] { killed->Restart(); });
      return true;
    };
  }
  const Stream stream = Generate(Request(5, 400, 1));
  ScoringRequest text;
  text.request_id = "text";
  text.tokens = Request(2000, 1, 2).prompt;
  text.deadline = stream.request.deadline;
  const auto sink = std::make_shared<RecordingScoreSink>();
  core_->Score(std::move(text), sink);
  ASSERT_TRUE(loop_.RunUntil([&] { return sink->done > 0; }));
  EXPECT_EQ(sink->response.status().code(), absl::StatusCode::kInternal);
  EXPECT_LE(kills, 6 + 1 + 2);
  ASSERT_TRUE(RunUntilDone({stream}));
  ExpectAllExact({stream});
}

TEST_F(TokenFailoverTest, ChoicesThatOneHeldUpGoOnWhenItIsAcquitted) {
  MakeCore(1, 3);
  int deaths = 0;
  for (const auto& worker : workers_) {
    worker->deadly = [&deaths](const v1::TokenRowRequest& row) {
      return row.choice() == 0 && row.position() >= 20 && ++deaths <= 2;
    };
  }
  GenerationRequest request = Request(19, 60, 4);
  request.n = 8;
  const std::vector<Stream> streams = {Generate(std::move(request))};
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_GT(deaths, 2);
  ExpectAllExact(streams);
}

// A proxy may give the same id to all that it lets through.
TEST_F(TokenFailoverTest, RequestsOfOneIdAreJudgedApart) {
  MakeCore(1, 4);
  int kills = 0;
  MakeDeadly(/*seed=*/4, kills);
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 20; ++i) {
    GenerationRequest request = Request(3, 2000, i);
    request.request_id = "id of the proxy";
    streams.push_back(Generate(std::move(request)));
  }
  ASSERT_TRUE(loop_.RunUntil([&] { return kills == 2; }));  // the second time with it alone
  loop_.Advance(absl::Milliseconds(100));
  std::vector<size_t> before;
  for (const Stream& stream : streams) before.push_back(Received(stream));
  loop_.Advance(absl::Milliseconds(100));
  ASSERT_EQ(streams[4].sink->done, 0) << "it waits to be tried again";
  for (size_t i = 0; i < streams.size(); ++i) {
    if (i == 4) continue;
    EXPECT_GT(Received(streams[i]), before[i]) << i;
  }
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(kills, 3);
  ExpectAllExactBut(4, "token workers died", streams);
}

// Among many it takes one more: with a cohort of those that died with it first.
TEST_F(TokenFailoverTest, ARowThatKillsWorkersIsFoundAmongMany) {
  MakeCore(1, 6);
  int kills = 0;
  MakeDeadly(/*seed=*/4, kills);
  const std::vector<Stream> streams = Load(400, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(kills, 4);
  ExpectAllExactBut(4, "token workers died", streams);
}

// One by one they would take 2 s.
TEST_F(TokenFailoverTest, TheManyRowsOfAWorkerThatWasKilledAreTriedInCohorts) {
  MakeCore(1, 2);
  for (const auto& worker : workers_) worker->service_time = absl::Milliseconds(10);
  const std::vector<Stream> streams = Load(280, 400);
  loop_.Advance(absl::Milliseconds(200));
  workers_[1]->Kill();
  loop_.Advance(absl::Milliseconds(5));
  std::vector<size_t> before;
  for (const Stream& stream : streams) before.push_back(Received(stream));
  loop_.Advance(absl::Milliseconds(400));
  for (size_t i = 0; i < streams.size(); ++i) EXPECT_GT(Received(streams[i]), before[i]) << i;
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, AConnectionThatBreaksAgainAndAgainEndsNoRequest) {
  MakeCore(1, 1);
  workers_[0]->service_time = absl::Milliseconds(300);
  const std::vector<Stream> streams = Load(4, 60);
  while (std::any_of(streams.begin(), streams.end(),
                     [](const Stream& stream) { return stream.sink->done == 0; })) {
    loop_.Advance(absl::Milliseconds(450));
    ASSERT_LT(streams[0].request.deadline - loop_.Now(), absl::Minutes(11));
    ASSERT_GT(streams[0].request.deadline - loop_.Now(), absl::Minutes(5));
    workers_[0]->Break();
    loop_.Advance(absl::Milliseconds(45));
    workers_[0]->Mend();
  }
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, RowsOfAWorkerWhoseConnectionAloneBrokeAreNotUnderSuspicion) {
  MakeCore(1, 2);
  for (const auto& worker : workers_) worker->service_time = absl::Milliseconds(10);
  const std::vector<Stream> streams = Load(280, 100);
  loop_.Advance(absl::Milliseconds(200));
  workers_[1]->Break();
  loop_.Advance(absl::Milliseconds(45));
  workers_[1]->Mend();
  loop_.Advance(absl::Milliseconds(1));
  workers_[0]->largest_batch = workers_[1]->largest_batch = 0;
  loop_.Advance(absl::Milliseconds(40));
  EXPECT_GT(workers_[0]->largest_batch, 50);
  EXPECT_GT(workers_[1]->largest_batch, 50);
  EXPECT_EQ(core_->token_tier().stats().ejected, 0);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

// It is silent first, so that the row goes on; and the one after that dies.
TEST_F(TokenFailoverTest, ARowThatHangsAWorkerAndKillsOthersCostsNoMoreThanFour) {
  MakeCore(1, 7);
  int cost = 0;
  const auto is_bad = [](const v1::TokenRowRequest& row) {
    return row.seed() == 4 && row.position() >= 20;
  };
  for (const auto& worker : workers_) {
    worker->hanging = [&](const v1::TokenRowRequest& row) {
      return is_bad(row) && cost == 0 && ++cost == 1;
    };
    worker->deadly = [&](const v1::TokenRowRequest& row) {
      return is_bad(row) && cost > 0 && ++cost > 0;
    };
  }
  const std::vector<Stream> streams = Load(300, 120);
  ASSERT_TRUE(RunUntilDone(streams, absl::Minutes(1)));
  EXPECT_LE(cost, 4);
  for (const Stream& stream : streams) {
    if (stream.request.seed == 4) {
      EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
    } else {
      ExpectExact(stream);
    }
  }
}

TEST_F(TokenFailoverTest, NonFiniteLogitsEndTheirRequestAloneAfterTwoWorkers) {
  MakeCore(1, 4);
  int failed = 0;
  for (const auto& worker : workers_) {
    worker->verdict = [&](const v1::TokenRowRequest& row) {
      if (row.seed() != 4) return absl::OkStatus();
      ++failed;
      return absl::InternalError("non-finite logits");
    };
  }
  const std::vector<Stream> streams = Load(8, 30);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(failed, 2);
  EXPECT_EQ(core_->token_tier().stats().ejected, 0);
  ExpectAllExactBut(4, "non-finite", streams);
}

// It is always the one with the least to do.
TEST_F(TokenFailoverTest, AWorkerThatFailsWhatOthersAnswerIsTakenOutOfTurn) {
  MakeCore(1, 4);
  bool ill = true;
  workers_[1]->verdict = [&](const v1::TokenRowRequest&) {
    return ill ? absl::InternalError("an illegal memory access") : absl::OkStatus();
  };
  const std::vector<Stream> streams = Load(30, 400);
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->token_tier().stats().ejected == 1; }));
  loop_.Advance(absl::Milliseconds(10));  // what it had in hand
  const int rows = workers_[1]->rows;
  loop_.Advance(absl::Milliseconds(500));
  EXPECT_LE(workers_[1]->rows, rows + 4);  // probes, at longer and longer intervals
  ill = false;
  ASSERT_TRUE(
      loop_.RunUntil([&] { return core_->token_tier().stats().returned == 1; }, absl::Seconds(3)));
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(core_->token_tier().stats().ejected, 1);
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, AWorkerThatAnswersProbesAndFailsRowsIsLeftAloneForLongerAndLonger) {
  MakeCore(1, 3);
  int failed = 0;
  workers_[1]->verdict = [&](const v1::TokenRowRequest& row) {
    if (row.limit() < kSimulatedLength) return absl::OkStatus();
    ++failed;
    return absl::InternalError("no");
  };
  const std::vector<Stream> streams = Load(12, 20000);
  loop_.Advance(absl::Seconds(8));
  const int before = failed;
  loop_.Advance(absl::Seconds(4));
  EXPECT_LE(failed - before, 3);
  for (const Stream& stream : streams) core_->Cancel(stream.id, ClientHasGone());
  EXPECT_EQ(core_->token_tier().rows(), 0);
}

TEST_F(TokenFailoverTest, AWorkerThatRefusesEveryRowIsTakenOutOfTurn) {
  MakeCore(1, 3);
  workers_[1]->verdict = [](const v1::TokenRowRequest&) {
    return absl::UnavailableError("not today");
  };
  const std::vector<Stream> streams = Load(12, 2000);
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->token_tier().stats().ejected == 1; },
                             absl::Milliseconds(200)));
  loop_.Advance(absl::Milliseconds(10));  // what it had in hand
  const int64_t refused = core_->token_tier().stats().retried_refused;
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(core_->token_tier().stats().retried_refused, refused);
  ExpectAllExact(streams);
}

// As where every one is gone.
TEST_F(TokenFailoverTest, WhereEveryWorkerRefusesEveryRowRequestsEndUnavailableAfterTheTiersWait) {
  MakeCore(1, 2);
  bool refuse = true;
  for (const auto& worker : workers_) {
    worker->verdict = [&](const v1::TokenRowRequest&) {
      return refuse ? absl::UnavailableError("not today") : absl::OkStatus();
    };
  }
  const std::vector<Stream> streams = Load(12, 40);
  loop_.Advance(options_.tier.tier_wait - absl::Milliseconds(100));
  for (const Stream& stream : streams) EXPECT_EQ(stream.sink->done, 0);
  ASSERT_TRUE(RunUntilDone(streams, absl::Milliseconds(300)));
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(stream.sink->status.message(), HasSubstr("not today"));
  }
  const std::vector<Stream> later = Load(12, 40);
  loop_.Advance(options_.tier.tier_wait / 2);
  refuse = false;
  ASSERT_TRUE(RunUntilDone(later));
  ExpectAllExact(later);
}

TEST_F(TokenFailoverTest, OneRequestsRowsAreNoSignOfAnIllWorker) {
  MakeCore(1, 2);
  workers_[1]->verdict = [](const v1::TokenRowRequest& row) {
    return row.seed() == 4 ? absl::InternalError("out of memory") : absl::OkStatus();
  };
  const std::vector<Stream> streams = {Generate(Request(5, 400, 4))};
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_GT(core_->token_tier().stats().retried_failed, 3);
  EXPECT_EQ(core_->token_tier().stats().ejected, 0);
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, WhereTheOnlyOtherWorkerIsOutOfTurnASecondOpinionWaitsForIt) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 400);
  workers_[1]->verdict = [](const v1::TokenRowRequest&) {
    return absl::UnavailableError("not now");
  };
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->token_tier().stats().ejected == 1; }));
  workers_[1]->verdict = nullptr;
  workers_[0]->verdict = [](const v1::TokenRowRequest&) { return absl::InternalError("no"); };
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->token_tier().stats().returned == 1; }));
  workers_[0]->verdict = nullptr;
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, ASecondOpinionOfWhoStaysOutOfTurnIsNotWaitedForForLong) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = {Generate(Request(5, 400, 1)), Generate(Request(5, 400, 2))};
  workers_[1]->verdict = [](const v1::TokenRowRequest&) {
    return absl::UnavailableError("not now");
  };
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->token_tier().stats().ejected == 1; }));
  workers_[0]->verdict = [](const v1::TokenRowRequest&) { return absl::InternalError("no"); };
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(2)));
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
  }
  ExpectNothingLeft();
}

TEST_F(TokenFailoverTest, WhereTheSecondWorkerGoesBeforeItHasSaidTheFirstOnesWordCounts) {
  MakeCore(1, 2);
  workers_[0]->verdict = workers_[1]->verdict = [](const v1::TokenRowRequest&) {
    return absl::InternalError("non-finite logits");
  };
  workers_[1]->Drain();
  const Stream one = Generate(Request(4, 20, 1));
  ASSERT_TRUE(RunUntilDone({one}, absl::Seconds(1)));
  EXPECT_THAT(one.sink->status.message(), HasSubstr("token worker 'token0': non-finite"));
  workers_[1]->Kill();
  workers_[1]->Restart();
  Connect();
  workers_[1]->service_time = absl::Milliseconds(50);
  const std::vector<Stream> two = {Generate(Request(4, 20, 2)), Generate(Request(4, 20, 3))};
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->token_tier().stats().retried_failed > 0; },
                             absl::Milliseconds(40)));
  workers_[1]->Kill();
  ASSERT_TRUE(RunUntilDone(two, absl::Seconds(5)));
  for (const Stream& stream : two) {
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(stream.sink->status.message(), HasSubstr("non-finite"));
  }
  ExpectNothingLeft();
}

TEST_F(TokenFailoverTest, AWorkerTakenOutOfDiscoveryFinishesWhatItHas) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 60);
  loop_.Advance(absl::Milliseconds(10));
  core_->token_tier().RemoveWorker("token0");
  loop_.Advance(absl::Milliseconds(5));
  const int rows = workers_[0]->rows;
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(workers_[0]->rows, rows);
  ExpectAllExact(streams);
  ASSERT_EQ(core_->token_tier().WorkerStatuses().size(), 1u) << "the other is forgotten";
  EXPECT_EQ(core_->token_tier().WorkerStatuses()[0].address, "token1");
}

TEST_F(TokenFailoverTest, AWorkerThatIsBackInDiscoveryIsUsedAgain) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(12, 60);
  loop_.Advance(absl::Milliseconds(10));
  core_->token_tier().RemoveWorker("token0");
  core_->token_tier().AddWorker("token0");
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
  EXPECT_TRUE(core_->token_tier().WorkerStatuses().at(0).usable);
}

TEST_F(TokenFailoverTest, AWorkerWhoseCapacityCannotBeIsNotUsed) {
  MakeCore(1, 3);
  workers_[1]->max_rows = std::numeric_limits<int32_t>::max();
  workers_[2]->max_queued_rows = -1;
  const std::vector<Stream> streams = Load(12, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(core_->token_tier().membership().presence().workers(), 1);
  EXPECT_EQ(workers_[1]->rows, 0);
  EXPECT_EQ(workers_[2]->rows, 0);
  ExpectAllExact(streams);
}

TEST_F(TokenFailoverTest, OnlyWorkersOfEqualNumericIdStandIn) {
  MakeCore(1, 2);
  workers_[1]->numeric_id = "sim-2";
  workers_[1]->Kill();
  const std::vector<Stream> streams = Load(5, 400);
  loop_.Advance(absl::Milliseconds(10));
  workers_[1]->Restart();
  loop_.Advance(absl::Milliseconds(5));
  workers_[0]->Kill();
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(workers_[1]->rows, 0);
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kUnavailable);
  }
  const Stream later = Generate(Request(4, 20, 77));
  ASSERT_TRUE(RunUntilDone({later}));
  ExpectExact(later);
  EXPECT_EQ(later.sink->first.token_numeric_id(), "sim-2");
}

TEST_F(TokenFailoverTest, RowsAreNotToBlameForAStreamThatWasGivenTooMuch) {
  MakeCore(1, 1);
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 8; ++i) streams.push_back(Generate(Request(4, 4, i)));
  ASSERT_TRUE(loop_.RunUntil([&] { return workers_[0]->messages == 1; }));
  workers_[0]->Break(absl::ResourceExhaustedError("message larger than max"));
  workers_[0]->Mend();
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(workers_[0]->largest_batch, 8);  // none is tried alone
  EXPECT_EQ(workers_[0]->messages, 2);
  ExpectAllExact(streams);
}

}  // namespace
}  // namespace blockserve
