// Tiers whose answers are nonsense: of every request something becomes, once, and nothing is left.
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

#include "gateway/core_fixture.h"

namespace blockserve {
namespace {

class BadRepliesTest : public CoreFixture {
 protected:
  // Now and then some bytes of a message are others; what does not parse gets no further than gRPC.
  template <class Reply>
  void Garble(Reply& reply) {
    if (Draw(6) != 0) return;
    std::string bytes = reply.SerializeAsString();
    for (size_t changes = 1 + Draw(3); changes > 0 && !bytes.empty(); --changes) {
      const size_t at = Draw(bytes.size());
      switch (Draw(4)) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << Draw(8)));
          break;
        case 1:
          bytes[at] = static_cast<char>(Draw(256));
          break;
        case 2:
          bytes.erase(at, 1 + Draw(8));
          break;
        default:
          bytes.insert(at, bytes.substr(Draw(bytes.size()), 1 + Draw(16)));
          break;
      }
    }
    Reply changed;
    if (!changed.ParseFromString(bytes)) return;
    ++garbled_;
    reply = std::move(changed);
  }
  size_t Draw(size_t below) { return random_() % below; }

  std::mt19937_64 random_;
  int garbled_ = 0;
};

TEST_F(BadRepliesTest, EndRequestsOnceAndBringNothingDown) {
  int ok = 0, failed = 0;
  for (uint64_t seed = 1; seed <= 600; ++seed) {
    SCOPED_TRACE(seed);
    random_.seed(seed);
    core_.reset();
    blocks_.clear();
    workers_.clear();
    MakeCore(2, 2);
    for (const auto& replica : blocks_) {
      replica->garble = [this](v1::BlockReplyBatch& reply) { Garble(reply); };
    }
    for (const auto& worker : workers_) {
      worker->garble = [this](v1::TokenReplyBatch& reply) { Garble(reply); };
    }
    Connect();
    std::vector<Stream> streams;
    for (uint64_t i = 0; i < 12; ++i) {
      GenerationRequest request = Request(static_cast<int32_t>(1 + Draw(20)),
                                          static_cast<int32_t>(1 + Draw(40)), seed * 100 + i);
      request.n = static_cast<int32_t>(1 + Draw(3));
      if (Draw(2) == 0) request.logprobs = static_cast<int32_t>(Draw(3));
      request.deadline = loop_.Now() + absl::Seconds(30);
      streams.push_back(Generate(std::move(request)));
    }
    ScoringRequest scoring;
    for (int32_t i = 0; i < 30; ++i) scoring.tokens.push_back(i);
    scoring.first_scored = 1;
    scoring.deadline = loop_.Now() + absl::Seconds(30);
    const auto scored = std::make_shared<RecordingScoreSink>();
    core_->Score(std::move(scoring), scored);
    ASSERT_TRUE(RunUntilDone(streams, absl::Minutes(1)));
    ASSERT_TRUE(loop_.RunUntil([&] { return scored->done > 0; }, absl::Minutes(1)));
    loop_.Advance(absl::Seconds(1));
    EXPECT_EQ(scored->done, 1);
    for (const Stream& stream : streams) {
      EXPECT_EQ(stream.sink->done, 1);
      ++(stream.sink->status.ok() ? ok : failed);
      for (const auto& [choice, tokens] : stream.sink->tokens) {
        EXPECT_LT(choice, static_cast<uint32_t>(stream.request.n));
        EXPECT_LE(static_cast<int32_t>(tokens.size()), stream.request.max_tokens);
        for (const int32_t token : tokens) {
          EXPECT_GE(token, 0);
          EXPECT_LT(token, kSimulatedVocab);
        }
      }
    }
    EXPECT_EQ(core_->live_requests(), 0);
    EXPECT_EQ(core_->token_tier().rows(), 0);
    EXPECT_EQ(core_->block_tier().sequences(), 0);
  }
  EXPECT_GT(garbled_, 1000);
  EXPECT_GT(ok, 0);
  EXPECT_GT(failed, 0);
}

TEST_F(BadRepliesTest, RowsOfBlocksThatAreNotThereEndTheRequest) {
  for (const int64_t first : {std::numeric_limits<int64_t>::max(), int64_t{7}, int64_t{-1}}) {
    SCOPED_TRACE(first);
    core_.reset();
    blocks_.clear();
    workers_.clear();
    MakeCore(1, 1);
    blocks_[0]->garble = [first](v1::BlockReplyBatch& reply) {
      for (v1::BlockReply& item : *reply.mutable_items()) {
        if (item.rows() > 0) item.set_first_block(first);
      }
    };
    Connect();
    ScoringRequest scoring;
    for (int32_t i = 0; i < 30; ++i) scoring.tokens.push_back(i);
    scoring.first_scored = 1;
    scoring.deadline = loop_.Now() + absl::Seconds(30);
    const auto scored = std::make_shared<RecordingScoreSink>();
    core_->Score(std::move(scoring), scored);
    const Stream stream = Generate(Request(4, 8, 1));
    ASSERT_TRUE(RunUntilDone({stream}));
    EXPECT_EQ(stream.sink->status.code(), absl::StatusCode::kInternal);
    ASSERT_TRUE(loop_.RunUntil([&] { return scored->done > 0; }, absl::Minutes(1)));
    EXPECT_EQ(scored->response.status().code(), absl::StatusCode::kInternal);
  }
}

}  // namespace
}  // namespace blockserve
