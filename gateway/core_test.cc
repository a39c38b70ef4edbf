// The core over simulated tiers, when nothing fails: what clients get, and what is left behind.
#include "gateway/core.h"

#include <gtest/gtest.h>

#include "gateway/core_fixture.h"

namespace blockserve {
namespace {

class CoreTest : public CoreFixture {};

TEST_F(CoreTest, EveryAlignmentAndLengthGivesTheTokensOfTheLoop) {
  MakeCore(1, 2);
  std::vector<Stream> streams;
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    for (const int32_t prompt : {1, 3, 4, 5, 17}) {
      for (const int32_t max_tokens : {1, 2, 4, 5, 30}) {
        GenerationRequest request =
            Request(prompt, max_tokens, static_cast<uint64_t>(streams.size()));
        request.alignment = alignment;
        streams.push_back(Generate(std::move(request)));
      }
    }
  }
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) {
    ExpectExact(stream);
    EXPECT_EQ(stream.sink->finished.at(0).reason(), v1::FINISH_REASON_LENGTH);
    EXPECT_EQ(stream.sink->first.seed(), stream.request.seed);
    EXPECT_EQ(stream.sink->usage.prompt_tokens(),
              static_cast<int64_t>(stream.request.prompt.size()));
  }
  ExpectNothingLeft();
}

TEST_F(CoreTest, ChoicesShareThePromptAndDifferAfterIt) {
  MakeCore(1, 1);
  GenerationRequest request = Request(10, 20, 5);
  request.n = 4;
  const Stream stream = Generate(request);
  ASSERT_TRUE(RunUntilDone({stream}));
  ExpectExact(stream);
  EXPECT_NE(stream.sink->tokens.at(0), stream.sink->tokens.at(3));
  EXPECT_EQ(blocks_[0]->opens, 1);
  EXPECT_EQ(blocks_[0]->forks, 3);
  ExpectNothingLeft();
}

// The parent of the forks is over before they were used.
TEST_F(CoreTest, ChoicesThatEndInTheirFirstBlockLeaveTheOthersAlone) {
  MakeCore(1, 1);
  GenerationRequest request = Request(10, 20, 6);
  request.n = 3;
  const int32_t first = Expected(request, 0)[0];
  request.stop_ids = {first};
  const std::vector<int32_t> other = Expected(request, 1);
  ASSERT_EQ(std::count(other.begin(), other.end(), first), 0);
  const Stream stream = Generate(request);
  ASSERT_TRUE(RunUntilDone({stream}));
  ExpectExact(stream);
  EXPECT_EQ(stream.sink->finished.at(0).reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(stream.sink->finished.at(0).stop_token(), first);
  EXPECT_EQ(stream.sink->finished.at(1).reason(), v1::FINISH_REASON_LENGTH);
  ExpectNothingLeft();
}

TEST_F(CoreTest, NoStopTokenBeforeMinTokens) {
  MakeCore(1, 1);
  GenerationRequest request = Request(10, 20, 7);
  request.stop_ids = {Expected(request, 0)[2]};
  request.min_tokens = 6;
  const Stream stream = Generate(request);
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_GE(stream.sink->tokens.at(0).size(), 6u);
}

TEST_F(CoreTest, LogprobsComeWithEveryToken) {
  MakeCore(1, 1);
  GenerationRequest request = Request(6, 10, 8);
  request.alignment = Alignment::kStart;
  request.logprobs = 0;
  const Stream stream = Generate(request);
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_EQ(stream.sink->logprobs.at(0).size(), 10u);
}

TEST_F(CoreTest, AClientThatDoesNotReadIsNotWrittenFor) {
  MakeCore(1, 1);
  const Stream stream = Generate(Request(4, 40, 9));
  ASSERT_TRUE(loop_.RunUntil([&] { return stream.sink->tokens[0].size() >= 8; }));
  stream.sink->wants_more = false;
  loop_.Advance(absl::Seconds(5));
  const size_t held = stream.sink->tokens[0].size();
  EXPECT_LE(held, 12u);
  core_->Resume(stream.id);  // not yet
  loop_.Advance(absl::Seconds(5));
  EXPECT_EQ(stream.sink->tokens[0].size(), held);
  stream.sink->wants_more = true;
  core_->Resume(stream.id);
  ASSERT_TRUE(RunUntilDone({stream}));
  ExpectExact(stream);
}

TEST_F(CoreTest, CancelStopsWorkAndFreesSequencesAtOnce) {
  MakeCore(1, 1);
  GenerationRequest request = Request(4, 4000, 10);
  request.n = 3;
  const Stream stream = Generate(request);
  ASSERT_TRUE(loop_.RunUntil([&] { return stream.sink->tokens[2].size() >= 8; }));
  EXPECT_EQ(blocks_[0]->sequences.size(), 3u);
  core_->Cancel(stream.id, ClientHasGone());
  loop_.Advance(absl::Milliseconds(5));
  EXPECT_EQ(blocks_[0]->sequences.size(), 0u);
  const int rows = workers_[0]->rows;
  ExpectNothingLeft();
  EXPECT_EQ(stream.sink->done, 0);
  EXPECT_EQ(workers_[0]->rows, rows);
  core_->Cancel(stream.id, ClientHasGone());
  core_->Cancel(12345, ClientHasGone());
  loop_.RunReady();
}

TEST_F(CoreTest, AWorkerWhoseConnectionIsFullGetsNothingMoreUntilItHasRoom) {
  MakeCore(1, 2);
  Connect();
  workers_[0]->queued_bytes = int64_t{16} << 20;
  const Stream stream = Generate(Request(4, 40, 12));
  ASSERT_TRUE(RunUntilDone({stream}));
  ExpectExact(stream);
  EXPECT_EQ(workers_[0]->rows, 0);
  workers_[1]->queued_bytes = int64_t{16} << 20;
  const Stream waits = Generate(Request(4, 40, 13));
  loop_.Advance(absl::Seconds(1));
  EXPECT_TRUE(waits.sink->tokens.empty());
  workers_[0]->queued_bytes = 0;
  ASSERT_TRUE(RunUntilDone({waits}));
  ExpectExact(waits);
  EXPECT_GT(workers_[0]->rows, 0);
}

// Of 64 choices with a penalty, each row of which tells of every token before it.
TEST_F(CoreTest, RowsOfOneTurnBeyondWhatAConnectionTakesWaitForTheNext) {
  MakeCore(1, 1);
  Connect();
  blocks_[0]->pages = 1'000'000;
  workers_[0]->queued_bytes = (int64_t{16} << 20) - 1;  // one row more
  GenerationRequest request = Request(997, 4, 14);
  request.n = 64;
  request.sampling.set_repetition_penalty(1.1f);
  const Stream stream = Generate(std::move(request));
  ASSERT_TRUE(RunUntilDone({stream}));
  ExpectExact(stream);
  EXPECT_EQ(workers_[0]->largest_batch, 1);
  ExpectNothingLeft();
}

TEST_F(CoreTest, CancelWhileOpening) {
  MakeCore(1, 1);
  Connect();
  const Stream stream = Generate(Request(4, 40, 11));
  loop_.RunReady();
  EXPECT_EQ(core_->block_tier().sequences(), 1);
  core_->Cancel(stream.id, ClientHasGone());
  ExpectNothingLeft();
}

TEST_F(CoreTest, ItemsOfOneTurnAreOneMessage) {
  MakeCore(1, 1);
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 32; ++i) streams.push_back(Generate(Request(4, 4, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_EQ(workers_[0]->largest_batch, 32);
  EXPECT_EQ(workers_[0]->messages, 1);
}

constexpr size_t kMaxMessageBytes = size_t{1} << 20;

TEST_F(CoreTest, RowsWithMuchBesideTheirContextsAreSeveralMessages) {
  MakeCore(1, 1);
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 200; ++i) {
    GenerationRequest request = Request(4, 4, i);
    for (int32_t token = 0; token < 990; ++token) {
      v1::LogitBias& bias = *request.sampling.add_logit_bias();
      bias.set_token(token);
      bias.set_bias(1.0f);
    }
    streams.push_back(Generate(std::move(request)));
  }
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_GT(workers_[0]->messages, 1);
  EXPECT_LE(workers_[0]->messages, 4);
  EXPECT_LE(workers_[0]->largest_message_bytes, kMaxMessageBytes);
}

TEST_F(CoreTest, OpensOfLongPromptsAreSeveralMessages) {
  MakeCore(1, 1);
  blocks_[0]->pages = 1'000'000;
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 100; ++i) streams.push_back(Generate(Request(8000, 4, i)));
  loop_.RunReady();
  EXPECT_GT(blocks_[0]->messages, 1);
  // They are sent again, as many, when the stream is back.
  blocks_[0]->Break();
  blocks_[0]->Mend();
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_EQ(blocks_[0]->opens, 100);
  EXPECT_LE(blocks_[0]->largest_message_bytes, kMaxMessageBytes);
  ExpectNothingLeft();
}

TEST_F(CoreTest, AReplicaWhoseContextsAreOfAnUnknownTypeIsNotUsed) {
  MakeCore(2, 1);
  blocks_[0]->context_type = static_cast<v1::ContextType>(9);
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 8; ++i) streams.push_back(Generate(Request(8, 20, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  EXPECT_EQ(blocks_[0]->opens, 0);
}

TEST_F(CoreTest, RowsAreSpreadOverWorkers) {
  MakeCore(1, 4);
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 64; ++i) streams.push_back(Generate(Request(4, 40, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const auto& worker : workers_) EXPECT_EQ(worker->rows, 160) << worker->name;
}

TEST_F(CoreTest, AmongManyWorkersTheRowsOfATurnAreAFewMessages) {
  MakeCore(1, 100);
  for (const auto& worker : workers_) worker->max_rows = 64;
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 200; ++i) streams.push_back(Generate(Request(4, 4, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  int messages = 0, largest_batch = 0;
  for (const auto& worker : workers_) {
    messages += worker->messages;
    largest_batch = std::max(largest_batch, worker->largest_batch);
  }
  EXPECT_EQ(largest_batch, 8) << "an eighth of the best batch";
  EXPECT_EQ(messages, 200 / 8);
}

TEST_F(CoreTest, AmongManyWorkersEveryoneHasATurn) {
  MakeCore(1, 100);
  for (const auto& worker : workers_) worker->max_rows = 64;
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 200; ++i) streams.push_back(Generate(Request(4, 80, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  for (const auto& worker : workers_) {
    EXPECT_GE(worker->rows, 30) << worker->name;
    EXPECT_LE(worker->rows, 50) << worker->name;
  }
}

TEST_F(CoreTest, AmongManyWorkersAFewRowsGoToOneEach) {
  MakeCore(1, 100);
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 4; ++i) streams.push_back(Generate(Request(4, 4, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const auto& worker : workers_) EXPECT_LE(worker->rows, 1) << worker->name;
}

TEST_F(CoreTest, DeadlineEndsARequestThatRuns) {
  MakeCore(1, 1);
  Connect();
  workers_[0]->Freeze();
  GenerationRequest request = Request(4, 40, 12);
  request.deadline = loop_.Now() + absl::Seconds(3);
  const Stream stream = Generate(request);
  ASSERT_TRUE(RunUntilDone({stream}));
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LE(loop_.Now() - request.deadline, absl::Milliseconds(50));
  workers_[0]->Thaw();
  ExpectNothingLeft();
}

TEST_F(CoreTest, EndAllEndsEveryRequestOnceAndTakesNoMore) {
  MakeCore(1, 1);
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 5; ++i) streams.push_back(Generate(Request(4, 4000, i)));
  loop_.Advance(absl::Milliseconds(20));
  core_->EndAll(absl::UnavailableError("stopping"));
  streams.push_back(Generate(Request(4, 4, 9)));
  ASSERT_TRUE(RunUntilDone(streams, absl::Seconds(1)));
  for (const Stream& stream : streams) {
    EXPECT_EQ(stream.sink->done, 1);
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kUnavailable);
  }
}

TEST_F(CoreTest, EndAllLeavesNoSequenceBehind) {
  MakeCore(2, 1);
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 6; ++i) streams.push_back(Generate(Request(4, 4000, i)));
  loop_.Advance(absl::Milliseconds(20));
  ASSERT_FALSE(blocks_[0]->sequences.empty() || blocks_[1]->sequences.empty());
  core_->EndAll(absl::UnavailableError("stopping"));
  bool disconnected = false;
  core_->block_tier().WhenDisconnected([&] { disconnected = true; });
  loop_.Advance(absl::Seconds(1));
  EXPECT_TRUE(disconnected);
  EXPECT_TRUE(blocks_[0]->sequences.empty() && blocks_[1]->sequences.empty());
}

TEST_F(CoreTest, TooManyChoicesAreRefused) {
  options_.max_live_choices = 8;
  MakeCore(1, 1);
  GenerationRequest request = Request(4, 400, 1);
  request.n = 6;
  const Stream first = Generate(request);
  const Stream second = Generate(request);
  ASSERT_TRUE(RunUntilDone({first, second}));
  ExpectExact(first);
  EXPECT_EQ(second.sink->status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(CoreTest, ModelStatusTellsTheWorkersInUse) {
  MakeCore(2, 3);
  Connect();
  v1::GetModelResponse response;
  core_->FillModelStatus(response);
  EXPECT_EQ(response.block_services(), 2);
  EXPECT_EQ(response.token_workers(), 3);
  EXPECT_EQ(response.block_numeric_id(), "sim-1");
  EXPECT_EQ(response.model_id().size(), 16u);
}

}  // namespace
}  // namespace blockserve
