#include "common/busy_meter.h"

#include <gtest/gtest.h>

namespace blockserve {
namespace {

const absl::Time kStart = absl::FromUnixSeconds(1000);
absl::Time At(double seconds) { return kStart + absl::Seconds(seconds); }

TEST(BusyMeter, IsIdleAtFirst) {
  BusyMeter meter(kStart);
  EXPECT_EQ(meter.Share(kStart), 0);
  EXPECT_EQ(meter.Share(At(3)), 0);
}

TEST(BusyMeter, TellsTheShareSinceTheStartAtFirst) {
  BusyMeter meter(kStart);
  meter.Add(At(0), At(1));
  EXPECT_NEAR(meter.Share(At(1)), 1.0, 1e-6);
  EXPECT_NEAR(meter.Share(At(2)), 0.5, 1e-6);
  EXPECT_NEAR(meter.Share(At(4)), 0.25, 1e-6);
}

TEST(BusyMeter, TellsTheShareOfTheLastSecondsLater) {
  BusyMeter meter(kStart);
  for (int i = 0; i < 2000; ++i) meter.Add(At(i * 0.01), At(i * 0.01 + 0.004));
  EXPECT_NEAR(meter.Share(At(20)), 0.4, 0.02);
  // Idle for 2.5 s, then for long.
  EXPECT_NEAR(meter.Share(At(22.5)), 0.2, 0.03);
  EXPECT_EQ(meter.Share(At(30)), 0);
  meter.Add(At(30), At(31));
  EXPECT_NEAR(meter.Share(At(31)), 0.2, 0.02);
}

TEST(BusyMeter, CountsAStepLongerThanTheWindowOnce) {
  BusyMeter meter(kStart);
  meter.Add(At(1), At(100));
  EXPECT_NEAR(meter.Share(At(100)), 1.0, 1e-6);
  EXPECT_LE(meter.Share(At(100)), 1.0f);
}

}  // namespace
}  // namespace blockserve
