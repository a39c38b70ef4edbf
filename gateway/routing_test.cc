#include "gateway/routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "gateway/wait_queue.h"

namespace blockserve {
namespace {

std::vector<TokenWorkerView> Workers(std::vector<int32_t> in_flight) {
  std::vector<TokenWorkerView> workers;
  for (const int32_t rows : in_flight) {
    workers.push_back({.in_flight = rows, .reported_waiting = 0, .most_in_flight = 100});
  }
  return workers;
}

TEST(TokenRouter, SpreadsABatchEvenly) {
  TokenRouter router;
  std::vector<TokenWorkerView> workers = Workers({0, 0, 0});
  for (int i = 0; i < 30; ++i) ++workers[static_cast<size_t>(router.Pick(workers))].in_flight;
  for (const TokenWorkerView& worker : workers) EXPECT_EQ(worker.in_flight, 10);
}

TEST(TokenRouter, LightLoadTakesTurns) {
  TokenRouter router;
  const std::vector<TokenWorkerView> workers = Workers({0, 0, 0});
  std::vector<int> picks;
  for (int i = 0; i < 6; ++i) picks.push_back(router.Pick(workers));
  EXPECT_EQ(picks, (std::vector<int>{0, 1, 2, 0, 1, 2}));
}

TEST(TokenRouter, CountsWhatOthersMakeAWorkerDo) {
  TokenRouter router;
  std::vector<TokenWorkerView> workers = Workers({2, 0});
  workers[1].reported_waiting = 5;
  EXPECT_EQ(router.Pick(workers), 0);
  // The turn is the other's now, which has more to do.
  EXPECT_EQ(router.Pick(workers), 0);
}

TEST(TokenRouter, LeavesOutFullAndUnusableWorkersAndSuspectsLast) {
  TokenRouter router;
  std::vector<TokenWorkerView> workers = Workers({100, 0, 50});
  workers[1].usable = false;
  workers[2].suspect = true;
  EXPECT_EQ(router.Pick(workers), 2);
  workers[1].usable = true;
  EXPECT_EQ(router.Pick(workers), 1);
  EXPECT_EQ(router.Pick(Workers({100, 100})), -1);
  EXPECT_EQ(router.Pick({}), -1);
}

TEST(PackSize, IsOneWhereWorkersAreFewOrRowsAre) {
  EXPECT_EQ(PackSize(/*rows_of_turn=*/1000, /*workers=*/16, /*best_rows=*/64), 1);
  EXPECT_EQ(PackSize(4, 1000, 64), 1);
  EXPECT_EQ(PackSize(0, 1000, 64), 1);
  EXPECT_EQ(PackSize(1000, 1000, 4), 1);
}

TEST(PackSize, GrowsWithTheTurnUpToAnEighthOfABatch) {
  EXPECT_EQ(PackSize(5, 1000, 64), 2);
  EXPECT_EQ(PackSize(16, 1000, 64), 4);
  EXPECT_EQ(PackSize(1000, 1000, 64), 8);
  EXPECT_EQ(PackSize(1000, 1000, 1024), 128);
}

TEST(PickReplica, FreePagesBeforeAffinity) {
  std::vector<BlockReplicaView> replicas(2);
  replicas[0] = {.available_pages = 20, .pages = 100, .has_prefix = true};
  replicas[1] = {.available_pages = 80, .pages = 100};
  EXPECT_EQ(PickReplica(replicas, 4), 1);
}

TEST(PickReplica, AffinityAmongReplicasAboutEquallyFree) {
  std::vector<BlockReplicaView> replicas(2);
  replicas[0] = {.available_pages = 80, .pages = 100};
  replicas[1] = {.available_pages = 75, .pages = 100, .has_prefix = true};
  EXPECT_EQ(PickReplica(replicas, 4), 1);
}

TEST(PickReplica, APrefixThatAllHaveDoesNotMakeOneReplicaDoTheWorkOfAll) {
  // Pools so large that the sequences hardly show in the free pages.
  std::vector<BlockReplicaView> replicas(4, {.available_pages = 65'536, .pages = 65'536});
  replicas[2].has_prefix = true;
  for (int i = 0; i < 400; ++i) {
    const int chosen = PickReplica(replicas, 4);
    ASSERT_GE(chosen, 0);
    BlockReplicaView& replica = replicas[static_cast<size_t>(chosen)];
    if (i < 5) {
      EXPECT_EQ(chosen, 2) << "a few sequences stay together";
    }
    ++replica.sequences;
    replica.available_pages -= 4;
    replica.has_prefix = true;
    const int64_t mean = (i + 1) / 4;
    EXPECT_LE(replica.sequences, mean + mean / 4 + 6) << i;
  }
}

TEST(PickReplica, APrefixDrawsAsLongAsItsReplicaIsNotFarAboveTheMean) {
  std::vector<BlockReplicaView> replicas(2, {.available_pages = 90, .pages = 100});
  replicas[0].has_prefix = true;
  replicas[0].sequences = 12;
  replicas[1].sequences = 8;  // the mean is 10: up to 16.5
  EXPECT_EQ(PickReplica(replicas, 4), 0);
  replicas[0].sequences = 40;
  EXPECT_EQ(PickReplica(replicas, 4), 1);
  // One that nobody can use does not count.
  replicas[1].usable = false;
  EXPECT_EQ(PickReplica(replicas, 4), 0);
}

TEST(PickReplica, TriesAReplicaThatSeemsFullOneOpenAtATime) {
  std::vector<BlockReplicaView> replicas(1);
  replicas[0] = {.available_pages = 3, .pages = 100, .idle = true};
  EXPECT_EQ(PickReplica(replicas, 4), 0);
  replicas[0].idle = false;
  EXPECT_EQ(PickReplica(replicas, 4), -1);
  EXPECT_EQ(PickReplica(replicas, 3), 0);
}

TEST(PickReplica, ASuspectOnlyWhereNobodyElseIsThere) {
  std::vector<BlockReplicaView> replicas(2);
  replicas[0] = {.suspect = true, .available_pages = 90, .pages = 100};
  replicas[1] = {.available_pages = 10, .pages = 100};
  EXPECT_EQ(PickReplica(replicas, 4), 1);
  replicas[1].usable = false;
  EXPECT_EQ(PickReplica(replicas, 4), 0);
}

TEST(EstimatePages, CountsAtMost256TokensAhead) {
  EXPECT_EQ(EstimatePages(/*prompt_blocks=*/10, /*reserve_blocks=*/2, /*block_length=*/4, 4), 3);
  EXPECT_EQ(EstimatePages(10, 1'000'000, 4, 4), (10 + 64 + 3) / 4);
  EXPECT_EQ(EstimatePages(0, 1'000'000, 3, 1), 86) << "a part of a block is one";
  EXPECT_EQ(EstimatePages(0, 1'000'000, 255, 1), 2);
}

TEST(PrefixMemory, KnowsPromptsThatBeginAlikeAndForgetsTheOldest) {
  PrefixMemory memory(2);
  const std::vector<int32_t> a = {1, 2, 3, 4, 5};
  const std::vector<int32_t> b = {1, 2, 3, 4, 6};
  const std::vector<int32_t> c = {9, 2, 3, 4, 6};
  memory.Remember(PrefixMemory::Key(0, a, 4));
  EXPECT_TRUE(memory.Knows(PrefixMemory::Key(0, b, 4)));
  EXPECT_FALSE(memory.Knows(PrefixMemory::Key(0, c, 4)));
  EXPECT_FALSE(memory.Knows(PrefixMemory::Key(1, a, 4)));
  EXPECT_FALSE(memory.Knows(PrefixMemory::Key(absl::MakeUint128(1, 0), a, 4)));
  memory.Remember(PrefixMemory::Key(0, c, 4));
  memory.Remember(PrefixMemory::Key(0, c, 4));
  EXPECT_FALSE(memory.Knows(PrefixMemory::Key(0, a, 4)));
  EXPECT_TRUE(memory.Knows(PrefixMemory::Key(0, c, 4)));
}

TEST(TokenRouter, WhatGivesWayFillsNoWorkersQueue) {
  std::vector<TokenWorkerView> workers = Workers({20, 19});
  for (TokenWorkerView& worker : workers) worker.most_giving_way = 20;
  TokenRouter router;
  EXPECT_EQ(router.Pick(workers, /*gives_way=*/true), 1);
  workers[1].in_flight = 20;
  EXPECT_EQ(router.Pick(workers, /*gives_way=*/true), -1);
  EXPECT_NE(router.Pick(workers), -1);
}

std::vector<uint64_t> InOrder(const WaitQueue& queue) {
  std::vector<uint64_t> items;
  for (const auto& [place, item] : queue.waiting()) items.push_back(item);
  return items;
}

TEST(WaitQueue, WhatGivesWayHasEveryFourthTurn) {
  WaitQueue queue;
  for (uint64_t i = 0; i < 4; ++i) {
    queue.Insert(queue.NextPlace(true, 2, /*gives_way=*/true), 100 + i);
  }
  for (uint64_t i = 0; i < 6; ++i) queue.Insert(queue.NextPlace(true, 2), i);
  EXPECT_EQ(InOrder(queue), (std::vector<uint64_t>{100, 0, 1, 2, 101, 3, 4, 5, 102, 103}));
}

TEST(WaitQueue, WhatComesLaterBeginsWhereTheOthersAre) {
  WaitQueue queue;
  std::vector<WaitQueue::Place> places;
  for (uint64_t i = 0; i < 1000; ++i) {
    places.push_back(queue.NextPlace(true, 2, /*gives_way=*/true));
    queue.Insert(places.back(), 100 + i);
  }
  for (size_t i = 0; i < 500; ++i) queue.Erase(places[i]);
  queue.Insert(queue.NextPlace(true, 2), 1);
  queue.Insert(queue.NextPlace(true, 2), 2);
  const std::vector<uint64_t> items = InOrder(queue);
  EXPECT_EQ(items[0], 600u);
  EXPECT_EQ(items[1], 1u);
  EXPECT_EQ(items[2], 2u);
}

TEST(WaitQueue, InterruptedWorkThenPriorityThenAge) {
  WaitQueue queue;
  const auto add = [&](bool is_new, uint32_t priority, uint64_t item) {
    const WaitQueue::Place place = queue.NextPlace(is_new, priority);
    queue.Insert(place, item);
    return place;
  };
  add(true, 3, 1);
  add(true, 2, 2);
  const WaitQueue::Place third = add(true, 2, 3);
  add(false, 3, 4);
  add(true, 1, 5);
  const auto order = [&] {
    std::vector<uint64_t> items;
    for (const auto& [place, item] : queue.waiting()) items.push_back(item);
    return items;
  };
  EXPECT_EQ(order(), (std::vector<uint64_t>{4, 5, 2, 3, 1}));
  EXPECT_EQ(queue.new_items(), 4);
  queue.Erase(third);
  EXPECT_EQ(queue.new_items(), 3);
  // Refused everywhere, it comes back to where it stood.
  add(true, 2, 6);
  queue.Insert(third, 3);
  EXPECT_EQ(order(), (std::vector<uint64_t>{4, 5, 2, 3, 6, 1}));
}

}  // namespace
}  // namespace blockserve
