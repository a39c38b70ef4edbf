#include "common/flag_table.h"

#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Optional;

struct Values {
  std::string name = "none";
  std::optional<std::string> text;
  bool flag = false;
  int32_t count = 4;
  int64_t pages = 0;
  uint64_t hash = 0;
  float share = 0;
  std::optional<float> heat;
  std::optional<uint64_t> seed;
  absl::Duration wait = absl::Seconds(10);
  std::vector<std::string> stop;
  std::optional<std::vector<int32_t>> tokens;
  std::string format = "text";
  std::optional<int32_t> logprobs;
};

class FlagTableTest : public ::testing::Test {
 protected:
  FlagTableTest() {
    table_.Add("model_name", "a name", &values_.name);
    table_.Add("text", "a text", &values_.text);
    table_.Add("ignore_eos", "a switch", &values_.flag);
    table_.Add("max_tokens", "a number", &values_.count);
    table_.Add("pages", "a large number", &values_.pages);
    table_.Add("hash", "a large number from 0 on", &values_.hash);
    table_.Add("share", "a float with a default", &values_.share);
    table_.Add("temperature", "a float", &values_.heat);
    table_.Add("seed", "64 bits", &values_.seed);
    table_.Add("wait", "a time", &values_.wait);
    table_.AddRepeated("stop", "many", &values_.stop);
    table_.AddTokens("tokens", "ids", &values_.tokens);
    table_.AddChoice("format", "a word", {"text", "json"}, &values_.format);
    table_.AddOptionalNumber("logprobs", "a number or nothing", 0, &values_.logprobs);
  }
  std::string Error(const std::vector<std::string>& arguments) {
    const absl::Status status = table_.Parse(arguments);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("\n")));
    return std::string(status.message());
  }

  Values values_;
  FlagTable table_;
};

TEST_F(FlagTableTest, ReadsBothSpellingsOfEveryKind) {
  ASSERT_TRUE(table_
                  .Parse({"--model-name=m", "--text", "", "--ignore-eos", "--max_tokens", "7",
                          "--temperature=0.5", "--seed", "18446744073709551615", "--wait=500ms",
                          "--tokens", "1, 2,3", "--format=json"})
                  .ok());
  EXPECT_EQ(values_.name, "m");
  EXPECT_THAT(values_.text, Optional(std::string()));
  EXPECT_TRUE(values_.flag);
  EXPECT_EQ(values_.count, 7);
  ASSERT_TRUE(table_.Parse({"--pages=-9000000000", "--hash=9000000000", "--share", "0.25"}).ok());
  EXPECT_EQ(values_.pages, -9'000'000'000);
  EXPECT_EQ(values_.hash, 9'000'000'000u);
  EXPECT_EQ(values_.share, 0.25f);
  EXPECT_THAT(values_.heat, Optional(0.5f));
  EXPECT_THAT(values_.seed, Optional(18446744073709551615u));
  EXPECT_EQ(values_.wait, absl::Milliseconds(500));
  EXPECT_THAT(values_.tokens, Optional(ElementsAre(1, 2, 3)));
  EXPECT_EQ(values_.format, "json");
}

TEST_F(FlagTableTest, LeavesDefaultsWhereNothingIsGiven) {
  ASSERT_TRUE(table_.Parse({}).ok());
  EXPECT_EQ(values_.name, "none");
  EXPECT_EQ(values_.count, 4);
  EXPECT_FALSE(values_.text.has_value() || values_.heat.has_value() ||
               values_.logprobs.has_value() || values_.tokens.has_value());
}

TEST_F(FlagTableTest, CollectsRepeatedFlags) {
  ASSERT_TRUE(table_.Parse({"--stop", "\n\n", "--stop=END"}).ok());
  EXPECT_THAT(values_.stop, ElementsAre("\n\n", "END"));
}

TEST_F(FlagTableTest, TakesAnEmptyListOfTokens) {
  ASSERT_TRUE(table_.Parse({"--tokens="}).ok());
  EXPECT_THAT(values_.tokens, Optional(IsEmpty()));
}

TEST_F(FlagTableTest, ReadsAnOptionalNumber) {
  ASSERT_TRUE(table_.Parse({"--logprobs", "--format=json"}).ok());
  EXPECT_THAT(values_.logprobs, Optional(0));
  ASSERT_TRUE(table_.Parse({"--logprobs", "5"}).ok());
  EXPECT_THAT(values_.logprobs, Optional(5));
  ASSERT_TRUE(table_.Parse({"--logprobs=3"}).ok());
  EXPECT_THAT(values_.logprobs, Optional(3));
  EXPECT_THAT(Error({"--logprobs=x"}), HasSubstr("--logprobs"));
}

TEST_F(FlagTableTest, TurnsASwitchOff) {
  values_.flag = true;
  ASSERT_TRUE(table_.Parse({"--noignore-eos"}).ok());
  EXPECT_FALSE(values_.flag);
}

TEST_F(FlagTableTest, NamesTheFlagThatIsWrong) {
  for (const char* tokens : {"--tokens=1,,2", "--tokens=1,2,", "--tokens=,"}) {
    EXPECT_THAT(Error({tokens}), HasSubstr("'' is no token id")) << tokens;
  }
  EXPECT_THAT(Error({"--max-tokens=many"}), HasSubstr("--max-tokens cannot be \"many\""));
  EXPECT_THAT(Error({"--max-tokens"}), HasSubstr("--max-tokens needs a value"));
  EXPECT_THAT(Error({"--max-tokens=99999999999"}), HasSubstr("--max-tokens"));
  EXPECT_THAT(Error({"--temperature=hot"}), HasSubstr("--temperature"));
  EXPECT_THAT(Error({"--seed=-1"}), HasSubstr("--seed"));
  EXPECT_THAT(Error({"--wait=-1s"}), HasSubstr("--wait"));
  EXPECT_THAT(Error({"--tokens=1,x"}), HasSubstr("'x' is no token id"));
  EXPECT_THAT(Error({"--tokens=x"}), HasSubstr("'x' is no token id"));
  EXPECT_THAT(Error({"--wait=nan"}), HasSubstr("it must be a time"));
  EXPECT_THAT(Error({"--pages=1e3"}), HasSubstr("it must be a whole number"));
  EXPECT_THAT(Error({"--share="}), HasSubstr("it must be a number"));
  EXPECT_THAT(Error({"--format=xml"}), HasSubstr("text or json"));
  EXPECT_THAT(Error({"--nonsense"}), HasSubstr("--nonsense"));
  EXPECT_THAT(Error({"stray"}), HasSubstr("stray"));
}

TEST_F(FlagTableTest, ReadsFlagsFromAFile) {
  const std::string path = ::testing::TempDir() + "flags";
  std::ofstream(path) << "# a comment\n--stop=a\n\n--stop b\n--max-tokens=9\n";
  ASSERT_TRUE(table_.Parse({"--flagfile", path, "--stop=c"}).ok());
  EXPECT_THAT(values_.stop, ElementsAre("a", "b", "c"));
  EXPECT_EQ(values_.count, 9);
  EXPECT_THAT(Error({"--flagfile=/no/such/file"}), HasSubstr("/no/such/file"));
}

TEST_F(FlagTableTest, ListsEveryFlagWithItsDefault) {
  const std::string help = HelpText("usage", table_.flags(), /*full=*/false);
  EXPECT_THAT(help, HasSubstr("--max-tokens"));
  EXPECT_THAT(help, HasSubstr("a number [4]"));
  EXPECT_THAT(help, HasSubstr("a time [10s]"));
}

TEST_F(FlagTableTest, FlagsOfASubjectAreListedUnderItInTheFullHelpAlone) {
  int32_t most = 5;
  table_.Subject("Limits");
  table_.Add("most", "the most", &most);
  const std::string brief = HelpText("usage", table_.flags(), /*full=*/false);
  EXPECT_THAT(brief, HasSubstr("--model-name"));
  EXPECT_THAT(brief, Not(HasSubstr("--most")));
  EXPECT_THAT(brief, HasSubstr("these too: Limits"));
  const std::string full = HelpText("usage", table_.flags(), /*full=*/true);
  EXPECT_THAT(full, HasSubstr("--model-name"));
  EXPECT_THAT(full, HasSubstr("Limits:\n  --most         the most [5]\n"));
  EXPECT_TRUE(table_.Parse({"--most=7"}).ok());
  EXPECT_EQ(most, 7);
}

TEST_F(FlagTableTest, AFlagThatHasNoEffectWithoutAnotherIsTold) {
  table_.Needs("max_tokens", "text");
  table_.Needs("ignore_eos", "pages");
  EXPECT_EQ(Error({"--max-tokens=4"}), "--max-tokens needs --text") << "although it is the default";
  EXPECT_EQ(Error({"--max-tokens=5", "--text="}), "--max-tokens needs --text");
  EXPECT_EQ(Error({"--max-tokens=5", "--text=a", "--text="}), "--max-tokens needs --text");
  EXPECT_EQ(Error({"--ignore-eos"}), "--ignore-eos needs --pages");
  EXPECT_EQ(Error({"--ignore-eos", "--pages=0"}), "--ignore-eos needs --pages");
  EXPECT_TRUE(table_.Parse({"--max-tokens=5", "--text=a"}).ok());
  EXPECT_TRUE(table_.Parse({"--text=a", "--max-tokens=5"}).ok()) << "in any order";
  EXPECT_TRUE(table_.Parse({"--ignore-eos", "--pages=2"}).ok());
  EXPECT_TRUE(table_.Parse({"--noignore-eos"}).ok()) << "what is off needs nothing";
  EXPECT_TRUE(table_.Parse({}).ok());
}

TEST_F(FlagTableTest, FlagsOfASubjectMayAllNeedOne) {
  int32_t most = 5;
  int32_t least = 1;
  table_.Subject("Limits");
  table_.Add("most", "the most", &most);
  table_.Add("least", "the least", &least);
  table_.SubjectNeeds("Limits", "model_name");
  EXPECT_TRUE(table_.Parse({"--most=7", "--least=2"}).ok()) << "its default is a name";
  EXPECT_EQ(Error({"--least=2", "--model-name="}), "--least needs --model-name");
}

}  // namespace
}  // namespace blockserve
