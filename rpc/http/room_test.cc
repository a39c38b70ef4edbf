#include "rpc/http/room.h"

#include <memory>

#include "gtest/gtest.h"

namespace blockserve {
namespace {

constexpr int64_t kShort = HttpRoomShare::kShortBytes;

TEST(HttpRoom, IsSharedByWhatIsLong) {
  const auto room = std::make_shared<HttpRoom>(1000);
  HttpRoomShare first(room);
  HttpRoomShare second(room);
  EXPECT_TRUE(first.Add(kShort));
  EXPECT_TRUE(first.Add(600));
  EXPECT_TRUE(second.Add(kShort + 400));
  EXPECT_FALSE(second.Add(1));
  first.Release();
  EXPECT_TRUE(second.Add(600 - 1));
}

// A client may read a stream for as long as it likes, and always be a little behind.
TEST(HttpRoom, WhatHasLeftTakesNone) {
  const auto room = std::make_shared<HttpRoom>(1000);
  HttpRoomShare behind(room);
  EXPECT_TRUE(behind.Add(kShort + 500));
  for (int i = 0; i < 100; ++i) {
    EXPECT_TRUE(behind.Add(500)) << i;
    behind.Remove(500);
  }
  HttpRoomShare other(room);
  EXPECT_TRUE(other.Add(kShort + 500));
  EXPECT_FALSE(behind.Add(1));
  behind.Remove(kShort + 2000);  // heads of answers count on their way out alone
  EXPECT_TRUE(other.Add(500));
  EXPECT_TRUE(behind.Add(kShort));
}

TEST(HttpRoom, AShareGivesBackWhatItHas) {
  const auto room = std::make_shared<HttpRoom>(10);
  { EXPECT_TRUE(HttpRoomShare(room).Add(kShort + 10)); }
  HttpRoomShare next(room);
  EXPECT_TRUE(next.Add(kShort + 10));
}

}  // namespace
}  // namespace blockserve
