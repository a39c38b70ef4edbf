#include "gateway/http/event_id.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gateway/call_tiers.h"

namespace blockserve {
namespace {

TEST(HttpEventId, IsReadAsItWasWritten) {
  const HttpEventId id{
      "a:request", 0xfedcba9876543210u, HashOfTiers("m", "b", "t"), "12345678", {3, 0, 70000}};
  EXPECT_EQ(id.ToString(), "a:request:fedcba9876543210:" + id.tiers + "12345678:3,0,70000");
  const absl::StatusOr<HttpEventId> read = ParseEventId(id.ToString());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->request_id, id.request_id);
  EXPECT_EQ(read->seed, id.seed);
  EXPECT_EQ(read->tiers, id.tiers);
  EXPECT_EQ(read->prompts, id.prompts);
  EXPECT_EQ(read->tokens, id.tokens);
}

TEST(HttpEventId, OfAnOlderGatewayHasNoHashOfThePrompts) {
  const absl::StatusOr<HttpEventId> read = ParseEventId("r:1:89abcdef:5");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->tiers, "89abcdef");
  EXPECT_EQ(read->prompts, "");
}

TEST(HttpEventId, OfManyChoicesNamesTheRequestAlone) {
  HttpEventId id{"r", 1, "0", "", std::vector<int64_t>(kMaxResumableChoices, 5)};
  EXPECT_TRUE(ParseEventId(id.ToString()).ok());
  id.tokens.push_back(5);
  EXPECT_EQ(id.ToString(), "r");
}

TEST(HttpEventId, WhatIsNoneIsRefusedByTheHeadersName) {
  for (const char* bad : {"", "r", "r:1:0", ":1:0:2", "r:x:0:2", "r:1:0:", "r:1::2", "r:1:0:-1",
                          "r:1:0:1,,2", "r:1ffffffffffffffff:0:1", "r:1:0:1.5"}) {
    const absl::Status status = ParseEventId(bad).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_EQ(status.message().substr(0, 15), "Last-Event-ID: ") << bad;
  }
}

TEST(HttpEventId, TheTiersAreToldApart) {
  EXPECT_EQ(HashOfTiers("m", "b", "t").size(), 8u);
  EXPECT_EQ(HashOfTiers("m", "b", "t"), HashOfTiers("m", "b", "t"));
  EXPECT_NE(HashOfTiers("m", "b", "t"), HashOfTiers("n", "b", "t"));
  EXPECT_NE(HashOfTiers("m", "b", "t"), HashOfTiers("m", "c", "t"));
  EXPECT_NE(HashOfTiers("m", "b", "t"), HashOfTiers("m", "b", "u"));
}

}  // namespace
}  // namespace blockserve
