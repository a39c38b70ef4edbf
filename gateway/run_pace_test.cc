#include "gateway/run_pace.h"

#include <gtest/gtest.h>

namespace blockserve {
namespace {

double Seconds(absl::Duration time) { return absl::ToDoubleSeconds(time); }

class RunPaceTest : public ::testing::Test {
 protected:
  // A request, of so many that run side by side, writes tokens one after the other.
  void Write(int tokens, absl::Duration each, int64_t running) {
    for (int i = 0; i < tokens; ++i) {
      now_ += each;
      pace_.Wrote(1, each, running, now_);
    }
  }

  RunPace pace_;
  absl::Time now_ = absl::FromUnixSeconds(1000);
};

TEST_F(RunPaceTest, BeforeAnythingIsWrittenItIsThatOfASlowMachine) {
  EXPECT_FALSE(pace_.known());
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, 1, 1)), 1.2, 1e-6);
  pace_.Started(absl::Milliseconds(1), 1, now_);
  EXPECT_FALSE(pace_.known());
  Write(1, absl::Milliseconds(1), 1);
  EXPECT_TRUE(pace_.known());
  EXPECT_NEAR(Seconds(pace_.TimeOf(1000, 1, 1)), 1.001, 1e-6);
}

TEST_F(RunPaceTest, IsKnownBeforeAnybodyHasEnded) {
  pace_.Started(absl::Milliseconds(100), 64, now_);
  Write(4, absl::Milliseconds(20), 64);
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, 64, 1)), 2.1, 1e-6);
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, 64, 1.25)), 2.625, 1e-6);
  EXPECT_EQ(pace_.TimeOf(1, 64, 1), absl::Milliseconds(200)) << "never nothing";
}

TEST_F(RunPaceTest, MoreSideBySideAreSlowerAndFewAreNoFaster) {
  pace_.Started(absl::Milliseconds(100), 64, now_);
  Write(4, absl::Milliseconds(20), 64);
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, 128, 1)), 4.2, 1e-6);
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, 1, 1)), 2.1, 1e-6);
  Write(4000, absl::Milliseconds(5), 1);
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, RunPace::kFew, 1)), 0.6, 0.01);
}

TEST_F(RunPaceTest, FollowsAChangeWithinSeconds) {
  Write(1000, absl::Milliseconds(10), 10);
  Write(100, absl::Milliseconds(60), 10);
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, 10, 1)), 6.2, 0.5);
}

TEST_F(RunPaceTest, WhatIsCutOffBeforeItHasWrittenCounts) {
  for (int i = 0; i < 10; ++i) pace_.Started(absl::Seconds(3), 10, now_);
  Write(10, absl::Milliseconds(1), 10);
  pace_.Wrote(0, absl::Seconds(3), 10, now_);  // its last token never came
  EXPECT_GT(pace_.TimeOf(10, 10, 1), absl::Seconds(5));
}

TEST_F(RunPaceTest, ThoseThatEndEarlySayHowMuchOfALengthIsWritten) {
  Write(100, absl::Milliseconds(10), 1);
  EXPECT_NEAR(Seconds(pace_.TimeOf(2000, 1, 1)), 20.2, 0.1);
  for (int i = 0; i < 100; ++i) pace_.Ended(100, 2000);
  EXPECT_NEAR(Seconds(pace_.TimeOf(2000, 1, 1)), 1.2, 0.1);
  // Scores write nothing, and say nothing of it.
  for (int i = 0; i < 100; ++i) pace_.Ended(0, 1);
  EXPECT_NEAR(Seconds(pace_.TimeOf(2000, 1, 1)), 1.2, 0.1);
}

TEST_F(RunPaceTest, WhoHasWrittenMoreThanOthersStillHasSomethingToWrite) {
  Write(100, absl::Milliseconds(10), 1);
  EXPECT_NEAR(Seconds(pace_.TimeLeft(100, 60, 1)), 0.4, 1e-6);
  EXPECT_NEAR(Seconds(pace_.TimeLeft(100, 99, 1)), 0.01, 1e-6);
  EXPECT_NEAR(Seconds(pace_.TimeLeft(100, 0, 1)), 1.2, 1e-6) << "and it has not begun";
  for (int i = 0; i < 1000; ++i) pace_.Ended(40, 100);
  EXPECT_NEAR(Seconds(pace_.TimeLeft(100, 60, 1)), 0.1, 0.001);
}

TEST_F(RunPaceTest, WhatWasKnownStaysKnown) {
  pace_.Started(absl::Milliseconds(100), 1, now_);
  Write(10, absl::Milliseconds(5), 1);
  now_ += absl::Hours(24);
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, 1, 1)), 0.6, 1e-6);
  Write(10, absl::Milliseconds(7), 1);
  EXPECT_NEAR(Seconds(pace_.TimeOf(100, 1, 1)), 0.8, 0.01);
}

}  // namespace
}  // namespace blockserve
