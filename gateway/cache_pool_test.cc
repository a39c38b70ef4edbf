#include "gateway/cache_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

namespace blockserve {
namespace {

TEST(CachePoolOf, IsTheCommonOneWithoutOwnerAndSaltAlone) {
  EXPECT_EQ(CachePoolOf("", ""), absl::uint128{0});
  EXPECT_EQ(CachePoolOf("alice", "s"), CachePoolOf("alice", "s"));
}

TEST(CachePoolOf, NoSaltLeadsToAnothersPool) {
  // Whatever two owners and salts have in common when they are written one after another.
  const std::vector<std::string> owners = {"", "a", "al", "alice", "1", "5", "5\nalice"};
  const std::vector<std::string> salts = {"",    "a",        "l",  "alice",
                                          "ice", "5\nalice", "\n", std::string(1, '\0')};
  std::set<absl::uint128> pools;
  for (const std::string& owner : owners) {
    for (const std::string& salt : salts) pools.insert(CachePoolOf(owner, salt));
  }
  EXPECT_EQ(pools.size(), owners.size() * salts.size());
}

// All gateways of a deployment, of older and newer builds, must agree, or they share nothing.
TEST(CachePoolOf, IsTheSameInEveryBuild) {
  EXPECT_EQ(CachePoolOf("alice", ""), absl::MakeUint128(0xf76b46e9c39c741cu, 0x5d525f7640ace5aeu));
  EXPECT_EQ(CachePoolOf("", "salt"), absl::MakeUint128(0x497933e765e7a09bu, 0x68656eeff25a953cu));
}

}  // namespace
}  // namespace blockserve
