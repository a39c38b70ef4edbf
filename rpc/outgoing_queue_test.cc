#include "rpc/outgoing_queue.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <string>

namespace blockserve {
namespace {

struct Text {
  std::string value;
  size_t ByteSizeLong() const { return value.size(); }
};

bool Join(Text& into, Text& from) {
  if (from.value == "alone" || into.value == "alone") return false;
  into.value += from.value;
  return true;
}

TEST(OutgoingQueue, MergesInOrderWhileMessagesWait) {
  OutgoingQueue<Text> queue({}, Join);
  for (const char* value : {"a", "b", "alone", "c", "d"}) ASSERT_TRUE(queue.Push({value}));
  EXPECT_EQ(queue.size(), 3u);
  EXPECT_EQ(queue.Pop().value, "ab");
  EXPECT_EQ(queue.Pop().value, "alone");
  EXPECT_EQ(queue.Pop().value, "cd");
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.bytes(), 0);
}

TEST(OutgoingQueue, KeepsMessagesApartWithoutAMerge) {
  OutgoingQueue<Text> queue({}, nullptr);
  queue.Push({"a"});
  queue.Push({"b"});
  EXPECT_EQ(queue.size(), 2u);
}

TEST(OutgoingQueue, DoesNotMergeBeyondTheLargestMerge) {
  OutgoingQueue<Text> queue({.max_queued_bytes = 1 << 20, .max_merged_bytes = 1000}, Join);
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(queue.Push({std::string(300, 'x')}));
  size_t total = 0;
  while (!queue.empty()) {
    const size_t size = queue.Pop().value.size();
    EXPECT_LE(size, 1000u);
    total += size;
  }
  EXPECT_EQ(total, 6000u);
}

TEST(OutgoingQueue, RefusesWhatIsBeyondItsBytesAndTakesAgainAfterAPop) {
  OutgoingQueue<Text> queue({.max_queued_bytes = 1000, .max_merged_bytes = 0}, Join);
  EXPECT_TRUE(queue.Push({std::string(5000, 'x')}));  // a single one always has room
  EXPECT_FALSE(queue.Push({"y"}));
  queue.Pop();
  EXPECT_TRUE(queue.Push({std::string(400, 'x')}));
  EXPECT_TRUE(queue.Push({std::string(400, 'x')}));
  EXPECT_FALSE(queue.Push({std::string(400, 'x')}));
  EXPECT_EQ(queue.size(), 2u);
}

TEST(OutgoingQueue, TakesAndMergesWhatIsJustAtItsLimits) {
  const OutgoingQueue<Text> empty({}, Join);
  OutgoingQueue<Text> one({}, Join);
  one.Push({""});
  const int64_t overhead = one.bytes() - empty.bytes();
  const std::string hundred(static_cast<size_t>(100 - overhead), 'x');
  OutgoingQueue<Text> queue({.max_queued_bytes = 500, .max_merged_bytes = 200}, Join);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(queue.Push({hundred})) << i;
  EXPECT_EQ(queue.bytes(), 500);
  EXPECT_EQ(queue.size(), 3u) << "two are of the largest size";
  EXPECT_FALSE(queue.Push({""}));
  queue.Pop();
  EXPECT_EQ(queue.bytes(), 300);
}

TEST(OutgoingQueue, BoundsEmptyMessagesToo) {
  OutgoingQueue<Text> queue({.max_queued_bytes = 1000, .max_merged_bytes = 0}, Join);
  int taken = 0;
  while (queue.Push({""})) ++taken;
  EXPECT_LE(taken, 16);
  queue.Clear();
  EXPECT_TRUE(queue.empty());
  EXPECT_EQ(queue.bytes(), 0);
  EXPECT_TRUE(queue.Push({""}));
}

}  // namespace
}  // namespace blockserve
