#include "common/thread_pool.h"

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "common/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int num_threads : {1, 2, 3, 5}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    ThreadPool::Turn turn(pool);
    for (int64_t num_tasks : {0, 1, 2, 3, 7, 100, 1000}) {
      std::vector<std::atomic<int>> runs(num_tasks);
      pool.ParallelFor(num_tasks, [&](int64_t task, int thread) {
        ASSERT_GE(thread, 0);
        ASSERT_LT(thread, num_threads);
        runs[task].fetch_add(1, std::memory_order_relaxed);
      });
      for (const std::atomic<int>& count : runs) EXPECT_EQ(count.load(), 1);
    }
  }
}

// What a job wrote without atomics is seen by the next one and by the caller: under ThreadSanitizer
// this is the test of the pool's memory ordering.
TEST(ThreadPool, JobsSeeWhatTheJobBeforeWrote) {
  ThreadPool pool(4);
  ThreadPool::Turn turn(pool);
  std::vector<int64_t> values(64, 0);
  for (int job = 0; job < 2000; ++job) {
    pool.ParallelFor(64, [&](int64_t task, int) { values[(task + job) % 64] += 1; });
  }
  for (int64_t value : values) EXPECT_EQ(value, 2000);
}

// Long tasks and long pauses make both the workers and the caller give up spinning and block.
TEST(ThreadPool, WorksAfterItsThreadsHaveBlocked) {
  ThreadPool pool(2);
  ThreadPool::Turn turn(pool);
  for (int round = 0; round < 20; ++round) {
    // The two tasks wait for one another, so both threads are needed each time.
    std::atomic<int> arrived{0};
    pool.ParallelFor(2, [&](int64_t, int) {
      arrived.fetch_add(1);
      while (arrived.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(arrived.load(), 2);
    Mutex mutex;
    CondVar never;
    MutexLock lock(&mutex);
    never.WaitWithTimeout(&mutex, absl::Milliseconds(1));
  }
}

TEST(ThreadPool, TurnsExcludeOneAnother) {
  ThreadPool pool(2);
  int64_t counter = 0;  // guarded by the turn alone
  std::vector<std::thread> owners;
  for (int i = 0; i < 4; ++i) {
    owners.emplace_back([&] {
      for (int step = 0; step < 200; ++step) {
        ThreadPool::Turn turn(pool);
        std::vector<int64_t> parts(8, 0);
        pool.ParallelFor(8, [&](int64_t task, int) { parts[task] = 1; });
        for (int64_t part : parts) counter += part;
      }
    });
  }
  for (std::thread& owner : owners) owner.join();
  EXPECT_EQ(counter, 4 * 200 * 8);
}

TEST(ThreadPool, TurnsAreTakenInTheOrderOfAsking) {
  constexpr int kOwners = 6;
  ThreadPool pool(1);
  std::vector<int> order;  // guarded by the turn
  std::vector<std::thread> owners;
  auto first = std::make_unique<ThreadPool::Turn>(pool);
  for (int i = 0; i < kOwners; ++i) {
    owners.emplace_back([&, i] {
      ThreadPool::Turn turn(pool);
      order.push_back(i);
    });
    while (pool.num_waiting_turns() < i + 1) std::this_thread::yield();
  }
  first.reset();
  for (std::thread& owner : owners) owner.join();
  EXPECT_THAT(order, testing::ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(pool.num_waiting_turns(), 0);
}

}  // namespace
}  // namespace blockserve
