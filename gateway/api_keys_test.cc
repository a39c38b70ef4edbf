#include "gateway/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

NewApiKey Make(const std::string& name, const ApiKeyLimits& limits = {}) {
  absl::StatusOr<NewApiKey> made = MakeApiKey(name, limits);
  EXPECT_TRUE(made.ok()) << made.status();
  return *made;
}

TEST(ApiKeyTable, FindsAKeyByWhatItsUserHasAndKeepsNoneOfIt) {
  const NewApiKey alice = Make("alice");
  const NewApiKey bob = Make("bob");
  const auto table = ApiKeyTable::Parse(absl::StrCat("# keys\n\n", alice.line, "\n", bob.line));
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ((*table->Find(alice.key))->name, "alice");
  EXPECT_EQ((*table->Find(bob.key))->name, "bob");
  const std::string secret = alice.key.substr(alice.key.find('_', 4) + 1);
  EXPECT_GE(secret.size(), 43u);  // 256 bits
  EXPECT_THAT(alice.line, Not(HasSubstr(secret)));
}

TEST(ApiKeyTable, RefusesWhatIsNoKeyWithTheSameWords) {
  const NewApiKey alice = Make("alice");
  const auto table = ApiKeyTable::Parse(alice.line);
  ASSERT_TRUE(table.ok());
  std::string other_secret = alice.key;
  other_secret.back() = other_secret.back() == 'A' ? 'B' : 'A';
  for (const std::string& key :
       {std::string(), std::string("bsk_"), other_secret, alice.key.substr(0, 12), alice.key + "x",
        alice.key + std::string(200, 'x'), Make("alice").key, std::string(100000, 'b')}) {
    EXPECT_EQ(table->Find(key).status(),
              absl::UnauthenticatedError("the API key is not known here"));
  }
  EXPECT_FALSE(ApiKeyTable::Parse("")->Find(alice.key).ok());
}

TEST(ApiKeyTable, CarriesLimits) {
  ApiKeyLimits limits;
  limits.max_requests = 8;
  limits.max_tokens = 100'000;
  limits.requests_per_second = 2.5;
  limits.burst = 10;
  limits.weight = 0.5;
  limits.highest_priority = 3;
  limits.own_prefix_cache = true;
  const NewApiKey made = Make("batch jobs", limits);
  const auto table = ApiKeyTable::Parse(made.line);
  ASSERT_TRUE(table.ok()) << table.status();
  const ApiKeyLimits* read = table->Limits("batch jobs");
  ASSERT_NE(read, nullptr);
  EXPECT_EQ(read->max_requests, 8);
  EXPECT_EQ(read->max_tokens, 100'000);
  EXPECT_EQ(read->requests_per_second, 2.5);
  EXPECT_EQ(read->burst, 10);
  EXPECT_EQ(read->weight, 0.5);
  EXPECT_EQ(read->highest_priority, 3u);
  EXPECT_TRUE(read->own_prefix_cache);
  EXPECT_EQ(table->Limits("nobody"), nullptr);
}

TEST(ApiKeyTable, SaysWhichLineIsWrongAndWhy) {
  const std::string good = Make("alice").line;
  const auto expect = [](const std::string& text, const std::string& message) {
    const auto table = ApiKeyTable::Parse(text);
    EXPECT_EQ(table.status(), absl::InvalidArgumentError(message));
  };
  expect(good + "\nalice\n", "line 2: not valid JSON (column 1 of 5 bytes)");
  expect(good + "\n" + good, absl::StrCat("line 2: there is another ", good.substr(7, 8)));
  expect(absl::StrReplaceAll(good, {{"\"salt\":\"", "\"salt\":\"0"}}),
         "line 1: \"salt\" must be 32 hex digits");
  expect(absl::StrReplaceAll(good, {{"alice", ""}}), "line 1: \"name\" must have 1 to 64 bytes");
  expect(absl::StrReplaceAll(good, {{"\"name\"", "\"max_request\":1,\"name\""}}),
         "line 1: \"max_request\" is not known");
  expect(absl::StrReplaceAll(good, {{"\"name\"", "\"burst\":1,\"burst\":2,\"name\""}}),
         "line 1: the key \"burst\" stands twice in one object");
  expect(absl::StrReplaceAll(good, {{"\"name\"", "\"max_requests\":1.5,\"name\""}}),
         "line 1: \"max_requests\" must be a whole number from 0 to 1e+09");
  expect(absl::StrReplaceAll(good, {{"\"name\"", "\"highest_priority\":\"low\",\"name\""}}),
         "line 1: \"highest_priority\" must be high, normal or batch");
  expect(absl::StrReplaceAll(good, {{"\"name\"", "\"prefix_cache\":\"mine\",\"name\""}}),
         "line 1: \"prefix_cache\" must be shared or own");
  expect(absl::StrReplaceAll(good, {{"\"name\"", "\"prefix_cache\":true,\"name\""}}),
         "line 1: \"prefix_cache\" must be shared or own");
  // As in the file of limits.
  expect(absl::StrReplaceAll(good, {{"\"name\"", "\"weight\":1001,\"name\""}}),
         "line 1: \"weight\" must be a number from 0.001 to 1000");
  EXPECT_EQ(MakeApiKey("", {}).status(),
            absl::InvalidArgumentError("\"name\" must have 1 to 64 bytes"));
}

class ApiKeysTest : public ::testing::Test {
 protected:
  void Write(const std::string& text) {
    std::ofstream(path_) << text;
    // The clock of files is coarse: two writes may have the same time.
    std::filesystem::last_write_time(
        path_, std::filesystem::file_time_type::clock::now() + std::chrono::seconds(++writes_));
  }
  const std::string path_ = testing::TempDir() + "/api_keys_test.keys";
  int writes_ = 0;
};

TEST_F(ApiKeysTest, TakesABearerHeader) {
  ApiKeyLimits limits;
  limits.highest_priority = 2;
  const NewApiKey alice = Make("alice", limits);
  Write(alice.line);
  auto keys = ApiKeys::Load(path_, "--api-keys");
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(*(*keys)->AuthenticateHeader("Bearer " + alice.key), "alice");
  EXPECT_EQ(*(*keys)->AuthenticateHeader("bearer  " + alice.key), "alice");
  for (const std::string& header : {std::string(), alice.key, "Basic " + alice.key}) {
    EXPECT_EQ((*keys)->AuthenticateHeader(header).status().code(),
              absl::StatusCode::kUnauthenticated);
  }
  EXPECT_TRUE((*keys)->CheckPriority("alice", 2).ok());
  EXPECT_EQ((*keys)->CheckPriority("alice", 1),
            absl::PermissionDeniedError("priority: this key may ask for normal at most"));
  EXPECT_EQ((*keys)->DefaultPriority("alice"), 2u);
  limits.highest_priority = 3;
  const NewApiKey bob = Make("bob", limits);
  Write(alice.line + "\n" + bob.line);
  auto again = ApiKeys::Load(path_, "--api-keys");
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*again)->DefaultPriority("bob"), 3u) << "who names none asks for nothing above";
}

TEST_F(ApiKeysTest, APrefixCacheIsANamesOwnIfAnyOfItsLinesSaysSo) {
  ApiKeyLimits own;
  own.own_prefix_cache = true;
  const std::string shared = absl::StrReplaceAll(
      Make("carol").line, {{"\"name\"", "\"prefix_cache\":\"shared\",\"name\""}});
  Write(absl::StrCat(Make("alice").line, "\n", Make("bob", own).line, "\n", Make("bob").line, "\n",
                     shared, "\n", Make("dave").line, "\n", Make("dave", own).line));
  auto keys = ApiKeys::Load(path_, "--api-keys");
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_FALSE((*keys)->OwnsPrefixCache("alice"));
  EXPECT_TRUE((*keys)->OwnsPrefixCache("bob"));
  EXPECT_FALSE((*keys)->OwnsPrefixCache("carol"));
  EXPECT_TRUE((*keys)->OwnsPrefixCache("dave"));
  EXPECT_TRUE((*keys)->OwnsPrefixCache("erin")) << "whose line was taken out as her request came";
}

TEST_F(ApiKeysTest, NamesFlagFileAndLine) {
  EXPECT_EQ(ApiKeys::Load("no/such.keys", "--api-keys").status(),
            absl::InvalidArgumentError(
                "--api-keys no/such.keys: cannot be read: No such file or directory"));
  EXPECT_EQ(ApiKeys::Load("/tmp", "--api-keys").status(),
            absl::InvalidArgumentError("--api-keys /tmp: cannot be read: Is a directory"));
  Write("{}");
  EXPECT_THAT(std::string(ApiKeys::Load(path_, "--api-keys").status().message()),
              HasSubstr(path_ + ": line 1: \"id\" must be"));
}

}  // namespace
}  // namespace blockserve
