// The core over simulated tiers: who gets the room that block replicas have, who waits for it, and
// whom none can take.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "gateway/context_length.h"
#include "gateway/core.h"
#include "gateway/core_fixture.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

class RoomTest : public CoreFixture {};

TEST_F(RoomTest, ATextGoesToAReplicaThatCanHoldAllOfItsOutput) {
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
TEST_F(RoomTest, ATextGoesToAReplicaThatHasPositionsForAllOfItsOutput) {
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

TEST_F(RoomTest, DeadlineEndsARequestThatWaitsForRoom) {
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

TEST_F(RoomTest, RequestsQueueForKvInOrderAndAllFinish) {
  MakeCore(1, 1);
  blocks_[0]->pages = 8;
  Connect();
  std::vector<Stream> streams;
  for (uint64_t i = 0; i < 40; ++i) streams.push_back(Generate(Request(16, 12, i)));
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
  ExpectNothingLeft();
}

TEST_F(RoomTest, BeyondTheQueuesBoundRequestsAreRefusedAtOnce) {
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

TEST_F(RoomTest, HighPriorityIsServedFirst) {
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

TEST_F(RoomTest, ATextThatFitsNowhereIsRefused) {
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

TEST_F(RoomTest, TheModelsLimitIsThatOfTheLargestKv) {
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

// A model of 80 positions and blocks of 4 says 320: that replicas have no more says nothing less.
TEST_F(RoomTest, PositionsDoNotLowerTheModelsLimit) {
  MakeCore(1, 1);
  blocks_[0]->max_blocks = 80;
  Connect();
  v1::GetModelResponse response;
  response.set_max_tokens(320);
  core_->FillModelStatus(response);
  EXPECT_EQ(response.max_tokens(), 320);
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    GenerationRequest request = Request(311, 9, 1);
    request.alignment = alignment;
    const Stream stream = Generate(request);
    ASSERT_TRUE(RunUntilDone({stream}));
    EXPECT_TRUE(stream.sink->status.ok()) << stream.sink->status;
  }
}

}  // namespace
}  // namespace blockserve
