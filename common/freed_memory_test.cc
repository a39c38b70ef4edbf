#include "common/freed_memory.h"

#include <latch>
#include <memory>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace blockserve {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

TEST(FreedMemoryRule, GivesBackWhatIsStillKeptAtTheNextLook) {
  FreedMemoryRule rule;
  const HeapMemory after_a_burst{.resident_bytes = 300 * kMiB, .used_bytes = 10 * kMiB};
  EXPECT_FALSE(rule.Look(after_a_burst));
  EXPECT_TRUE(rule.Look(after_a_burst));
  EXPECT_FALSE(rule.Look(after_a_burst)) << "not at every look, where nothing comes of it";
}

TEST(FreedMemoryRule, LeavesAloneWhatIsTakenAgain) {
  FreedMemoryRule rule;
  const HeapMemory low{.resident_bytes = 300 * kMiB, .used_bytes = 10 * kMiB};
  const HeapMemory high{.resident_bytes = 300 * kMiB, .used_bytes = 280 * kMiB};
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(rule.Look(low));
    EXPECT_FALSE(rule.Look(high));
  }
}

TEST(FreedMemoryRule, LeavesAloneALittle) {
  FreedMemoryRule rule;
  const HeapMemory little{.resident_bytes = 70 * kMiB, .used_bytes = 10 * kMiB};
  const HeapMemory less_than_used{.resident_bytes = 300 * kMiB, .used_bytes = 200 * kMiB};
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(rule.Look(little));
    EXPECT_FALSE(rule.Look(less_than_used));
    EXPECT_FALSE(rule.Look({}));
  }
}

// As after a burst of calls: threads whose arenas are full, then free but for a block at the end.
TEST(GiveBackFreedMemory, ReturnsWhatThreadsHaveFreed) {
  if (LookAtHeap().used_bytes == 0) GTEST_SKIP() << "malloc does not tell what it keeps";
  constexpr int kThreads = 4, kBlocks = 1600, kBlockBytes = 20'000;
  std::latch filled(kThreads + 1), looked(1), freed(kThreads + 1), done(1);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      std::vector<std::unique_ptr<char[]>> blocks;
      for (int block = 0; block < kBlocks; ++block) {
        blocks.push_back(std::make_unique<char[]>(kBlockBytes));  // written, with zeros
      }
      filled.arrive_and_wait();
      looked.wait();
      blocks.erase(blocks.begin(), blocks.end() - 1);
      freed.arrive_and_wait();
      done.wait();
    });
  }
  filled.arrive_and_wait();
  const HeapMemory full = LookAtHeap();
  looked.count_down();
  freed.arrive_and_wait();
  const HeapMemory kept = LookAtHeap();
  GiveBackFreedMemory();
  const HeapMemory given_back = LookAtHeap();
  done.count_down();
  for (std::thread& thread : threads) thread.join();

  constexpr int64_t kMost = int64_t{kThreads} * kBlocks * kBlockBytes * 9 / 10;
  EXPECT_GE(full.used_bytes - kept.used_bytes, kMost);
  EXPECT_GE(kept.resident_bytes - kept.used_bytes, kMost) << "malloc keeps it by itself";
  EXPECT_GE(kept.resident_bytes - given_back.resident_bytes, kMost);
}

TEST(FreedMemoryKeeper, EndsAtOnce) { FreedMemoryKeeper keeper; }

}  // namespace
}  // namespace blockserve
