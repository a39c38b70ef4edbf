#include "gateway/text_workers.h"

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>

namespace blockserve {
namespace {

// Occupies the only thread of `workers` until it is told to go on.
class Occupied {
 public:
  explicit Occupied(TextWorkers& workers) {
    std::promise<void> begun;
    EXPECT_TRUE(workers.Run("first", 1, [this, &begun] {
      begun.set_value();
      go_on_.get_future().wait();
    }));
    begun.get_future().wait();
  }
  void GoOn() { go_on_.set_value(); }

 private:
  std::promise<void> go_on_;
};

TEST(TextWorkers, KeysTakeTurns) {
  TextWorkers workers("text", 1, 1000);
  Occupied occupied(workers);
  std::string order;
  std::promise<void> last;
  for (const char* key : {"a", "a", "a", "b", "b", "c"}) {
    EXPECT_TRUE(workers.Run(key, 10, [&order, key] { order += key; }));
  }
  EXPECT_TRUE(workers.Run("a", 10, [&last] { last.set_value(); }));
  occupied.GoOn();
  last.get_future().wait();
  EXPECT_EQ(order, "abcaba");
}

TEST(TextWorkers, AKeyHoldsAtMostAsMuchAsItLeavesFree) {
  TextWorkers workers("text", 1, 100);
  Occupied occupied(workers);
  const auto run = [&workers](const char* key, size_t bytes) {
    return workers.Run(key, bytes, [] {});
  };
  EXPECT_TRUE(run("a", 30));
  EXPECT_TRUE(run("a", 20));
  EXPECT_FALSE(run("a", 1));
  EXPECT_TRUE(run("b", 25));
  EXPECT_FALSE(run("b", 1));
  EXPECT_FALSE(run("c", 26));
  EXPECT_TRUE(run("c", 12));
  occupied.GoOn();
  workers.Stop();
}

TEST(TextWorkers, WhatIsUnderWayTakesNoRoom) {
  TextWorkers workers("text", 1, 100);
  std::promise<void> begun;
  std::promise<void> go_on;
  {
    Occupied occupied(workers);
    EXPECT_TRUE(workers.Run("a", 30, [&begun, &go_on] {
      begun.set_value();
      go_on.get_future().wait();
    }));
    EXPECT_TRUE(workers.Run("a", 20, [] {}));
    EXPECT_FALSE(workers.Run("a", 60, [] {}));
    occupied.GoOn();
    begun.get_future().wait();
  }
  EXPECT_FALSE(workers.Run("a", 61, [] {}));
  EXPECT_TRUE(workers.Run("a", 60, [] {})) << "20 wait, and as much is to be left free";
  go_on.set_value();
  workers.Stop();
}

TEST(TextWorkers, OneTextIsTakenHoweverLongItIs) {
  TextWorkers workers("text", 1, 100);
  Occupied occupied(workers);
  EXPECT_TRUE(workers.Run("a", 1000, [] {}));
  EXPECT_FALSE(workers.Run("b", 1, [] {}));
  occupied.GoOn();
  workers.Stop();
}

TEST(TextWorkers, StopDropsWhatWaitsAndTakesNoMore) {
  TextWorkers workers("text", 1, 100);
  auto held = std::make_shared<bool>(false);
  {
    Occupied occupied(workers);
    EXPECT_TRUE(workers.Run("a", 1, [held] { *held = true; }));
    std::thread stop([&workers] { workers.Stop(); });
    while (workers.Run("b", 0, [] {})) std::this_thread::yield();
    occupied.GoOn();
    stop.join();
  }
  EXPECT_FALSE(*held);
  EXPECT_EQ(held.use_count(), 1);
}

}  // namespace
}  // namespace blockserve
