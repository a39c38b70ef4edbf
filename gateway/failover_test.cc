// The core while both tiers fail, one of them is gone as a whole, or a model replaces another.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <vector>

#include "gateway/failover_fixture.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

using FailoverTest = FailoverFixture;

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

// It was checked when it came; when its turn comes most workers may be of another model.
TEST_F(FailoverTest, ARequestThatNamesItsModelByIdIsServedByThatOneAlone) {
  MakeCore(3, 1);
  Connect();
  const Stream first = Generate(Request(4, 4, 1));
  ASSERT_TRUE(RunUntilDone({first}));
  for (int i : {0, 1}) {
    blocks_[i]->Kill();
    blocks_[i]->part_hash = "part-2";
    blocks_[i]->Restart();
  }
  Connect();
  const auto ask = [&](uint64_t seed, const std::string& model_id) {
    GenerationRequest request = Request(4, 12, seed);
    request.model_id = model_id;
    const Stream stream = Generate(std::move(request));
    EXPECT_TRUE(RunUntilDone({stream}));
    return stream;
  };
  const std::string older = first.sink->first.model_id();
  EXPECT_NE(ask(2, "").sink->first.model_id(), older);
  const Stream named = ask(3, older);
  ExpectExact(named);
  EXPECT_EQ(named.sink->first.model_id(), older);
  blocks_[2]->Kill();
  const Stream gone = ask(4, older);
  EXPECT_EQ(gone.sink->started, 0);
  EXPECT_EQ(gone.sink->status.code(), absl::StatusCode::kNotFound);
  ExpectNothingLeft();
}

// A call over HTTP may be several requests here, and the second comes when most workers are new.
TEST_F(FailoverTest, RequestsOfOneCallAreServedByTheWorkersOfTheFirst) {
  MakeCore(3, 1);
  for (int i : {1, 2}) {
    blocks_[i]->Kill();
    blocks_[i]->numeric_id = "sim-2";
  }
  Connect();
  const auto tiers = std::make_shared<CallTiers>();
  const auto ask = [&](uint64_t seed, bool of_call) {
    GenerationRequest request = Request(4, 12, seed);
    if (of_call) request.origin.tiers = tiers;
    const Stream stream = Generate(std::move(request));
    EXPECT_TRUE(RunUntilDone({stream}));
    return stream;
  };
  EXPECT_EQ(ask(1, true).sink->first.block_numeric_id(), "sim-1");
  for (int i : {1, 2}) blocks_[i]->Restart();
  Connect();
  EXPECT_EQ(ask(2, false).sink->first.block_numeric_id(), "sim-2");
  const Stream second = ask(3, true);
  ExpectExact(second);
  EXPECT_EQ(second.sink->first.block_numeric_id(), "sim-1");
  blocks_[0]->Kill();
  const Stream third = ask(4, true);
  EXPECT_EQ(third.sink->started, 0);
  EXPECT_EQ(third.sink->status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(third.sink->status.message(), HasSubstr("first part of this call"));
  tiers->wrote_stream = true;
  EXPECT_EQ(ask(5, true).sink->status.code(), absl::StatusCode::kFailedPrecondition);
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
            core_->Cancel(streams[victim].id, ClientHasGone());
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

// Two streams of one gateway would end each other again and again.
TEST_F(FailoverTest, AProcessUnderTwoAddressesIsUsedByOneOfThem) {
  MakeCore(2, 2);
  blocks_[1]->incarnation = blocks_[0]->incarnation;
  workers_[1]->incarnation = workers_[0]->incarnation;
  Connect();
  EXPECT_EQ(core_->block_tier().membership().presence().workers(), 1);
  EXPECT_EQ(core_->token_tier().membership().presence().workers(), 1);
  const std::vector<Stream> streams = Load(6, 2000);
  loop_.Advance(absl::Milliseconds(100));
  EXPECT_EQ(blocks_[1]->messages, 0);
  EXPECT_EQ(workers_[1]->messages, 0);
  blocks_[0]->Kill();
  workers_[0]->Kill();
  loop_.Advance(absl::Seconds(4));
  EXPECT_GT(blocks_[1]->opens, 0);
  EXPECT_GT(workers_[1]->rows, 0);
  ASSERT_TRUE(RunUntilDone(streams));
  ExpectAllExact(streams);
  core_->block_tier().Disconnect();
  core_->token_tier().Disconnect();
}

}  // namespace
}  // namespace blockserve
