#include "gateway/limits_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace blockserve {
namespace {

using ::testing::HasSubstr;

TEST(LimitsFile, KeysTakeWhatTheyLeaveOutFromTheDefault) {
  AdmissionOptions options;
  ASSERT_TRUE(ParseLimits(R"({"default": {"max_requests": 10, "requests_per_second": 2.5},
                              "keys": {"team-a": {"max_tokens": 5000000000, "weight": 2},
                                       "": {"max_requests": 1, "burst": 3}}})",
                          options)
                  .ok());
  EXPECT_EQ(options.default_limits.max_requests, 10);
  EXPECT_EQ(options.default_limits.requests_per_second, 2.5);
  EXPECT_EQ(options.limits.at("team-a").max_requests, 10);
  EXPECT_EQ(options.limits.at("team-a").max_tokens, 5'000'000'000);
  EXPECT_EQ(options.limits.at("team-a").weight, 2);
  EXPECT_EQ(options.limits.at("").max_requests, 1);
  EXPECT_EQ(options.limits.at("").burst, 3);
}

TEST(LimitsFile, NamesWhatIsWrong) {
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"", "not valid JSON"},
      {"[]", "no JSON object"},
      {R"({"key": {}})", "key is not known"},
      {R"({"default": 3})", "default must be an object"},
      {R"({"keys": []})", "keys must be an object"},
      {R"({"keys": {"a": {"max_request": 3}}})", "keys.a.max_request is not known"},
      {R"({"keys": {"a": {"max_requests": "3"}}})", "keys.a.max_requests must be a number"},
      {R"({"keys": {"a": {"max_requests": 1.5}}})", "must be a whole number"},
      {R"({"keys": {"a": {"max_requests": 1e30}}})", "must be a whole number"},
      {R"({"keys": {"a": {"weight": 0}}})", "keys.a is wrong: weight must be"},
      {R"({"keys": {"a": {"weight": 1}, "b": {}, "a": {}}})", "the key \"a\" stands twice in one object"},
      {R"({"keys": {"": {}, "": {}}})", "the key \"\" stands twice in one object"},
      {R"({"keys": {"a": {"burst": 1, "weight": 1, "burst": 2}}})", "the key \"burst\" stands twice in one object"},
      {R"({"default": {"max_tokens": -1}})", "default is wrong: max_tokens must be"}};
  for (const auto& [json, message] : cases) {
    AdmissionOptions options;
    const absl::Status status = ParseLimits(json, options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message)) << json;
  }
  AdmissionOptions options;
  EXPECT_THAT(std::string(ReadLimitsFile("/nowhere/limits.json", options).message()),
              HasSubstr("/nowhere/limits.json: cannot be read"));
  EXPECT_THAT(std::string(ReadLimitsFile("/tmp", options).message()),
              HasSubstr("/tmp: cannot be read"));
}

}  // namespace
}  // namespace blockserve
