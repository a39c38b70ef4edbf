// The core over simulated tiers, when nothing fails: what clients get, and what is left behind.
#include "gateway/core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/context_length.h"
#include "gateway/core_fixture.h"
#include "gateway/retry_after.h"
#include "gateway/scoring_run.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

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

TEST_F(CoreTest, ATextGoesToAReplicaThatCanHoldAllOfItsOutput) {
  MakeCore(2, 1);
  blocks_[0]->pages = 20;  // 320 tokens
  blocks_[0]->checks_reserve = true;
  Connect();
  const Stream large = Generate(Request(8, 400, 1));
  ASSERT_TRUE(RunUntilDone({large}));
  ExpectExact(large);
  EXPECT_EQ(blocks_[0]->opens, 0);
  const Stream small = Generate(Request(8, 40, 2));
  ASSERT_TRUE(RunUntilDone({small}));
  ExpectExact(small);
  EXPECT_EQ(blocks_[0]->opens, 1);
  // Nobody else is there: no replica is asked what cannot be had.
  blocks_[1]->Kill();
  const Stream refused = Generate(Request(8, 400, 3));
  ASSERT_TRUE(RunUntilDone({refused}, absl::Seconds(1)));
  EXPECT_EQ(refused.sink->status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.sink->status.message(), HasSubstr("stop.max_tokens: "));
  EXPECT_TRUE(IsContextLengthExceeded(refused.sink->status));
  EXPECT_EQ(blocks_[0]->opens, 1);
}

// Its positions may be fewer than its pages hold, and than those of others.
TEST_F(CoreTest, ATextGoesToAReplicaThatHasPositionsForAllOfItsOutput) {
  MakeCore(2, 1);
  blocks_[0]->max_blocks = 80;  // 320 tokens
  Connect();
  const Stream large = Generate(Request(8, 317, 1));
  ASSERT_TRUE(RunUntilDone({large}));
  ExpectExact(large);
  EXPECT_EQ(blocks_[0]->opens, 0);
  blocks_[1]->Kill();
  // The last block of the output is never embedded.
  const Stream longest = Generate(Request(8, 316, 2));
  ASSERT_TRUE(RunUntilDone({longest}));
  ExpectExact(longest);
  const Stream refused = Generate(Request(8, 317, 3));
  ASSERT_TRUE(RunUntilDone({refused}, absl::Seconds(1)));
  EXPECT_THAT(refused.sink->status.message(), HasSubstr("stop.max_tokens: "));
  EXPECT_TRUE(IsContextLengthExceeded(refused.sink->status));
  EXPECT_EQ(blocks_[0]->opens, 1);
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

TEST_F(CoreTest, DeadlineEndsARequestThatWaitsForRoom) {
  MakeCore(1, 1);
  blocks_[0]->pages = 2;
  Connect();
  const Stream first = Generate(Request(20, 12, 13));
  first.sink->wants_more = false;
  loop_.Advance(absl::Seconds(1));
  GenerationRequest request = Request(20, 4, 14);
  request.deadline = loop_.Now() + absl::Seconds(2);
  const Stream second = Generate(request);
  ASSERT_TRUE(RunUntilDone({second}));
  EXPECT_EQ(second.sink->status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(second.sink->started, 0);
  core_->Cancel(first.id, ClientHasGone());
  ExpectNothingLeft();
}

TEST_F(CoreTest, RequestsQueueForKvInOrderAndAllFinish) {
  MakeCore(1, 1);
  blocks_[0]->pages = 8;
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 40; ++i) streams.push_back(Generate(Request(16, 12, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  ExpectNothingLeft();
}

TEST_F(CoreTest, BeyondTheQueuesBoundRequestsAreRefusedAtOnce) {
  options_.tier.max_queued = 3;
  MakeCore(1, 1);
  blocks_[0]->pages = 1;
  Connect();
  std::vector<Stream> streams;
  streams.push_back(Generate(Request(8, 8, 0)));
  streams[0].sink->wants_more = false;
  loop_.Advance(absl::Milliseconds(50));
  for (uint64_t i = 1; i < 8; ++i) {
    streams.push_back(Generate(Request(8, 4, i)));
    loop_.Advance(absl::Milliseconds(1));
  }
  int refused = 0;
  loop_.RunReady();
  for (const Stream& stream : streams) {
    if (stream.sink->done == 0) continue;
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(RetryAfter(stream.sink->status).has_value());
    ++refused;
  }
  EXPECT_GE(refused, 3);
  streams[0].sink->wants_more = true;
  core_->Resume(streams[0].id);
  ASSERT_TRUE(RunUntilDone(streams));
  int served = 0;
  for (const Stream& stream : streams) served += stream.sink->status.ok() ? 1 : 0;
  EXPECT_EQ(served + refused, 8);
  ExpectNothingLeft();
}

TEST_F(CoreTest, HighPriorityIsServedFirst) {
  MakeCore(1, 1);
  blocks_[0]->pages = 1;
  Connect();
  std::vector<Stream> streams = {Generate(Request(8, 8, 0))};
  loop_.Advance(absl::Milliseconds(1));
  for (uint64_t i = 1; i <= 3; ++i) {
    GenerationRequest request = Request(8, 8, i);
    request.priority = static_cast<uint32_t>(4 - i);
    streams.push_back(Generate(request));
  }
  ASSERT_TRUE(loop_.RunUntil([&] { return streams[3].sink->done == 1; }));
  EXPECT_EQ(streams[1].sink->started, 0);
  EXPECT_EQ(streams[2].sink->started, 0);
  ASSERT_TRUE(RunUntilDone(streams));
}

TEST_F(CoreTest, ATextThatFitsNowhereIsRefused) {
  MakeCore(1, 1);
  blocks_[0]->pages = 2;
  Connect();
  const Stream stream = Generate(Request(100, 4, 1));
  ASSERT_TRUE(RunUntilDone({stream}, absl::Seconds(1)));
  EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(stream.sink->status.message(), HasSubstr("prompt: "));
  EXPECT_TRUE(IsContextLengthExceeded(stream.sink->status));
  EXPECT_FALSE(RetryAfter(stream.sink->status).has_value());
  EXPECT_EQ(blocks_[0]->opens, 0);
}

TEST_F(CoreTest, TheModelsLimitIsThatOfTheLargestKv) {
  MakeCore(2, 1);
  blocks_[0]->pages = 2;
  blocks_[1]->pages = 10;  // of 4 blocks of 4 tokens: 160
  Connect();
  v1::GetModelResponse response;
  response.set_max_tokens(1000);
  core_->FillModelStatus(response);
  EXPECT_EQ(response.max_tokens(), 157) << "up to three pads come before it";
  const int64_t most = response.max_tokens();
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    GenerationRequest request = Request(most - 9, 9, 1);
    request.alignment = alignment;
    const Stream stream = Generate(request);
    ASSERT_TRUE(RunUntilDone({stream}));
    EXPECT_TRUE(stream.sink->status.ok()) << stream.sink->status;
  }
  response.set_max_tokens(100);
  core_->FillModelStatus(response);
  EXPECT_EQ(response.max_tokens(), 100);
}

TEST_F(CoreTest, DrainingRefusesNewRequestsAndFinishesOldOnes) {
  MakeCore(1, 1);
  const Stream old = Generate(Request(4, 40, 1));
  loop_.Advance(absl::Milliseconds(3));
  core_->StartDraining();
  const Stream late = Generate(Request(4, 40, 2));
  ASSERT_TRUE(RunUntilDone({old, late}));
  ExpectExact(old);
  EXPECT_EQ(late.sink->status.code(), absl::StatusCode::kUnavailable);
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

// ---- scoring

class ScoringTest : public CoreFixture {
 protected:
  std::shared_ptr<RecordingScoreSink> Score(ScoringRequest request) {
    request.request_id = "score";
    request.deadline = loop_.Now() + absl::Minutes(1);
    auto sink = std::make_shared<RecordingScoreSink>();
    core_->Score(std::move(request), sink);
    loop_.RunUntil([&] { return sink->done > 0; });
    return sink;
  }
};

TEST_F(ScoringTest, AContinuationsScoresAreThoseOfGeneratingIt) {
  MakeCore(1, 2);
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    for (const int32_t prompt : {1, 2, 3, 4, 5, 17}) {
      GenerationRequest request = Request(prompt, 11, static_cast<uint64_t>(prompt));
      request.alignment = alignment;
      request.logprobs = 0;
      const Stream stream = Generate(request);
      ASSERT_TRUE(RunUntilDone({stream}));
      ScoringRequest scoring;
      scoring.alignment = alignment;
      scoring.tokens = request.prompt;
      scoring.first_scored = prompt;
      const std::vector<int32_t>& output = stream.sink->tokens.at(0);
      scoring.tokens.insert(scoring.tokens.end(), output.begin(), output.end());
      const auto sink = Score(scoring);
      ASSERT_EQ(sink->done, 1);
      ASSERT_TRUE(sink->response.ok()) << sink->response.status();
      ASSERT_EQ(sink->response->tokens_size(), 11);
      ASSERT_EQ(sink->response->logprobs_size(), 11);
      for (int i = 0; i < 11; ++i) {
        EXPECT_EQ(sink->response->logprobs(i).logprob(),
                  stream.sink->logprobs.at(0)[static_cast<size_t>(i)])
            << AlignmentName(alignment) << " prompt " << prompt << " token " << i;
      }
    }
  }
  ExpectNothingLeft();
}

TEST_F(ScoringTest, WhatHasNoScore) {
  MakeCore(1, 1);
  const auto unscored = [&](Alignment alignment, size_t length) {
    ScoringRequest scoring;
    scoring.alignment = alignment;
    scoring.tokens.assign(length, 5);
    const auto sink = Score(scoring);
    EXPECT_TRUE(sink->response.ok()) << sink->response.status();
    int without = 0;
    for (int i = 0; i < sink->response->logprobs_size(); ++i) {
      if (sink->response->logprobs(i).has_logprob()) continue;
      EXPECT_EQ(i, without);
      ++without;
    }
    return without;
  };
  EXPECT_EQ(unscored(Alignment::kStart, 1), 1);
  EXPECT_EQ(unscored(Alignment::kStart, 9), 1);
  EXPECT_EQ(unscored(Alignment::kNone, 9), 4);
  EXPECT_EQ(unscored(Alignment::kNone, 4), 4);
  EXPECT_EQ(unscored(Alignment::kNone, 2), 2);
}

TEST_F(ScoringTest, TextsHaveTwoBatchesByThemselvesAndOneBesideGenerations) {
  MakeCore(1, 2);
  for (const auto& worker : workers_) {
    worker->max_rows = 8;
    worker->service_time = absl::Milliseconds(10);
  }
  Connect();
  ScoringRequest scoring;
  scoring.alignment = Alignment::kStart;
  for (int32_t i = 0; i < 2000; ++i) scoring.tokens.push_back(i % kSimulatedVocab);
  scoring.deadline = loop_.Now() + absl::Minutes(1);
  auto sink = std::make_shared<RecordingScoreSink>();
  core_->Score(scoring, sink);
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().under_way(), 2 * 16);
  const Stream stream = Generate(Request(5, 2000, 1));
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().under_way(), 16);
  std::vector<std::shared_ptr<RecordingScoreSink>> others;
  for (int i = 0; i < 20; ++i) {
    others.push_back(std::make_shared<RecordingScoreSink>());
    core_->Score(scoring, others.back());
  }
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_GE(core_->scoring_rows().under_way(), 20) << "each of them has one";
  EXPECT_LE(core_->scoring_rows().under_way(), 16 + 20);
  core_->Cancel(stream.id, ClientHasGone());
  loop_.RunUntil([&] { return sink->done > 0 && others.back()->done > 0; });
  EXPECT_TRUE(others.back()->response.ok()) << others.back()->response.status();
  loop_.Advance(absl::Seconds(10));
  EXPECT_EQ(core_->scoring_rows().sources(), 0);
  EXPECT_EQ(core_->scoring_rows().under_way(), 0);
  ASSERT_TRUE(sink->response.ok()) << sink->response.status();
  EXPECT_FALSE(sink->response->logprobs(0).has_logprob());
  for (int i = 1; i < 2000; ++i) ASSERT_TRUE(sink->response->logprobs(i).has_logprob()) << i;
  ExpectNothingLeft();
}

TEST_F(ScoringTest, ATextThatIsGivenUpLeavesItsRowsToOthers) {
  MakeCore(1, 1);
  workers_[0]->max_rows = 4;
  Connect();
  workers_[0]->Freeze();
  std::vector<GenerationId> texts;
  const auto sink = std::make_shared<RecordingScoreSink>();
  for (int i = 0; i < 3; ++i) {
    ScoringRequest scoring;
    scoring.tokens.assign(200, i);
    scoring.deadline = loop_.Now() + absl::Minutes(1);
    texts.push_back(core_->Score(scoring, sink));
  }
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().sources(), 3);
  core_->Cancel(texts[0], ClientHasGone());
  core_->Cancel(texts[1], ClientHasGone());
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().sources(), 1);
  EXPECT_EQ(core_->scoring_rows().under_way(), 8) << "all are its own";
  core_->Cancel(texts[2], ClientHasGone());
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().under_way(), 0);
  EXPECT_EQ(sink->done, 0);
  workers_[0]->Thaw();
  ExpectNothingLeft();
}

TEST(PlanScore, LaysTheTextOutAsGeneratingDoes) {
  ModelConfig config;
  config.block_length = 4;
  config.pad_token_id = 9;
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7};
  const ScorePlan end = PlanScore(config, Alignment::kEnd, tokens, 3);
  EXPECT_EQ(end.padded, (std::vector<int32_t>{9, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(end.first_block, 1);
  EXPECT_EQ(end.end_block, 2);
  const ScorePlan start = PlanScore(config, Alignment::kStart, tokens, 3);
  EXPECT_EQ(start.num_pads, 3);
  EXPECT_EQ(start.first_block, 1);
  EXPECT_EQ(start.end_block, 3);
  const ScorePlan none = PlanScore(config, Alignment::kNone, tokens, 0);
  EXPECT_EQ(none.num_pads, 0);
  EXPECT_EQ(none.first_block, 1);
  EXPECT_EQ(none.end_block, 2);
  const ScorePlan single = PlanScore(config, Alignment::kNone, {1, 2}, 0);
  EXPECT_EQ(single.first_block, single.end_block);
}

}  // namespace
}  // namespace blockserve
