#include "block_service/item_queue.h"

#include <deque>
#include <random>
#include <utility>

#include "gtest/gtest.h"

namespace blockserve {
namespace {

BlockWorkItem Item(uint64_t id) {
  BlockWorkItem item;
  item.id = id;
  item.call = AppendCall{static_cast<int64_t>(id), {1, 2, 3}};
  return item;
}

TEST(ItemQueue, GivesItemsInTheOrderInWhichTheyCame) {
  std::mt19937 random(1);
  ItemQueue queue;
  std::deque<uint64_t> expected;
  uint64_t next = 0;
  for (int i = 0; i < 20'000; ++i) {
    // It grows and shrinks by turns.
    if (random() % 10 < (i / 500 % 2 == 0 ? 7u : 3u)) {
      queue.push_back(Item(++next));
      expected.push_back(next);
    } else if (!expected.empty()) {
      ASSERT_EQ(queue.front().id, expected.front());
      ASSERT_EQ(std::get<AppendCall>(queue.front().call).tokens.size(), 3u);
      queue.pop_front();
      expected.pop_front();
    }
    ASSERT_EQ(queue.size(), expected.size());
    ASSERT_EQ(queue.empty(), expected.empty());
    if (i % 97 != 0) continue;
    auto want = expected.begin();
    for (const BlockWorkItem& item : queue) ASSERT_EQ(item.id, *want++);
    ASSERT_EQ(want, expected.end());
  }
}

TEST(ItemQueue, TakesNoMemoryForOneItemAtATime) {
  ItemQueue queue;
  queue.push_back(Item(1));
  const BlockWorkItem* const place = &queue.front();
  for (uint64_t id = 2; id < 100; ++id) {
    queue.pop_front();
    queue.push_back(Item(id));
    EXPECT_EQ(&queue.front(), place);
  }
}

TEST(ItemQueue, OneThatIsAlwaysBehindKeepsItsMemoryBounded) {
  ItemQueue queue;
  for (uint64_t id = 1; id <= 3; ++id) queue.push_back(Item(id));
  for (uint64_t id = 4; id < 1000; ++id) {
    queue.push_back(Item(id));
    queue.pop_front();
    ASSERT_EQ(queue.front().id, id - 2);
  }
  EXPECT_EQ(queue.size(), 3u);
  EXPECT_LE(queue.capacity(), 16u);
}

}  // namespace
}  // namespace blockserve
