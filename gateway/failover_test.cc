// The core over simulated tiers that fail. Whatever happens, a stream has the tokens that it would
// have had, each once, or ends with the error that says why; and nothing is left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "gateway/core_fixture.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

class FailoverTest : public CoreFixture {
 protected:
  std::vector<Stream> Load(uint64_t streams, int32_t max_tokens) {
    std::vector<Stream> made;
    for (uint64_t i = 0; i < streams; ++i) {
      GenerationRequest request = Request(3 + static_cast<int32_t>(i % 11), max_tokens, i);
      request.alignment = static_cast<Alignment>(i % 3);
      request.n = i % 5 == 0 ? 3 : 1;
      made.push_back(Generate(std::move(request)));
    }
    return made;
  }
  // Tokens of all choices.
  static size_t Received(const Stream& stream) {
    size_t tokens = 0;
    for (const auto& [choice, received] : stream.sink->tokens) tokens += received.size();
    return tokens;
  }
  void ExpectAllExact(const std::vector<Stream>& streams) {
    for (const Stream& stream : streams) ExpectExact(stream);
    ExpectNothingLeft();
  }
};

// ---- token workers

TEST_F(FailoverTest, ATokenWorkerKilled) {
  MakeCore(1, 3);
  const std::vector<Stream> streams = Load(30, 60);
  loop_.Advance(absl::Milliseconds(10));
  workers_[1]->Kill();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, TheOnlyTokenWorkerKilledAndBack) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 40);
  loop_.Advance(absl::Milliseconds(10));
  workers_[0]->Kill();
  loop_.Advance(absl::Seconds(5));
  workers_[0]->Restart();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, AFrozenTokenWorkersRowsRunElsewhereAndItsLateAnswersAreIgnored) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 60);
  loop_.Advance(absl::Milliseconds(10));
  workers_[0]->Freeze();
  loop_.Advance(options_.tier.progress_bound + absl::Seconds(1));
  workers_[0]->Thaw();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, AWorkerFrozenForGoodHoldsNobodyUp) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 60);
  loop_.Advance(absl::Milliseconds(10));
  workers_[0]->Freeze();
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(30)));
  for (const Stream& stream : streams) ExpectExact(stream);
}

// By its own history and by its peers, not by the bound.
TEST_F(FailoverTest, AFrozenTokenWorkerIsFoundWithinASecond) {
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

TEST_F(FailoverTest, WhereEveryWorkerIsSilentNoneIsToBlame) {
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

TEST_F(FailoverTest, AWorkerThatAnswersProbesAgainGetsRowsAgainFewAtFirst) {
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

TEST_F(FailoverTest, ASlowWorkersRowsAreHedgedAndTheFirstAnswerWins) {
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

TEST_F(FailoverTest, ABusyTierIsNotGivenTheSameWorkTwice) {
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

// It is given to three workers, the third alone; the others keep theirs.
TEST_F(FailoverTest, ARowThatHangsWorkersEndsItsRequestAlone) {
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

TEST_F(FailoverTest, ARowWhoseFirstWorkerIsFrozenAndWhoseSecondDiesIsTriedOnAThird) {
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

TEST_F(FailoverTest, ACondemnedWorkerGetsNothingMoreUntilItIsAnotherProcess) {
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

TEST_F(FailoverTest, AFullTokenWorkerIsLeftAloneForAMoment) {
  MakeCore(1, 2);
  int refusals = 20;
  workers_[0]->verdict = [&](const v1::TokenRowRequest&) {
    return refusals-- > 0 ? absl::ResourceExhaustedError("queue full") : absl::OkStatus();
  };
  const std::vector<Stream> streams = Load(20, 30);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, ADrainingTokenWorkerGetsNoNewRowsAndLosesNone) {
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
TEST_F(FailoverTest, ARowThatKillsWorkersEndsItsRequestAlone) {
  MakeCore(1, 5);
  int kills = 0;
  for (const auto& worker : workers_) {
    worker->deadly = [&](const v1::TokenRowRequest& row) {
      if (row.seed() != 4 || row.position() < 20) return false;
      ++kills;
      return true;
    };
  }
  const std::vector<Stream> streams = Load(30, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(kills, 3);
  for (const Stream& stream : streams) {
    if (stream.request.seed == 4) {
      EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(stream.sink->status.message(), HasSubstr("two token workers died"));
    } else {
      ExpectExact(stream);
    }
  }
  ExpectNothingLeft();
}

TEST_F(FailoverTest, NonFiniteLogitsEndTheirRequestAlone) {
  MakeCore(1, 2);
  for (const auto& worker : workers_) {
    worker->verdict = [](const v1::TokenRowRequest& row) {
      return row.seed() == 4 ? absl::InternalError("non-finite logits") : absl::OkStatus();
    };
  }
  const std::vector<Stream> streams = Load(8, 30);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) {
    if (stream.request.seed == 4) {
      EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(stream.sink->status.message(), HasSubstr("non-finite"));
    } else {
      ExpectExact(stream);
    }
  }
  ExpectNothingLeft();
}

TEST_F(FailoverTest, AWorkerTakenOutOfDiscoveryFinishesWhatItHas) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(12, 60);
  loop_.Advance(absl::Milliseconds(10));
  core_->token_tier().RemoveWorker("token0");
  loop_.Advance(absl::Milliseconds(5));
  const int rows = workers_[0]->rows;
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(workers_[0]->rows, rows);
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, OnlyWorkersOfEqualNumericIdStandIn) {
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

TEST_F(FailoverTest, RowsAreNotToBlameForAStreamThatWasGivenTooMuch) {
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

// ---- block replicas

TEST_F(FailoverTest, ABlockReplicaKilled) {
  MakeCore(2, 2);
  const std::vector<Stream> streams = Load(30, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Kill();
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_GT(blocks_[1]->opens, 0);
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, TheOnlyBlockReplicaKilledAndBack) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Kill();
  loop_.Advance(absl::Seconds(5));
  blocks_[0]->Restart();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, ABrokenStreamGoesOnWithTheSequencesThatItsReplicaKept) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  const int opens = blocks_[0]->opens;
  for (int i = 0; i < 5; ++i) {
    blocks_[0]->Break();
    loop_.Advance(absl::Milliseconds(300));
    blocks_[0]->Mend();
    loop_.Advance(absl::Milliseconds(3));
  }
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(blocks_[0]->opens, opens);
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, AStreamThatBreaksAgainAndAgainIsNoDeathOfItsReplica) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Freeze();
  for (int i = 0; i < 8; ++i) {
    loop_.Advance(absl::Milliseconds(5));
    blocks_[0]->Break();
    blocks_[0]->Mend();
  }
  loop_.Advance(absl::Milliseconds(5));
  blocks_[0]->Thaw();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, AReplicaThatDiesAgainAndAgainEndsTheRequest) {
  MakeCore(1, 1);
  Connect();
  const Stream stream = Generate(Request(4, 40, 1));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(stream.sink->done, 0);
    blocks_[0]->Freeze();
    loop_.Advance(absl::Milliseconds(5));
    blocks_[0]->Kill();
    loop_.Advance(absl::Milliseconds(5));
    blocks_[0]->Restart();
  }
  ASSERT_TRUE(RunUntilDone({stream}, absl::Seconds(1)));
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(stream.sink->status.message(), HasSubstr("again and again"));
  ExpectNothingLeft();
}

// Its replicas stay away: their deaths are not told apart from lost connections until much later.
TEST_F(FailoverTest, ASequenceThatKillsReplicasEndsItsRequestAlone) {
  MakeCore(6, 2);
  const std::vector<Stream> streams = Load(30, 200);
  loop_.Advance(absl::Milliseconds(20));
  GenerationRequest poison = Request(8, 40, 77);
  poison.prompt = {901, 902, 903, 904};
  const std::vector<int32_t> marked = poison.prompt;
  int killed = 0;
  for (const auto& replica : blocks_) {
    replica->deadly = [&killed, &marked](const v1::OpenSequence& open) {
      const bool dies = std::search(open.tokens().begin(), open.tokens().end(), marked.begin(),
                                    marked.end()) != open.tokens().end();
      killed += dies;
      return dies;
    };
  }
  const Stream deadly = Generate(std::move(poison));
  ASSERT_TRUE(RunUntilDone(streams));
  ASSERT_TRUE(RunUntilDone({deadly}));
  EXPECT_EQ(killed, 4);
  EXPECT_EQ(deadly.sink->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(deadly.sink->status.message(), HasSubstr("again and again"));
  for (const Stream& stream : streams) ExpectExact(stream);
}

TEST_F(FailoverTest, SequencesThatMovedAreClosedWhereTheyWere) {
  MakeCore(2, 1);
  const std::vector<Stream> streams = Load(10, 400);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Break();
  loop_.Advance(absl::Milliseconds(50));
  blocks_[0]->Mend();
  loop_.Advance(absl::Milliseconds(50));
  size_t held = 0;
  for (const auto& replica : blocks_) held += replica->sequences.size();
  EXPECT_EQ(held, 14u);  // 8 streams of one choice, 2 of three
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, AReplicaThatForgetsItsSequences) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->ForgetSequences();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, SuspendedSequencesAreOpenedAgain) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->suspend = 25;
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(blocks_[0]->suspend, 0);
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, ADrainingReplicaIsEmptiedWhereAnotherIsThere) {
  MakeCore(2, 1);
  const std::vector<Stream> streams = Load(20, 400);
  loop_.Advance(absl::Milliseconds(12));
  ASSERT_GT(blocks_[0]->sequences.size(), 0u);
  blocks_[0]->Drain();
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(blocks_[0]->sequences.size(), 0u);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, ADrainingReplicaServesOnWhereNoOtherIsThere) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(5, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Drain();
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(5)));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, AFrozenReplicasSequencesMove) {
  MakeCore(2, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Freeze();
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(30)));
  for (const Stream& stream : streams) ExpectExact(stream);
  blocks_[0]->Thaw();
  ExpectNothingLeft();
}

TEST_F(FailoverTest, AFrozenReplicaIsFoundWithinASecond) {
  MakeCore(2, 2);
  for (const auto& replica : blocks_) replica->pages = 100'000;
  const std::vector<Stream> streams = Load(12, 3000);
  loop_.Advance(absl::Milliseconds(300));
  blocks_[0]->Freeze();
  loop_.Advance(absl::Milliseconds(900));
  std::vector<size_t> before;
  for (const Stream& stream : streams) before.push_back(Received(stream));
  loop_.Advance(absl::Milliseconds(100));
  for (size_t i = 0; i < streams.size(); ++i) {
    EXPECT_TRUE(streams[i].sink->done > 0 || Received(streams[i]) > before[i]) << i;
  }
  EXPECT_EQ(core_->block_tier().stats().ejected, 1);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
}

// A client that does not read keeps its sequence idle; a replica that leaves need not wait for it.
TEST_F(FailoverTest, ADrainingReplicaIsRidOfIdleSequencesToo) {
  MakeCore(2, 1);
  std::vector<Stream> streams = Load(10, 100);
  for (const Stream& stream : streams) stream.sink->wants_more = false;
  loop_.Advance(absl::Milliseconds(50));
  ASSERT_GT(blocks_[0]->sequences.size(), 0u);
  blocks_[0]->Drain();
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(blocks_[0]->sequences.size(), 0u);
  for (const Stream& stream : streams) {
    stream.sink->wants_more = true;
    core_->Resume(stream.id);
  }
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, ALostReplicasSequencesAreOpenedAgainAFewAtATime) {
  MakeCore(2, 4);
  const std::vector<Stream> streams = Load(100, 400);
  loop_.Advance(absl::Milliseconds(30));
  blocks_[1]->service_time = absl::Milliseconds(5);
  const int opens = blocks_[1]->opens;
  blocks_[0]->Kill();
  loop_.Advance(absl::Milliseconds(9));
  EXPECT_GT(blocks_[1]->opens, opens);
  EXPECT_LE(blocks_[1]->opens, opens + 16);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, AnOpenThatOneReplicaRefusesTriesTheOther) {
  MakeCore(2, 1);
  blocks_[0]->refuse_opens = 2;
  Connect();
  const std::vector<Stream> streams = Load(10, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(blocks_[0]->refuse_opens, 0);
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, AReplicaTakenOutOfDiscoveryLosesItsSequencesToAnother) {
  MakeCore(2, 1);
  const std::vector<Stream> streams = Load(10, 100);
  loop_.Advance(absl::Milliseconds(12));
  core_->block_tier().RemoveReplica("block0");
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(FailoverTest, ScoringSurvivesLosses) {
  MakeCore(2, 2);
  Connect();
  ScoringRequest request;
  request.request_id = "score";
  request.alignment = Alignment::kStart;
  for (int32_t i = 0; i < 400; ++i) request.tokens.push_back(i);
  request.deadline = loop_.Now() + absl::Minutes(1);
  const auto calm = std::make_shared<RecordingScoreSink>();
  core_->Score(request, calm);
  ASSERT_TRUE(loop_.RunUntil([&] { return calm->done > 0; }));
  const auto stormy = std::make_shared<RecordingScoreSink>();
  core_->Score(request, stormy);
  loop_.RunReady();
  blocks_[0]->Kill();
  loop_.Advance(absl::Milliseconds(2));
  blocks_[0]->Restart();
  workers_[0]->Kill();
  loop_.Advance(absl::Milliseconds(1));
  blocks_[1]->Kill();
  ASSERT_TRUE(loop_.RunUntil([&] { return stormy->done > 0; }));
  ASSERT_TRUE(calm->response.ok());
  ASSERT_TRUE(stormy->response.ok()) << stormy->response.status();
  calm->response->clear_usage();
  stormy->response->clear_usage();
  EXPECT_EQ(calm->response->SerializeAsString(), stormy->response->SerializeAsString());
}

// ---- whole tiers

TEST_F(FailoverTest, WithoutATierRequestsWaitAndAreThenRefused) {
  MakeCore(1, 1);
  workers_[0]->Kill();
  const absl::Time start = loop_.Now();
  const Stream waits = Generate(Request(4, 4, 1));
  ASSERT_TRUE(RunUntilDone({waits}));
  EXPECT_EQ(waits.sink->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_GE(loop_.Now() - start, absl::Seconds(10));
  EXPECT_LE(loop_.Now() - start, absl::Seconds(11));
  const Stream refused = Generate(Request(4, 4, 2));
  ASSERT_TRUE(RunUntilDone({refused}, absl::Milliseconds(1)));
  EXPECT_EQ(refused.sink->status.code(), absl::StatusCode::kUnavailable);
  workers_[0]->Restart();
  loop_.Advance(absl::Milliseconds(5));
  const Stream served = Generate(Request(4, 4, 3));
  ASSERT_TRUE(RunUntilDone({served}));
  ExpectExact(served);
}

TEST_F(FailoverTest, AShortDeadlineHearsWhyBeforeItPasses) {
  MakeCore(1, 1);
  workers_[0]->Kill();
  GenerationRequest request = Request(4, 4, 1);
  request.deadline = loop_.Now() + absl::Seconds(2);
  const Stream stream = Generate(request);
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(loop_.Now(), request.deadline);
}

TEST_F(FailoverTest, StreamsThatRunEndUnavailableWhenATierStaysAway) {
  for (const bool block_tier : {false, true}) {
    SCOPED_TRACE(block_tier);
    blocks_.clear();
    workers_.clear();
    core_.reset();
    MakeCore(1, 1);
    const std::vector<Stream> streams = Load(5, 4000);
    loop_.Advance(absl::Milliseconds(20));
    if (block_tier) {
      blocks_[0]->Kill();
    } else {
      workers_[0]->Kill();
    }
    const absl::Time gone = loop_.Now();
    ASSERT_TRUE(RunUntilDone(streams));
    EXPECT_GE(loop_.Now() - gone, absl::Seconds(10));
    EXPECT_LE(loop_.Now() - gone, absl::Seconds(11));
    for (const Stream& stream : streams) {
      EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kUnavailable);
      // What came before is right.
      for (const auto& [choice, tokens] : stream.sink->tokens) {
        const std::vector<int32_t> expected = Expected(stream.request, choice);
        EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()));
      }
    }
    ExpectNothingLeft();
    core_.reset();
  }
}

TEST_F(FailoverTest, AWorkerOfAnotherModelIsNotUsedAndNamed) {
  MakeCore(1, 2);
  for (const auto& worker : workers_) {
    worker->config_hash = "another";
  }
  const absl::Time start = loop_.Now();
  Connect();
  const Stream stream = Generate(Request(4, 4, 1));
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_GE(loop_.Now() - start, options_.tier.tier_wait);
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(stream.sink->status.message(), HasSubstr("config hash"));
  EXPECT_EQ(workers_[0]->rows, 0);
  workers_[1]->Kill();
  workers_[1]->config_hash = "config";
  workers_[1]->Restart();
  loop_.Advance(absl::Milliseconds(5));
  const Stream served = Generate(Request(4, 4, 2));
  ASSERT_TRUE(RunUntilDone({served}));
  ExpectExact(served);
}

// While one model replaces another, no request gets the block part of one and the token part of the
// other.
TEST_F(FailoverTest, AnUpgradeToAnotherModelMixesNothing) {
  MakeCore(3, 3);
  const auto upgrade = [](auto& worker) {
    worker.Kill();
    worker.part_hash = "part-2";
    worker.numeric_id = "sim-2";
    worker.model_digest = "model-2";
    worker.Restart();
  };
  for (const auto& replica : blocks_) replica->model_digest = "model-1";
  for (const auto& worker : workers_) worker->model_digest = "model-1";
  Connect();
  std::vector<Stream> streams;
  const auto ask = [&] {
    for (uint64_t i = 0; i < 4; ++i) streams.push_back(Generate(Request(4, 40, streams.size())));
    loop_.Advance(absl::Milliseconds(5));
  };
  ask();
  upgrade(*blocks_[0]);
  upgrade(*blocks_[1]);  // most block replicas are new, all token workers old
  ask();
  upgrade(*workers_[0]);
  ask();
  ASSERT_TRUE(RunUntilDone(streams));
  upgrade(*workers_[1]);
  ask();
  upgrade(*workers_[2]);
  upgrade(*blocks_[2]);
  ask();
  ASSERT_TRUE(RunUntilDone(streams));
  std::set<std::string> pairs;
  for (const Stream& stream : streams) {
    ExpectExact(stream);
    const v1::Started& first = stream.sink->first;
    pairs.insert(first.block_numeric_id() + " " + first.token_numeric_id());
  }
  EXPECT_EQ(pairs, (std::set<std::string>{"sim-1 sim-1", "sim-2 sim-2"}));
  ExpectNothingLeft();
}

TEST_F(FailoverTest, WithoutTwoTiersOfOneModelRequestsWaitAndAreThenRefused) {
  MakeCore(1, 1);
  blocks_[0]->model_digest = "model-2";
  workers_[0]->model_digest = "model-1";
  Connect();
  const absl::Time start = loop_.Now();
  const Stream stream = Generate(Request(4, 4, 1));
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_GE(loop_.Now() - start, absl::Seconds(9));
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(stream.sink->status.message(), HasSubstr("same model"));
}

// ---- everything at once

TEST_F(FailoverTest, RandomFaultsChangeNoToken) {
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(seed);
    core_.reset();
    blocks_.clear();
    workers_.clear();
    MakeCore(3, 3);
    std::mt19937_64 random(seed);
    std::vector<Stream> streams = Load(40, 120);
    std::set<size_t> cancelled;
    int faults = 0;
    const auto done = [&] {
      for (size_t i = 0; i < streams.size(); ++i) {
        if (!cancelled.contains(i) && streams[i].sink->done == 0) return false;
      }
      return true;
    };
    while (!done() && faults < 4000) {
      ++faults;
      const size_t which = random() % 3;
      switch (random() % 14) {
        case 0:
          workers_[which]->Kill();
          break;
        case 1:
        case 2:
          workers_[which]->Restart();
          break;
        case 3:
          blocks_[which]->Kill();
          break;
        case 4:
        case 5:
          blocks_[which]->Restart();
          break;
        case 6:
          blocks_[which]->Break();
          break;
        case 7:
          blocks_[which]->Mend();
          break;
        case 8:
          blocks_[which]->suspend = 2;
          break;
        case 9:
          if (blocks_[which]->up) blocks_[which]->ForgetSequences();
          break;
        case 10:
          if (random() % 20 == 0) workers_[which]->Freeze();
          break;
        case 11:
          workers_[which]->Thaw();
          break;
        case 12:
          workers_[which]->Break();
          workers_[which]->Mend();
          break;
        case 13:
          if (random() % 20 == 0) {
            const size_t victim = random() % streams.size();
            core_->Cancel(streams[victim].id);
            cancelled.insert(victim);
          }
          break;
      }
      loop_.Advance(absl::Microseconds(static_cast<int64_t>(random() % 6000)));
    }
    for (const auto& worker : workers_) {
      worker->Restart();
      worker->Mend();
      worker->Thaw();
    }
    for (const auto& replica : blocks_) {
      replica->Restart();
      replica->Mend();
    }
    ASSERT_TRUE(loop_.RunUntil(done, absl::Minutes(3)));
    int exact = 0;
    for (size_t i = 0; i < streams.size(); ++i) {
      const RecordingSink& sink = *streams[i].sink;
      EXPECT_LE(sink.done, 1);
      // Whatever came is right, whether the stream could be finished or not.
      for (const auto& [choice, tokens] : sink.tokens) {
        const std::vector<int32_t> expected = Expected(streams[i].request, choice);
        ASSERT_LE(tokens.size(), expected.size());
        EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()));
      }
      if (cancelled.contains(i)) continue;
      if (sink.status.ok()) {
        ExpectExact(streams[i]);
        ++exact;
      } else {
        // Rows and sequences that were under many workers when those were killed.
        EXPECT_EQ(sink.status.code(), absl::StatusCode::kInternal) << sink.status;
      }
    }
    EXPECT_GE(exact, 25) << "of " << streams.size() - cancelled.size();
    ExpectNothingLeft();
  }
}

}  // namespace
}  // namespace blockserve
