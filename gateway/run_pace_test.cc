#include "gateway/run_pace.h"

#include <gtest/gtest.h>

namespace blockserve {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);

TEST(RunPace, KnowsNothingAtFirst) {
  const RunPace pace;
  EXPECT_FALSE(pace.known());
  EXPECT_EQ(pace.EndsPerSecond(10, kStart, kStart), 0);
  EXPECT_EQ(pace.TimeOf(1000), absl::Milliseconds(200));
}

TEST(RunPace, TellsByTheLengthHowLongARequestTakes) {
  RunPace pace;
  for (int i = 0; i < 100; ++i) pace.Ended(absl::Seconds(2), 200, kStart);
  EXPECT_NEAR(absl::ToDoubleSeconds(pace.TimeOf(200)), 2.5, 0.01) << "a quarter more";
  EXPECT_NEAR(absl::ToDoubleSeconds(pace.TimeOf(800)), 10, 0.05);
  EXPECT_EQ(pace.TimeOf(1), absl::Milliseconds(200)) << "never nothing";
}

TEST(RunPace, ShortOnesSayLittleOfLongOnes) {
  RunPace pace;
  for (int i = 0; i < 200; ++i) {
    pace.Ended(absl::Milliseconds(100), 1, kStart);
    pace.Ended(absl::Seconds(5), 500, kStart);
  }
  EXPECT_NEAR(absl::ToDoubleSeconds(pace.TimeOf(500)), 6.25, 0.5);
}

TEST(RunPace, FollowsAChange) {
  RunPace pace;
  for (int i = 0; i < 50; ++i) pace.Ended(absl::Seconds(1), 100, kStart);
  for (int i = 0; i < 50; ++i) pace.Ended(absl::Seconds(4), 100, kStart);
  EXPECT_NEAR(absl::ToDoubleSeconds(pace.TimeOf(100)), 5, 0.1);
}

TEST(RunPace, EndsPerSecondAreThoseOfLittlesLaw) {
  RunPace pace;
  for (int i = 0; i < 50; ++i) pace.Ended(absl::Seconds(2), 100, kStart);
  EXPECT_NEAR(pace.EndsPerSecond(100, kStart - absl::Seconds(30), kStart), 50, 0.5);
  // What stands still has no pace; what has only just got a queue has that of before.
  EXPECT_NEAR(pace.EndsPerSecond(100, kStart, kStart + absl::Seconds(20)), 5, 0.1);
  EXPECT_NEAR(pace.EndsPerSecond(100, kStart + absl::Hours(1), kStart + absl::Hours(1)), 50, 0.5);
}

}  // namespace
}  // namespace blockserve
