// Audits over simulated tiers: whoever answers wrong bits is found and named, and with hold no
// client sees one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/core_fixture.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

class AuditTest : public CoreFixture {
 protected:
  std::vector<Stream> Load(uint64_t streams, int32_t max_tokens) {
    std::vector<Stream> made;
    for (uint64_t i = 0; i < streams; ++i) {
      GenerationRequest request = Request(3 + static_cast<int32_t>(i % 11), max_tokens, i);
      request.n = i % 5 == 0 ? 3 : 1;
      if (i % 2 == 0) request.logprobs = 0;
      made.push_back(Generate(std::move(request)));
    }
    return made;
  }
  const AuditStats& rows() { return core_->row_audit().stats(); }
  const AuditStats& contexts() { return core_->block_tier().audit_stats(); }
  // Processes differ by their incarnation.
  void NumberWorkers() {
    uint64_t next = 100;
    for (const auto& worker : workers_) worker->incarnation = next += 100;
    for (const auto& replica : blocks_) replica->incarnation = next += 100;
  }
};

TEST_F(AuditTest, ASoundSystemIsComparedAndChangesNothing) {
  options_.tier.audit = {.rows = 1, .contexts = 1, .hold = true};
  MakeCore(2, 3);
  NumberWorkers();
  const std::vector<Stream> streams = Load(10, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_GT(rows().compared, 100);
  EXPECT_GT(contexts().compared, 100);
  EXPECT_EQ(rows().differed + rows().skipped, 0);
  EXPECT_EQ(contexts().differed + contexts().skipped, 0);
  ExpectNothingLeft();
}

TEST_F(AuditTest, ClientsGetTheLogprobsThatTheyAskedForAlone) {
  options_.tier.audit = {.rows = 1, .hold = true};
  MakeCore(1, 2);
  NumberWorkers();
  const std::vector<Stream> streams = Load(4, 20);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.sink->logprobs.empty(), !stream.request.logprobs.has_value());
  }
}

TEST_F(AuditTest, HeldBackNoClientSeesAWrongBit) {
  options_.tier.audit = {.rows = 1, .hold = true};
  MakeCore(1, 4);
  NumberWorkers();
  std::vector<Stream> calm = Load(10, 60);
  ASSERT_TRUE(RunUntilDone(calm));
  workers_[2]->wrong_bits = true;
  const std::vector<Stream> streams = Load(10, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  for (size_t i = 0; i < streams.size(); ++i) {
    ExpectExact(streams[i]);
    EXPECT_EQ(streams[i].sink->logprobs, calm[i].sink->logprobs);
  }
  EXPECT_GE(rows().settled, 1);
  EXPECT_EQ(core_->token_tier().stats().condemned, 1);
  EXPECT_EQ(core_->token_tier().membership().presence().workers(), 3);
  ExpectNothingLeft();
}

TEST_F(AuditTest, WithoutHoldAWrongWorkerIsFoundWithinAHundredAuditedBlocks) {
  options_.tier.audit = {.rows = 0.1};
  MakeCore(1, 4);
  NumberWorkers();
  workers_[1]->wrong_bits = true;
  const std::vector<Stream> streams = Load(20, 300);
  ASSERT_TRUE(loop_.RunUntil([&] { return core_->token_tier().stats().condemned == 1; }));
  EXPECT_LE(rows().compared + rows().differed, 100);
  loop_.Advance(absl::Milliseconds(3));  // what was with it already
  const int rows_then = workers_[1]->rows;
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(workers_[1]->rows, rows_then);
  EXPECT_GT(rows().compared, 100);
  ExpectNothingLeft();
}

TEST_F(AuditTest, TwoWorkersThatDifferAndNobodyToSettleItEndAHeldRequest) {
  options_.tier.audit = {.rows = 1, .hold = true};
  MakeCore(1, 2);
  NumberWorkers();
  workers_[1]->wrong_bits = true;
  const Stream stream = Generate(Request(4, 60, 1));
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(stream.sink->status.message(), HasSubstr("differ"));
  ExpectNothingLeft();
}

// A machine that errs does so after a restart, too.
TEST_F(AuditTest, AWorkerDoesNotSettleWhatTheProcessBeforeItAtItsAddressHasSaid) {
  options_.tier.audit = {.rows = 1, .hold = true};
  MakeCore(1, 2);
  NumberWorkers();
  workers_[1]->wrong_bits = true;
  const Stream stream = Generate(Request(4, 60, 1));
  ASSERT_TRUE(loop_.RunUntil([&] { return rows().differed > 0; }));
  workers_[1]->Kill();
  workers_[1]->Restart();
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(stream.sink->status.message(), HasSubstr("differ"));
  EXPECT_EQ(core_->token_tier().stats().condemned, 0);
  ExpectNothingLeft();
}

TEST_F(AuditTest, AReplicaDoesNotSettleWhatTheProcessBeforeItAtItsAddressHasSaid) {
  options_.tier.audit = {.contexts = 1, .hold = true};
  MakeCore(2, 1);
  NumberWorkers();
  Connect();
  uint64_t seed = 1;  // of a text whose row the replica gets wrong
  while (SimulatedContext(
             LayoutPrompt(config_, Alignment::kEnd, Request(8, 4, seed).prompt).block_tokens) %
             3 !=
         0) {
    ++seed;
  }
  const Stream stream = Generate(Request(8, 4, seed));
  loop_.RunReady();
  const bool first = blocks_[0]->messages > 0;
  SimulatedBlockReplica& wrong = *blocks_[first ? 0 : 1];
  SimulatedBlockReplica& right = *blocks_[first ? 1 : 0];
  wrong.wrong_bits = true;
  right.service_time = absl::Seconds(1);
  ASSERT_TRUE(loop_.RunUntil([&] { return right.messages > 0; }));
  wrong.Kill();
  wrong.Restart();
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(stream.sink->status.message(), HasSubstr("differ"));
  EXPECT_EQ(core_->block_tier().stats().condemned, 0);
}

TEST_F(AuditTest, AuditsSurviveLosses) {
  options_.tier.audit = {.rows = 1, .contexts = 1, .hold = true};
  MakeCore(3, 4);
  NumberWorkers();
  const std::vector<Stream> streams = Load(20, 100);
  loop_.Advance(absl::Milliseconds(20));
  workers_[0]->Kill();
  loop_.Advance(absl::Milliseconds(20));
  blocks_[0]->Kill();
  loop_.Advance(absl::Milliseconds(20));
  core_->Cancel(streams[3].id, ClientHasGone());
  workers_[0]->Restart();
  workers_[1]->Freeze();
  blocks_[0]->Restart();
  loop_.Advance(absl::Milliseconds(20));
  blocks_[1]->Break();
  blocks_[1]->Mend();
  workers_[1]->Thaw();
  std::vector<Stream> rest = streams;
  rest.erase(rest.begin() + 3);
  ASSERT_TRUE(RunUntilDone(rest));
  for (const Stream& stream : rest) ExpectExact(stream);
  EXPECT_EQ(rows().differed + contexts().differed, 0);
  ExpectNothingLeft();
}

// Copies that were with the worker that died, of rows that the only other one has answered, are
// suspects that it may not do: it is not kept free for them.
TEST_F(AuditTest, WhereOneWorkerIsLeftStreamsDoNotWaitForAuditsThatItMayNotDo) {
  options_.tier.audit = {.rows = 1};
  MakeCore(1, 2);
  NumberWorkers();
  for (const auto& worker : workers_) worker->service_time = absl::Milliseconds(10);
  const std::vector<Stream> streams = Load(40, 2000);
  loop_.Advance(absl::Milliseconds(205));
  workers_[1]->Kill();
  loop_.Advance(absl::Milliseconds(400));
  std::vector<size_t> before;
  for (const Stream& stream : streams) before.push_back(stream.sink->tokens[0].size());
  loop_.Advance(absl::Milliseconds(400));
  for (size_t i = 0; i < streams.size(); ++i) {
    EXPECT_GT(streams[i].sink->tokens[0].size(), before[i]) << i;
  }
}

TEST_F(AuditTest, AuditsForWhichNobodyWaitsDoNotPileUp) {
  options_.tier.audit = {.contexts = 0.5};
  MakeCore(2, 8);
  NumberWorkers();
  for (const auto& replica : blocks_) {
    replica->pages = 1'000'000;
    replica->service_time = absl::Milliseconds(20);  // of an audit's prefill as of a block
  }
  constexpr int64_t kStreams = 100;
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < kStreams; ++i) streams.push_back(Generate(Request(8, 200, i)));
  int64_t most = 0;
  const auto all_wrote = [&](size_t tokens) {
    return [&, tokens] {
      most = std::max(most, core_->block_tier().sequences() - kStreams);
      return std::all_of(streams.begin(), streams.end(), [&](const Stream& stream) {
        return stream.sink->tokens[0].size() >= tokens;
      });
    };
  };
  ASSERT_TRUE(loop_.RunUntil(all_wrote(60)));
  EXPECT_GT(contexts().compared, 10);
  EXPECT_GT(contexts().skipped, 100);
  EXPECT_LE(most, 16) << "eight for each replica";
  // Those that wait do not stand before the streams of a replica that is lost.
  blocks_[0]->Kill();
  ASSERT_TRUE(loop_.RunUntil(all_wrote(100)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  ExpectNothingLeft();
}

TEST_F(AuditTest, HeldSequencesDoNotKeepTheKvThatTheirAuditsWaitFor) {
  options_.tier.audit = {.contexts = 1, .hold = true};
  MakeCore(2, 2);
  NumberWorkers();
  // Of room for two texts and no third: the audit of each waits for what another one has.
  for (const auto& replica : blocks_) replica->pages = 13;
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 4; ++i) streams.push_back(Generate(Request(80, 20, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_EQ(contexts().skipped, 0);
  ExpectNothingLeft();
}

TEST_F(AuditTest, AReplicaWithWrongContextsIsFoundAndItsSequencesMove) {
  options_.tier.audit = {.contexts = 1, .hold = true};
  MakeCore(3, 2);
  NumberWorkers();
  blocks_[1]->wrong_bits = true;
  const std::vector<Stream> streams = Load(20, 60);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_EQ(core_->block_tier().stats().condemned, 1);
  EXPECT_EQ(core_->block_tier().membership().presence().workers(), 2);
  ExpectNothingLeft();
}

}  // namespace
}  // namespace blockserve
