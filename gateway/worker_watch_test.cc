#include "gateway/worker_watch.h"

#include <gtest/gtest.h>

namespace blockserve {
namespace {

constexpr absl::Duration kBound = absl::Seconds(10);

TEST(ServiceTimes, UntilEnoughIsKnownTheBoundsAreThoseGiven) {
  ServiceTimes times;
  for (int i = 0; i < 31; ++i) times.Add(absl::Milliseconds(1));
  EXPECT_FALSE(times.p99().has_value());
  EXPECT_EQ(times.HedgeAfter(kBound), kBound);
  EXPECT_EQ(times.SilenceAllowed(kBound), absl::Seconds(2));
  EXPECT_EQ(times.SilenceAllowed(absl::Seconds(1)), absl::Seconds(1));
}

TEST(ServiceTimes, BoundsFollowTheP99WithinTheirLimits) {
  ServiceTimes fast, slow, slower;
  for (int i = 0; i < 512; ++i) {
    fast.Add(absl::Milliseconds(2));
    slow.Add(absl::Milliseconds(i % 50 == 0 ? 300 : 100));
    slower.Add(absl::Seconds(5));
  }
  EXPECT_EQ(fast.HedgeAfter(kBound), absl::Milliseconds(50));
  EXPECT_EQ(fast.SilenceAllowed(kBound), absl::Milliseconds(500));
  EXPECT_EQ(slow.HedgeAfter(kBound), absl::Milliseconds(900));
  EXPECT_EQ(slow.SilenceAllowed(kBound), absl::Milliseconds(1200));
  EXPECT_EQ(slower.HedgeAfter(kBound), kBound);
  EXPECT_EQ(slower.SilenceAllowed(kBound), kBound);
}

TEST(ServiceTimes, OneOfAHundredIsNotTheP99AndOldCallsAreForgotten) {
  ServiceTimes times;
  for (int i = 0; i < 512; ++i) times.Add(i < 4 ? absl::Seconds(3) : absl::Milliseconds(5));
  EXPECT_EQ(times.p99(), absl::Milliseconds(5));
  for (int i = 0; i < 512; ++i) times.Add(absl::Milliseconds(80));
  EXPECT_EQ(times.p99(), absl::Milliseconds(80));
}

TEST(HedgeBudget, OneCallInTwentyAndAFewAtOnce) {
  HedgeBudget budget;
  EXPECT_FALSE(budget.Take());
  int taken = 0;
  for (int i = 0; i < 2000; ++i) {
    budget.Done();
    taken += budget.Take();
  }
  EXPECT_EQ(taken, 100);
  for (int i = 0; i < 100000; ++i) budget.Done();
  taken = 0;
  while (budget.Take()) ++taken;
  EXPECT_EQ(taken, 8);
}

TEST(WorkerHealth, AnEjectedWorkerIsProbedLessAndLessOftenAndReturnsSlowly) {
  WorkerHealth health;
  absl::Time now = absl::FromUnixSeconds(1000);
  EXPECT_EQ(health.Allowed(96), 96);
  health.Eject(now);
  EXPECT_TRUE(health.ejected());
  EXPECT_FALSE(health.WantsProbe(now));
  int probes = 0;
  for (int i = 0; i < 10'000; ++i) {
    now += absl::Milliseconds(1);
    if (!health.WantsProbe(now)) continue;
    health.ProbeSent(now);
    ++probes;
  }
  EXPECT_GE(probes, 6);
  EXPECT_LE(probes, 10);
  health.Answered();
  EXPECT_FALSE(health.ejected());
  EXPECT_TRUE(health.returning());
  EXPECT_EQ(health.Allowed(96), 1);
  health.Answered();
  EXPECT_EQ(health.Allowed(96), 2);
  for (int i = 0; i < 70; ++i) health.Answered();
  EXPECT_FALSE(health.returning());
  EXPECT_EQ(health.Allowed(96), 96);
}

TEST(WorkerHealth, OneThatFailsWhileItReturnsWaitsLonger) {
  WorkerHealth health;
  const absl::Time now = absl::FromUnixSeconds(1000);
  health.Eject(now);
  EXPECT_TRUE(health.WantsProbe(now + absl::Milliseconds(100)));
  health.ProbeSent(now + absl::Milliseconds(100));
  health.Answered();
  health.Eject(now + absl::Milliseconds(200));
  EXPECT_FALSE(health.WantsProbe(now + absl::Milliseconds(550)));
  EXPECT_TRUE(health.WantsProbe(now + absl::Milliseconds(600)));
}

TEST(WorkerHealth, OneStrikeIsTooManyForOneThatReturns) {
  WorkerHealth health;
  const absl::Time now = absl::FromUnixSeconds(1000);
  EXPECT_FALSE(health.Strike(1, now));
  EXPECT_FALSE(health.Strike(2, now));
  EXPECT_TRUE(health.Strike(3, now));
  health.Eject(now);
  EXPECT_FALSE(health.Strike(4, now));
  EXPECT_TRUE(health.Answered());
  EXPECT_FALSE(health.Answered());
  EXPECT_TRUE(health.Strike(4, now));
  health.Reset();
  EXPECT_FALSE(health.Strike(5, now));
}

TEST(PingWatch, AsksOnceWhenACallHasWaitedAndAgainAfterItsAnswer) {
  PingWatch watch;
  const absl::Time now = absl::FromUnixSeconds(1000);
  const auto after = [&](int ms) { return now + absl::Milliseconds(ms); };
  watch.Reset(/*answers=*/true);
  EXPECT_EQ(watch.Next(absl::InfiniteFuture(), after(5000)), 0u);  // nothing is under way
  EXPECT_EQ(watch.Next(now, after(149)), 0u);
  const uint64_t first = watch.Next(now, after(150));
  EXPECT_NE(first, 0u);
  EXPECT_EQ(watch.Next(now, after(900)), 0u);  // one at a time
  EXPECT_TRUE(watch.Doubtful(after(650)));
  EXPECT_FALSE(watch.Unreachable(after(1149)));
  EXPECT_TRUE(watch.Unreachable(after(1150)));
  watch.Pong(first + 1);
  EXPECT_TRUE(watch.Unreachable(after(1150)));
  watch.Pong(first);
  EXPECT_FALSE(watch.Doubtful(after(9000)));
  EXPECT_NE(watch.Next(now, after(1200)), first);
}

TEST(PingWatch, DoesNotAskWhoDoesNotAnswer) {
  PingWatch watch;
  const absl::Time now = absl::FromUnixSeconds(1000);
  watch.Reset(/*answers=*/false);
  EXPECT_EQ(watch.Next(now, now + absl::Seconds(9)), 0u);
  EXPECT_FALSE(watch.Doubtful(now + absl::Seconds(99)));
}

TEST(PingWatch, ANewConnectionOwesNothingAndTimeWithoutUsDoesNotCount) {
  PingWatch watch;
  const absl::Time now = absl::FromUnixSeconds(1000);
  watch.Reset(/*answers=*/true);
  const uint64_t ping = watch.Next(now, now + absl::Seconds(1));
  watch.NotBefore(now + absl::Seconds(5));
  EXPECT_FALSE(watch.Unreachable(now + absl::Seconds(5)));
  EXPECT_TRUE(watch.Unreachable(now + absl::Seconds(6)));
  watch.Reset(/*answers=*/true);
  EXPECT_FALSE(watch.Unreachable(now + absl::Seconds(60)));
  EXPECT_GT(watch.Next(now, now + absl::Seconds(60)), ping);  // an old answer is none to a new one
}

TEST(Strikes, ThreeOfDifferentRequestsWithinTenSeconds) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  Strikes strikes;
  EXPECT_FALSE(strikes.Add(1, now));
  EXPECT_FALSE(strikes.Add(1, now));
  EXPECT_FALSE(strikes.Add(2, now));
  EXPECT_FALSE(strikes.Add(1, now));
  EXPECT_TRUE(strikes.Add(3, now));
  EXPECT_FALSE(strikes.Add(4, now));
  EXPECT_FALSE(strikes.Add(5, now + absl::Seconds(9)));
  EXPECT_FALSE(strikes.Add(6, now + absl::Seconds(11)));
  EXPECT_TRUE(strikes.Add(7, now + absl::Seconds(12)));
}

}  // namespace
}  // namespace blockserve
