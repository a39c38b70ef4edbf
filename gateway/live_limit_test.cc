#include "gateway/live_limit.h"

#include <gtest/gtest.h>

namespace blockserve {
namespace {

TEST(LiveLimit, IsAFewBatchesOfTheWorkersThatAreThere) {
  LiveLimit limit({.most = 10'000, .batches = 3});
  EXPECT_EQ(limit.limit(), 10'000) << "nobody has told anything";
  limit.Update({.best_rows = 4 * 64, .waiting_rows = 0});
  EXPECT_EQ(limit.limit(), 3 * 4 * 64);
  limit.Update({.best_rows = 100 * 64, .waiting_rows = 0});
  EXPECT_EQ(limit.limit(), 10'000) << "the most that was asked for";
}

TEST(LiveLimit, IsLowWhileMoreWaitsThanThisGatewayMayHave) {
  LiveLimit limit({.most = 10'000, .batches = 3});
  limit.Update({.best_rows = 256, .waiting_rows = 2 * 256});
  EXPECT_EQ(limit.limit(), 3 * 256) << "one batch runs: the other two may be its own";
  limit.Update({.best_rows = 256, .waiting_rows = 2 * 256 + 1});
  EXPECT_EQ(limit.limit(), 128) << "others have sent what waits: a share is left";
  limit.Update({.best_rows = 256, .waiting_rows = 10});
  EXPECT_EQ(limit.limit(), 3 * 256);
}

TEST(LiveLimit, RowsOfItsOwnTextsAreNoSignOfOthers) {
  LiveLimit limit({.most = 10'000, .batches = 3});
  limit.Update({.best_rows = 256, .waiting_rows = 3 * 256, .scoring_rows = 256});
  EXPECT_EQ(limit.limit(), 3 * 256);
  limit.Update({.best_rows = 256, .waiting_rows = 3 * 256 + 1, .scoring_rows = 256});
  EXPECT_EQ(limit.limit(), 128);
}

TEST(LiveLimit, WithFewBatchesOneMayWait) {
  LiveLimit limit({.most = 10'000, .batches = 1});
  limit.Update({.best_rows = 256, .waiting_rows = 256});
  EXPECT_EQ(limit.limit(), 256);
  limit.Update({.best_rows = 256, .waiting_rows = 257});
  EXPECT_EQ(limit.limit(), 128);
}

TEST(LiveLimit, HasRoomForAllChoicesOfOneRequest) {
  LiveLimit limit({.most = 10'000, .batches = 3});
  limit.Update({.best_rows = 1, .waiting_rows = 100});
  EXPECT_EQ(limit.limit(), LiveLimit::kLeast);
  LiveLimit small({.most = 8, .batches = 3});
  small.Update({.best_rows = 1, .waiting_rows = 0});
  EXPECT_EQ(small.limit(), 8);
}

TEST(LiveLimit, StaysWhenTheTierIsLost) {
  LiveLimit limit({.most = 10'000, .batches = 2});
  limit.Update({.best_rows = 64, .waiting_rows = 0});
  limit.Update({.best_rows = 0, .waiting_rows = 0});
  EXPECT_EQ(limit.limit(), 128);
}

TEST(LiveLimit, WithoutBatchesIsTheMostAlone) {
  LiveLimit limit({.most = 500, .batches = 0});
  limit.Update({.best_rows = 64, .waiting_rows = 1000});
  EXPECT_EQ(limit.limit(), 500);
}

}  // namespace
}  // namespace blockserve
