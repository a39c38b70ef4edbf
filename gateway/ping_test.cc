// Who is cut off is found by pings, however long work takes in the tier.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "gateway/core_fixture.h"

namespace blockserve {
namespace {

class PingTest : public CoreFixture {
 protected:
  PingTest() { options_.tier.progress_bound = absl::Seconds(30); }

  std::vector<Stream> Load(uint64_t count, int32_t tokens, uint64_t first_seed = 0) {
    std::vector<Stream> made;
    for (uint64_t i = 0; i < count; ++i) {
      GenerationRequest request = Request(9, tokens, first_seed + i);
      request.deadline = loop_.Now() + absl::Hours(10);
      made.push_back(Generate(std::move(request)));
    }
    return made;
  }
  // Of all streams: the longest time without a token while `run` goes on in steps of 10 ms.
  absl::Duration LongestStall(
      const std::vector<Stream>& streams, absl::Duration run,
      const std::function<void()>& each_step = [] {}) {
    std::vector<size_t> had(streams.size(), 0);
    std::vector<absl::Time> since(streams.size(), loop_.Now());
    absl::Duration longest = absl::ZeroDuration();
    const absl::Time end = loop_.Now() + run;
    while (loop_.Now() < end) {
      loop_.Advance(absl::Milliseconds(10));
      each_step();
      for (size_t i = 0; i < streams.size(); ++i) {
        const size_t has = streams[i].sink->tokens[0].size();
        if (has != had[i] || streams[i].sink->done > 0) since[i] = loop_.Now();
        had[i] = has;
        longest = std::max(longest, loop_.Now() - since[i]);
      }
    }
    return longest;
  }
};

// Its rows take 0.8 s, so that 3.2 s of silence would be nothing special.
TEST_F(PingTest, AFrozenWorkerOfASlowTierIsFoundSoonerThanItsRowsTake) {
  MakeCore(1, 3);
  for (const auto& worker : workers_) worker->service_time = absl::Milliseconds(800);
  const std::vector<Stream> streams = Load(12, 400);
  loop_.Advance(absl::Seconds(20));
  workers_[0]->Freeze();
  EXPECT_LT(LongestStall(streams, absl::Seconds(6)), absl::Milliseconds(1150 + 2 * 800 + 100));
  EXPECT_EQ(core_->token_tier().stats().ejected, 1);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
}

TEST_F(PingTest, AFrozenReplicaOfASlowTierIsFoundSoonerThanItsBlocksTake) {
  MakeCore(2, 2);
  for (const auto& replica : blocks_) replica->service_time = absl::Milliseconds(800);
  const std::vector<Stream> streams = Load(12, 400);
  loop_.Advance(absl::Seconds(60));
  blocks_[0]->Freeze();
  EXPECT_LT(LongestStall(streams, absl::Seconds(6)), absl::Milliseconds(1150 + 2 * 800 + 100));
  EXPECT_EQ(core_->block_tier().stats().ejected, 1);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
}

// Cut off one way: what it has to say comes through, and it is given nothing.
TEST_F(PingTest, AReplicaThatHearsNothingAndTalksOnIsNotGivenSequencesUntilItAnswers) {
  MakeCore(2, 2);
  for (const auto& replica : blocks_) replica->pages = 100'000;
  const std::vector<Stream> streams = Load(12, 12'000);
  loop_.Advance(absl::Seconds(1));
  blocks_[0]->Freeze();
  EXPECT_LT(LongestStall(streams, absl::Seconds(4), [&] { blocks_[0]->Say(); }),
            absl::Milliseconds(1300));
  EXPECT_EQ(core_->block_tier().stats().ejected, 1);
  const int opens = blocks_[0]->opens;
  blocks_[0]->Thaw();
  loop_.Advance(absl::Milliseconds(10));
  const std::vector<Stream> more = Load(12, 400, /*first_seed=*/100);
  ASSERT_TRUE(RunUntilDone(more));
  EXPECT_GT(blocks_[0]->opens, opens);
}

TEST_F(PingTest, AWorkerThatIsOnlySlowAnswersPingsAndKeepsItsRows) {
  MakeCore(2, 2);
  for (const auto& replica : blocks_) replica->service_time = absl::Milliseconds(1500);
  for (const auto& worker : workers_) worker->service_time = absl::Milliseconds(1500);
  const std::vector<Stream> streams = Load(6, 400);
  ASSERT_TRUE(RunUntilDone(streams, absl::Minutes(30)));
  EXPECT_GT(blocks_[0]->pings, 0);
  EXPECT_GT(workers_[0]->pings, 0);
  EXPECT_EQ(core_->token_tier().stats().ejected, 0);
  EXPECT_EQ(core_->block_tier().stats().ejected, 0);
  for (const Stream& stream : streams) ExpectExact(stream);
}

// It can be reached, and gets nowhere: found by that.
TEST_F(PingTest, AWorkerOrReplicaWhoseEngineHangsIsFoundAllTheSame) {
  MakeCore(2, 3);
  for (const auto& replica : blocks_) replica->pages = 100'000;
  const std::vector<Stream> streams = Load(12, 16'000);
  loop_.Advance(absl::Seconds(1));
  workers_[0]->Hang();
  EXPECT_LT(LongestStall(streams, absl::Seconds(3)), absl::Milliseconds(800));
  blocks_[0]->Hang();
  EXPECT_LT(LongestStall(streams, absl::Seconds(3)), absl::Milliseconds(800));
  EXPECT_EQ(core_->token_tier().stats().ejected, 1);
  EXPECT_EQ(core_->block_tier().stats().ejected, 1);
  ASSERT_TRUE(RunUntilDone(streams));
  for (const Stream& stream : streams) ExpectExact(stream);
}

TEST_F(PingTest, WhereNobodyAnswersItIsTheGatewayThatIsCutOff) {
  MakeCore(2, 2);
  const std::vector<Stream> streams = Load(12, 4000);
  loop_.Advance(absl::Milliseconds(300));
  for (const auto& worker : workers_) worker->Freeze();
  loop_.Advance(absl::Seconds(5));
  for (const auto& worker : workers_) worker->Thaw();
  for (const auto& replica : blocks_) replica->Freeze();
  loop_.Advance(absl::Seconds(1));
  for (const auto& replica : blocks_) replica->Thaw();
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(core_->token_tier().stats().ejected, 0);
  for (const Stream& stream : streams) ExpectExact(stream);
  ExpectNothingLeft();
}

TEST_F(PingTest, AnOlderBuildIsNotAskedWhatItDoesNotKnow) {
  MakeCore(2, 2);
  for (const auto& replica : blocks_) replica->answers_pings = false;
  for (const auto& worker : workers_) worker->answers_pings = false;
  for (const auto& worker : workers_) worker->service_time = absl::Milliseconds(400);
  const std::vector<Stream> streams = Load(6, 40);
  ASSERT_TRUE(RunUntilDone(streams));
  EXPECT_EQ(blocks_[0]->pings + workers_[0]->pings, 0);
  for (const Stream& stream : streams) ExpectExact(stream);
}

}  // namespace
}  // namespace blockserve
