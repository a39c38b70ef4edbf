#include "common/ordered_handoff.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "common/test_gate.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(OrderedHandoff, WhatIsHandedOverRunsOnTheThreadOfTheHandoff) {
  OrderedHandoff handoff("test-handoff", 1);
  std::thread::id ran;
  handoff.HandOver([&] { ran = std::this_thread::get_id(); });
  handoff.WaitUntilIdle();
  EXPECT_NE(ran, std::thread::id());
  EXPECT_NE(ran, std::this_thread::get_id());
}

TEST(OrderedHandoff, AnIdleOneLetsTheCallerRunItsJob) {
  OrderedHandoff handoff("test-handoff", 1);
  for (int i = 0; i < 3; ++i) {
    std::thread::id ran;
    EXPECT_TRUE(handoff.idle());
    handoff.RunIfIdle([&] {
      EXPECT_FALSE(handoff.idle());
      ran = std::this_thread::get_id();
    });
    EXPECT_EQ(ran, std::this_thread::get_id());
  }
}

TEST(OrderedHandoff, WhileAJobRunsTheNextOneWaitsForIt) {
  OrderedHandoff handoff("test-handoff", 2);
  Gate gate(/*open=*/false);
  std::vector<int> ran;
  std::thread::id second;
  handoff.HandOver([&] {
    gate.Pass();
    ran.push_back(1);
  });
  ASSERT_TRUE(gate.WaitForArrivals(1));
  handoff.RunIfIdle([&] {
    ran.push_back(2);
    second = std::this_thread::get_id();
  });
  EXPECT_FALSE(handoff.idle());
  gate.Open();
  handoff.WaitUntilIdle();
  EXPECT_EQ(ran, (std::vector<int>{1, 2}));
  EXPECT_NE(second, std::this_thread::get_id());
}

// Without locks or atomics: under ThreadSanitizer this is the test of the memory ordering.
TEST(OrderedHandoff, JobsRunInOrderWhereverTheyRun) {
  OrderedHandoff handoff("test-handoff", 3);
  std::vector<int> ran;
  constexpr int kJobs = 3000;
  for (int i = 0; i < kJobs; ++i) {
    const auto job = [&ran, i] { ran.push_back(i); };
    if (i % 7 == 3) {
      handoff.RunIfIdle(job);
    } else {
      handoff.HandOver(job);
    }
    if (i % 100 == 0) handoff.WaitUntilIdle();
  }
  handoff.WaitUntilIdle();
  ASSERT_EQ(ran.size(), static_cast<size_t>(kJobs));
  for (int i = 0; i < kJobs; ++i) ASSERT_EQ(ran[static_cast<size_t>(i)], i);
}

TEST(OrderedHandoff, SeveralCallersJobsRunOneAtATimeAndEachCallersInItsOrder) {
  OrderedHandoff handoff("test-handoff", 2);
  constexpr int kCallers = 4, kJobs = 500;
  std::vector<std::pair<int, int>> ran;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int i = 0; i < kJobs; ++i) {
        const auto job = [&ran, caller, i] { ran.emplace_back(caller, i); };
        if (i % 2 == 0) {
          handoff.RunIfIdle(job);
        } else {
          handoff.HandOver(job);
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  handoff.WaitUntilIdle();
  std::vector<int> next(kCallers, 0);
  for (const auto& [caller, i] : ran) ASSERT_EQ(i, next[static_cast<size_t>(caller)]++);
  EXPECT_EQ(next, std::vector<int>(kCallers, kJobs));
}

TEST(OrderedHandoff, ACallerIsNeverFurtherAheadThanTheBound) {
  constexpr int kWaiting = 2, kJobs = 100;
  OrderedHandoff handoff("test-handoff", kWaiting);
  Gate gate(/*open=*/false);
  std::atomic<int> begun{0}, furthest{0};
  std::thread caller([&] {
    for (int i = 1; i <= kJobs; ++i) {
      handoff.HandOver([&] {
        ++begun;
        gate.Pass();
      });
      furthest = std::max(furthest.load(), i - begun.load());
    }
  });
  ASSERT_TRUE(gate.WaitForArrivals(1));
  // The first job runs until the gate opens: `kWaiting` more can be given, and no others.
  while (furthest < kWaiting) std::this_thread::yield();
  for (int i = 0; i < 1000; ++i) std::this_thread::yield();
  gate.Open();
  caller.join();
  handoff.WaitUntilIdle();
  EXPECT_EQ(begun, kJobs);
  EXPECT_LE(furthest, kWaiting + 1) << "before the first job began it was one of those that waited";
}

TEST(OrderedHandoff, StopReturnsWhenEveryJobHasRunAndIsGone) {
  auto held = std::make_shared<int>(0);
  const std::weak_ptr<int> watch = held;
  int ran = 0;
  OrderedHandoff handoff("test-handoff", 4);
  Gate gate(/*open=*/false);
  handoff.HandOver([&gate] { gate.Pass(); });
  ASSERT_TRUE(gate.WaitForArrivals(1));
  for (int i = 0; i < 4; ++i) handoff.HandOver([&ran, held] { ++ran; });
  held.reset();
  std::thread opener([&] { gate.Open(); });
  handoff.Stop();
  EXPECT_EQ(ran, 4);
  EXPECT_TRUE(watch.expired());
  opener.join();
  handoff.Stop();
}

TEST(OrderedHandoff, AfterStopJobsRunOnTheirCallersThread) {
  OrderedHandoff handoff("test-handoff", 1);
  handoff.Stop();
  std::vector<std::thread::id> ran;
  handoff.HandOver([&] { ran.push_back(std::this_thread::get_id()); });
  handoff.RunIfIdle([&] { ran.push_back(std::this_thread::get_id()); });
  EXPECT_EQ(ran, std::vector<std::thread::id>(2, std::this_thread::get_id()));
}

TEST(OrderedHandoff, CallersThatWaitForRoomWhileItStopsLoseNothing) {
  constexpr int kCallers = 3, kJobs = 50;
  OrderedHandoff handoff("test-handoff", 1);
  Gate gate(/*open=*/false);
  int ran = 0;
  handoff.HandOver([&gate] { gate.Pass(); });
  ASSERT_TRUE(gate.WaitForArrivals(1));
  std::atomic<int> giving{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&] {
      ++giving;
      for (int i = 0; i < kJobs; ++i) handoff.HandOver([&ran] { ++ran; });
    });
  }
  while (giving < kCallers) std::this_thread::yield();
  std::thread stopper([&] { handoff.Stop(); });
  gate.Open();
  for (std::thread& caller : callers) caller.join();
  stopper.join();
  handoff.Stop();
  EXPECT_EQ(ran, kCallers * kJobs);
}

}  // namespace
}  // namespace blockserve
