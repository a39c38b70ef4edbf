// The core over block replicas that die, freeze, forget, drain or leave.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "gateway/cache_pool.h"
#include "gateway/failover_fixture.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

using BlockFailoverTest = FailoverFixture;

TEST_F(BlockFailoverTest, ABlockReplicaKilled) {
  MakeCore(2, 2);
  const std::vector<Stream> streams = Load(30, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Kill();
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_GT(blocks_[1]->opens, 0);
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, TheOnlyBlockReplicaKilledAndBack) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Kill();
  loop_.Advance(absl::Seconds(5));
  blocks_[0]->Restart();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, ABrokenStreamGoesOnWithTheSequencesThatItsReplicaKept) {
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

TEST_F(BlockFailoverTest, AStreamThatBreaksAgainAndAgainIsNoDeathOfItsReplica) {
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

TEST_F(BlockFailoverTest, AReplicaThatDiesAgainAndAgainEndsTheRequest) {
  MakeCore(1, 1);
  Connect();
  const Stream stream = Generate(Request(4, 40, 1));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(stream.sink->done, 0);
    blocks_[0]->Freeze();
    loop_.Advance(absl::Seconds(1));  // it may wait for so long before it is opened again
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
TEST_F(BlockFailoverTest, ASequenceThatKillsReplicasEndsItsRequestAlone) {
  MakeCore(6, 2);
  const std::vector<Stream> streams = Load(30, 200);
  loop_.Advance(absl::Milliseconds(20));
  GenerationRequest poison = Request(8, 40, 77);
  poison.prompt = {901, 902, 903, 904};
  const std::vector<int32_t> marked = poison.prompt;
  int killed = 0;
  for (const auto& replica : blocks_) {
    replica->deadly = [&killed, &marked](const v1::BlockRequest& request) {
      if (!request.has_open()) return false;
      const v1::OpenSequence& open = request.open();
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

// Neither gateway knows of the other's request.
TEST(TwoGatewaysTest, ARequestThatKillsReplicasSeldomTakesOneOfAnotherGatewayAlong) {
  EXPECT_LE(InnocentsEnded(/*kills_replicas=*/true, "again and again"), 2);
}

TEST_F(BlockFailoverTest, WhereTheOnlyOtherReplicaIsOutOfTurnASecondOpinionWaitsForIt) {
  MakeCore(2, 2);
  const std::vector<Stream> streams = Load(12, 400);
  blocks_[1]->verdict = [](const v1::BlockRequest&) { return absl::InternalError("no"); };
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->block_tier().stats().ejected == 1; }));
  blocks_[1]->verdict = nullptr;
  blocks_[0]->verdict = [](const v1::BlockRequest& request) {
    return request.has_close() ? absl::OkStatus() : absl::InternalError("no");
  };
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->block_tier().stats().returned == 1; }));
  blocks_[0]->verdict = nullptr;
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, AReplicaThatRefusesAppendsForLongLosesItsSequences) {
  MakeCore(2, 2);
  const std::vector<Stream> streams = Load(20, 400);
  loop_.Advance(absl::Milliseconds(20));
  ASSERT_GT(blocks_[0]->sequences.size(), 0u);
  blocks_[0]->verdict = [](const v1::BlockRequest& request) {
    return request.has_append() ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  };
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(3)));
  EXPECT_GT(core_->block_tier().stats().reopened_failed, 0);
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, TheOnlyReplicaMayRefuseAppendsForLong) {
  MakeCore(1, 2);
  const std::vector<Stream> streams = Load(20, 400);
  loop_.Advance(absl::Milliseconds(20));
  blocks_[0]->verdict = [](const v1::BlockRequest& request) {
    return request.has_append() ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  };
  loop_.Advance(absl::Seconds(3));
  blocks_[0]->verdict = nullptr;
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(core_->block_tier().stats().reopened_failed, 0);
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, SequencesThatMovedAreClosedWhereTheyWere) {
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

TEST_F(BlockFailoverTest, AReplicaThatForgetsItsSequences) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->ForgetSequences();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, SequencesThatMadeRoomWhileTheStreamWasBrokenAreOpenedAgain) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  for (int i = 0; i < 6; ++i) {
    blocks_[0]->Break();
    loop_.Advance(absl::Milliseconds(300));
    blocks_[0]->ForgetSequences();
    blocks_[0]->Mend();
    loop_.Advance(absl::Milliseconds(8));
  }
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

// Within their lease its next stream takes them up, and would keep them.
TEST_F(BlockFailoverTest, WhatAReplicaStillHoldsIsClosedThoughDiscoveryDidNotNameItMeanwhile) {
  MakeCore(2, 1);
  const std::vector<Stream> streams = Load(10, 200);
  loop_.Advance(absl::Milliseconds(12));
  ASSERT_GT(blocks_[0]->sequences.size(), 0u);
  blocks_[0]->Break();
  loop_.Advance(absl::Milliseconds(5));
  core_->block_tier().RemoveReplica(blocks_[0]->name);
  loop_.Advance(absl::Milliseconds(5));
  core_->block_tier().AddReplica(blocks_[0]->name);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, SuspendedSequencesAreOpenedAgain) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->suspend = 25;
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(blocks_[0]->suspend, 0);
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, WhatIsOpenedAgainWaitsForNoMoreRoomThanItStillNeeds) {
  MakeCore(1, 1);
  blocks_[0]->pages = 30;
  Stream old = Generate(Request(8, 400, 1));
  ASSERT_TRUE(loop_.RunUntil([&] { return old.sink->tokens[0].size() >= 380; }));
  // It has room beside the new one, whose open takes its time.
  blocks_[0]->service_time = absl::Seconds(1);
  Stream young = Generate(Request(8, 4, 2));
  loop_.Advance(absl::ZeroDuration());
  blocks_[0]->service_time = absl::Milliseconds(1);
  blocks_[0]->suspend = 1;
  ASSERT_TRUE(RunUntilDone({old}));
  EXPECT_EQ(blocks_[0]->suspend, 0);
  EXPECT_EQ(young.sink->started, 0);
  ASSERT_TRUE(RunUntilDone({young}));
  ExpectAllExact({old, young});
}

TEST_F(BlockFailoverTest, ADrainingReplicaIsEmptiedWhereAnotherIsThere) {
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

TEST_F(BlockFailoverTest, ADrainingReplicaServesOnWhereNoOtherIsThere) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(5, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Drain();
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(5)));
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, AFrozenReplicasSequencesMove) {
  MakeCore(2, 1);
  const std::vector<Stream> streams = Load(10, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[0]->Freeze();
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(30)));
  for (const Stream& stream : streams) ExpectExact(stream);
  blocks_[0]->Thaw();
  ExpectNothingLeft();
}

TEST_F(BlockFailoverTest, AFrozenReplicaIsFoundWithinASecond) {
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
TEST_F(BlockFailoverTest, ADrainingReplicaIsRidOfIdleSequencesToo) {
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

TEST_F(BlockFailoverTest, ALostReplicasSequencesAreOpenedAgainAFewAtATime) {
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

TEST_F(BlockFailoverTest, AnOpenThatOneReplicaRefusesTriesTheOther) {
  MakeCore(2, 1);
  blocks_[0]->refuse_opens = 2;
  Connect();
  const std::vector<Stream> streams = Load(10, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(blocks_[0]->refuse_opens, 0);
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, AReplicaTakenOutOfDiscoveryLosesItsSequencesToAnother) {
  MakeCore(2, 1);
  const std::vector<Stream> streams = Load(10, 100);
  loop_.Advance(absl::Milliseconds(12));
  core_->block_tier().RemoveReplica("block0");
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
  ASSERT_EQ(core_->block_tier().WorkerStatuses().size(), 1u) << "the other is forgotten";
  EXPECT_EQ(core_->block_tier().WorkerStatuses()[0].address, "block1");
}

TEST_F(BlockFailoverTest, AReplicaThatIsBackInDiscoveryGoesOnWithItsSequences) {
  MakeCore(1, 1);
  const std::vector<Stream> streams = Load(10, 100);
  loop_.Advance(absl::Milliseconds(12));
  core_->block_tier().RemoveReplica("block0");
  loop_.Advance(absl::Milliseconds(5));
  core_->block_tier().AddReplica("block0");
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
  EXPECT_TRUE(core_->block_tier().WorkerStatuses().at(0).usable);
}

TEST_F(BlockFailoverTest, AReplicaWhoseCapacityCannotBeIsNotUsed) {
  MakeCore(2, 1);
  blocks_[1]->pages = std::numeric_limits<int64_t>::max();
  const std::vector<Stream> streams = Load(6, 40);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(core_->block_tier().membership().presence().workers(), 1);
  EXPECT_EQ(blocks_[1]->opens, 0);
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, WhatOneReplicaFailsIsAskedOfAnother) {
  MakeCore(2, 1);
  blocks_[0]->verdict = [](const v1::BlockRequest& request) {
    return request.has_close() ? absl::OkStatus() : absl::InternalError("an illegal memory access");
  };
  const std::vector<Stream> streams = Load(12, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_GT(core_->block_tier().stats().reopened_failed, 0);
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, AReplicaThatFailsWhatOthersAnswerIsTakenOutOfTurn) {
  MakeCore(3, 2);
  bool ill = true;
  int asked = 0;
  blocks_[1]->verdict = [&](const v1::BlockRequest& request) {
    if (request.has_close()) return absl::OkStatus();
    ++asked;
    return ill ? absl::InternalError("an illegal memory access") : absl::OkStatus();
  };
  std::vector<Stream> streams = Load(30, 400);
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->block_tier().stats().ejected == 1; }));
  loop_.Advance(absl::Milliseconds(10));  // what it had in hand
  const int before = asked;
  for (const Stream& stream : Load(10, 40)) streams.push_back(stream);
  loop_.Advance(absl::Milliseconds(500));
  EXPECT_GT(asked, before);
  EXPECT_LE(asked, before + 4);  // probes, at longer and longer intervals
  ill = false;
  ASSERT_TRUE(
      loop_.RunUntil([&] { return core_->block_tier().stats().returned == 1; }, absl::Seconds(3)));
  EXPECT_THAT(blocks_[1]->pools, ::testing::Contains(absl::uint128{1}))
      << "probes share KV with no client's prompts";
  const int probed = blocks_[1]->opens;
  const int others = blocks_[0]->opens;
  for (const Stream& stream : Load(30, 40)) streams.push_back(stream);
  loop_.Advance(absl::Milliseconds(1));
  EXPECT_LE(blocks_[1]->opens, probed + 1);  // few at first
  EXPECT_GT(blocks_[0]->opens, others + 1);
  ASSERT_TRUE(RunUntilDone(streams));
  // Of prompts whose beginnings nobody has.
  for (uint64_t seed = 100; seed < 110; ++seed) streams.push_back(Generate(Request(9, 40, seed)));
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_GT(blocks_[1]->opens, probed + 1);
  EXPECT_EQ(core_->block_tier().stats().ejected, 1);
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, SequencesLeaveAReplicaThatFailsTheCallsOfOthers) {
  MakeCore(2, 2);
  const std::vector<Stream> streams = Load(6, 2000);
  loop_.Advance(absl::Milliseconds(20));
  ASSERT_GT(blocks_[1]->sequences.size(), 0u);
  blocks_[1]->verdict = [](const v1::BlockRequest& request) {
    return request.has_open() ? absl::InternalError("out of memory") : absl::OkStatus();
  };
  std::vector<Stream> more = Load(10, 40);
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->block_tier().stats().ejected == 1; }));
  loop_.Advance(absl::Milliseconds(20));
  EXPECT_EQ(blocks_[1]->sequences.size(), 0u);
  more.insert(more.end(), streams.begin(), streams.end());
  ASSERT_TRUE(RunUntilDone(more));
  ExpectAllExact(more);
}

TEST_F(BlockFailoverTest, AReplicaThatAnswersProbesAndFailsCallsIsLeftAloneForLongerAndLonger) {
  MakeCore(2, 1);
  int failed = 0;
  blocks_[1]->verdict = [&](const v1::BlockRequest& request) {
    const bool probe = request.open().tokens_size() == kSimulatedLength;
    if (request.has_close() || probe) return absl::OkStatus();
    ++failed;
    return absl::InternalError("no");
  };
  std::vector<Stream> streams;
  const auto ask_for = [&](absl::Duration time) {
    for (const absl::Time end = loop_.Now() + time; loop_.Now() < end;) {
      streams.push_back(Generate(Request(9, 20, streams.size())));
      loop_.Advance(absl::Milliseconds(10));
    }
  };
  ask_for(absl::Seconds(8));
  EXPECT_GT(core_->block_tier().stats().returned, 1);
  const int before = failed;
  ask_for(absl::Seconds(4));
  EXPECT_LE(failed - before, 3);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
}

TEST_F(BlockFailoverTest, WhereTheSecondReplicaGoesBeforeItHasSaidTheFirstOnesWordCounts) {
  MakeCore(2, 1);
  for (const auto& replica : blocks_) {
    replica->verdict = [](const v1::BlockRequest&) { return absl::InternalError("non-finite"); };
  }
  Connect();
  blocks_[1]->service_time = absl::Milliseconds(50);
  const std::vector<Stream> streams = {Generate(Request(4, 20, 1)), Generate(Request(4, 20, 2))};
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->block_tier().stats().reopened_failed > 0; },
                             absl::Milliseconds(40)));
  blocks_[1]->Kill();
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(5)));
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(stream.sink->status.message(), HasSubstr("non-finite"));
  }
  ExpectNothingLeft();
}

TEST_F(BlockFailoverTest, WhatTwoReplicasFailEndsItsRequestAlone) {
  MakeCore(3, 1);
  int failed = 0;
  for (const auto& replica : blocks_) {
    replica->verdict = [&](const v1::BlockRequest& request) {
      if (request.has_close() || request.header().request_key() != "request-4") {
        return absl::OkStatus();
      }
      ++failed;
      return absl::InternalError("non-finite context row");
    };
  }
  const std::vector<Stream> streams = Load(12, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(failed, 2);
  ExpectAllExactBut(4, "non-finite", streams);
}

// ---- cache pools

using ::testing::AllOf;
using ::testing::Each;
using ::testing::Eq;
using ::testing::IsEmpty;
using ::testing::Not;

class CachePoolsTest : public FailoverFixture {
 protected:
  // Streams of one salt; empty: none.
  std::vector<Stream> Salted(const std::string& salt, uint64_t streams, int32_t max_tokens) {
    std::vector<Stream> made;
    for (uint64_t i = 0; i < streams; ++i) {
      GenerationRequest request = Request(3 + static_cast<int32_t>(i % 11), max_tokens, i);
      request.cache_salt = salt;
      request.n = i % 3 == 0 ? 3 : 1;
      made.push_back(Generate(std::move(request)));
    }
    return made;
  }
};

TEST_F(CachePoolsTest, GoWithEveryOpenOfTheirSequences) {
  options_.tier.audit = {.contexts = 0.2, .hold = true};
  MakeCore(3, 2);
  for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i]->incarnation = 100 + i;
  const std::vector<Stream> streams = Salted("tenant", 20, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[1]->suspend = 5;
  loop_.Advance(absl::Milliseconds(5));
  blocks_[2]->ForgetSequences();
  loop_.Advance(absl::Milliseconds(5));
  blocks_[0]->Kill();
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
  size_t opens = 0;
  for (const auto& replica : blocks_) {
    EXPECT_THAT(replica->pools, AllOf(Not(IsEmpty()), Each(Eq(CachePoolOf("", "tenant")))));
    opens += replica->pools.size();
  }
  EXPECT_GT(opens, 60u) << "some were opened again, and some to be audited";
  EXPECT_GT(core_->block_tier().audit_stats().compared, 0);
  EXPECT_GT(core_->block_tier().stats().reopened_suspended, 0);
}

TEST_F(CachePoolsTest, AreOfTheKeyWhereItsPrefixCacheIsItsOwn) {
  MakeCore(1, 1);
  Connect();
  const auto pool_of = [&](const std::string& key, bool own, const std::string& salt) {
    GenerationRequest request = Request(8, 4, 1);
    request.key = key;
    request.own_prefix_cache = own;
    request.cache_salt = salt;
    const Stream stream = Generate(std::move(request));
    EXPECT_TRUE(RunUntilDone({stream}));
    ExpectExact(stream);
    return blocks_[0]->pools.back();
  };
  EXPECT_EQ(pool_of("alice", false, ""), absl::uint128{0});
  EXPECT_EQ(pool_of("alice", false, "s"), CachePoolOf("", "s"));
  EXPECT_EQ(pool_of("alice", true, ""), CachePoolOf("alice", ""));
  EXPECT_EQ(pool_of("alice", true, "s"), CachePoolOf("alice", "s"));

  ScoringRequest scoring;
  scoring.request_id = "score";
  scoring.tokens = Request(12, 1, 1).prompt;
  scoring.first_scored = 8;
  scoring.deadline = loop_.Now() + absl::Minutes(1);
  scoring.key = "alice";
  scoring.own_prefix_cache = true;
  scoring.cache_salt = "s";
  const auto sink = std::make_shared<RecordingScoreSink>();
  core_->Score(std::move(scoring), sink);
  ASSERT_TRUE(loop_.RunUntil([&] { return sink->done > 0; }, absl::Minutes(1)));
  EXPECT_EQ(blocks_[0]->pools.back(), CachePoolOf("alice", "s"));
}

TEST_F(CachePoolsTest, NoReplicaThatMixesThemGetsOneButTheCommon) {
  MakeCore(2, 2);
  blocks_[0]->keeps_pools_apart = false;
  const std::vector<Stream> common = Salted("", 20, 60);
  const std::vector<Stream> salted = Salted("tenant", 20, 60);
  loop_.Advance(absl::Milliseconds(12));
  blocks_[1]->Kill();  // the salted ones wait for it, the others go on
  ASSERT_TRUE(RunUntilDone(common));
  for (const Stream& stream : salted) EXPECT_EQ(stream.sink->done, 0);
  blocks_[1]->Restart();
  ASSERT_TRUE(RunUntilDone(salted));
  ExpectAllExact(common);
  ExpectAllExact(salted);
  EXPECT_THAT(blocks_[0]->pools, AllOf(Not(IsEmpty()), Each(Eq(absl::uint128{0}))));
}

TEST_F(CachePoolsTest, WithoutAReplicaThatKeepsThemApartTheyEndWithItsReason) {
  options_.tier.tier_wait = absl::Seconds(3);
  MakeCore(2, 1);
  for (const auto& replica : blocks_) replica->keeps_pools_apart = false;
  const std::vector<Stream> salted = Salted("tenant", 3, 20);
  const std::vector<Stream> common = Salted("", 6, 20);  // behind them in the queue
  ASSERT_TRUE(RunUntilDone(common, absl::Seconds(1)));
  ASSERT_TRUE(RunUntilDone(salted, absl::Seconds(4)));
  for (const Stream& stream : salted) {
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(stream.sink->status.message(), HasSubstr("older build"));
  }
  ExpectAllExact(common);
  for (const auto& replica : blocks_) EXPECT_THAT(replica->pools, Each(Eq(absl::uint128{0})));
}

}  // namespace
}  // namespace blockserve
