#include "common/progress.h"

#include "gtest/gtest.h"

namespace blockserve {
namespace {

class StallWatchTest : public testing::Test {
 protected:
  bool IsStuckAfter(absl::Duration more) { return watch_.IsStuck(now_ += more); }

  absl::Time now_ = absl::UnixEpoch();
  Progress progress_;
  StallWatch watch_{progress_, absl::Seconds(10), now_};
};

TEST_F(StallWatchTest, AnIdleThreadIsNeverStuck) {
  EXPECT_FALSE(IsStuckAfter(absl::Seconds(5)));
  EXPECT_FALSE(IsStuckAfter(absl::Hours(5)));
  progress_.Add(1);
  EXPECT_FALSE(IsStuckAfter(absl::Seconds(9))) << "idle until now, as far as it was seen";
}

TEST_F(StallWatchTest, WorkThatNobodyTouchesForTheBoundIsStuck) {
  EXPECT_FALSE(IsStuckAfter(absl::Seconds(1)));
  progress_.Add(3);
  EXPECT_FALSE(IsStuckAfter(absl::Seconds(9)));
  EXPECT_TRUE(IsStuckAfter(absl::Seconds(1)));
  EXPECT_TRUE(IsStuckAfter(absl::Seconds(1))) << "until something is done";
}

TEST_F(StallWatchTest, AQueueThatNeverEmptiesIsNotStuckWhileItMoves) {
  progress_.Add(1'000'000);
  for (int i = 0; i < 100; ++i) {
    EXPECT_FALSE(IsStuckAfter(absl::Seconds(9)));
    progress_.Done(1);
    progress_.Add(2);
  }
}

TEST_F(StallWatchTest, WorkThatIsTakenBackIsNoProgress) {
  progress_.Add(50);
  for (int i = 0; i < 9; ++i) {
    EXPECT_FALSE(IsStuckAfter(absl::Seconds(1)));
    progress_.Withdraw(1);
  }
  EXPECT_TRUE(IsStuckAfter(absl::Seconds(1)));
  progress_.Withdraw(41);
  EXPECT_FALSE(IsStuckAfter(absl::Seconds(1))) << "nothing is left to be done";
}

TEST_F(StallWatchTest, RecoversWhenTheThreadMovesAgain) {
  progress_.Add(2);
  EXPECT_TRUE(IsStuckAfter(absl::Seconds(20)));
  progress_.Done(1);
  EXPECT_FALSE(IsStuckAfter(absl::Seconds(1)));
  EXPECT_TRUE(IsStuckAfter(absl::Seconds(10)));
}

}  // namespace
}  // namespace blockserve
