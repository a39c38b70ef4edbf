#include "common/program.h"

#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/str_cat.h"
#include "common/version.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

ABSL_FLAG(std::string, test_name, "none", "a name");
ABSL_FLAG(int32_t, test_count, 3, "a count");
ABSL_FLAG(bool, test_switch, false, "a switch");
ABSL_FLAG(absl::Duration, test_time, absl::Seconds(1), "a time");
ABSL_FLAG(int32_t, test_other, 0, "belongs to another command");

namespace blockserve {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const ProgramUsage& Usage() {
  static const ProgramUsage* const usage =
      new ProgramUsage{"program [--test-name NAME] FILE\nDoes things.",
                       {"test_name", "test_count", "test_switch", "test_time"}};
  return *usage;
}

std::string ErrorOf(const std::vector<std::string>& arguments) {
  const auto parsed = ParseFlags(arguments, Usage());
  EXPECT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(parsed.status().message());
}

std::string WriteFile(const std::string& name, const std::string& text) {
  const std::string path = absl::StrCat(testing::TempDir(), "/", name);
  std::ofstream(path) << text;
  return path;
}

class Program : public testing::Test {
 protected:
  absl::FlagSaver saver_;  // flags are what they were after each test
};

TEST_F(Program, FlagsAreReadInEverySpelling) {
  const auto rest = ParseFlags(
      {"--test-name=a b", "--test_count", "7", "file", "--test-switch", "--", "--not-a-flag", "-"},
      Usage());
  ASSERT_TRUE(rest.ok()) << rest.status();
  EXPECT_THAT(*rest, ElementsAre("file", "--not-a-flag", "-"));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "a b");
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 7);
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
  ASSERT_TRUE(ParseFlags({"--notest-switch"}, Usage()).ok());
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_switch));
  ASSERT_TRUE(ParseFlags({"--test-switch=true", "--test-count=-5", "--test-name="}, Usage()).ok());
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), -5);
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "");
}

TEST_F(Program, TimesAreSecondsOrHaveAUnit) {
  for (const auto& [text, time] : {std::pair("5", absl::Seconds(5)),
                                   {"0.5", absl::Milliseconds(500)},
                                   {"1500ms", absl::Milliseconds(1500)},
                                   {"2m", absl::Minutes(2)}}) {
    ASSERT_TRUE(ParseFlags({absl::StrCat("--test-time=", text)}, Usage()).ok()) << text;
    EXPECT_EQ(absl::GetFlag(FLAGS_test_time), time) << text;
  }
  EXPECT_THAT(ErrorOf({"--test-time=5 s"}), HasSubstr("it must be a time as 10s or 500ms"));
  EXPECT_THAT(ErrorOf({"--test-time=nan"}), HasSubstr("it must be a time as 10s or 500ms"));
  EXPECT_THAT(ErrorOf({"--test-time=-1"}), HasSubstr("it must not be negative"));
}

TEST_F(Program, ErrorsNameTheFlag) {
  EXPECT_THAT(ErrorOf({"--test-nam=x"}), HasSubstr("unknown flag --test-nam"));
  EXPECT_THAT(ErrorOf({"--test-count=many"}), HasSubstr("--test-count cannot be \"many\""));
  EXPECT_THAT(ErrorOf({"--test-count"}), HasSubstr("--test-count needs a value"));
  EXPECT_THAT(ErrorOf({"--test-switch=perhaps"}), HasSubstr("--test-switch cannot be"));
  EXPECT_THAT(ErrorOf({"--notest-switch=1"}), HasSubstr("takes no value"));
  EXPECT_THAT(ErrorOf({"--notest-name"}), HasSubstr("unknown flag"));
  EXPECT_THAT(ErrorOf({"--test-other=1"}), HasSubstr("unknown flag --test-other"));
  EXPECT_THAT(ErrorOf({"--"
                       "=1"}),
              HasSubstr("unknown flag"));
}

TEST_F(Program, FlagFilesHoldFlags) {
  const std::string inner = WriteFile("inner.flags", "--test-switch\n");
  const std::string path = WriteFile(
      "flags", absl::StrCat("# comment\n\n  --test-name=from file  \n--test-count 9\n--flagfile=",
                            inner, "\n"));
  ASSERT_TRUE(ParseFlags({"--flagfile", path}, Usage()).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_name), "from file");
  EXPECT_EQ(absl::GetFlag(FLAGS_test_count), 9);
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_switch));
  EXPECT_THAT(ErrorOf({"--flagfile=/nowhere/flags"}), HasSubstr("/nowhere/flags: cannot be read"));
  EXPECT_THAT(ErrorOf({"--flagfile"}), HasSubstr("--flagfile needs a file"));
  const std::string word = WriteFile("word.flags", "word\n");
  EXPECT_THAT(ErrorOf({"--flagfile", word}), HasSubstr("\"word\" is not a flag"));
  const std::string bad = WriteFile("bad.flags", "--test-count=x\n");
  EXPECT_THAT(ErrorOf({"--flagfile", bad}), HasSubstr(bad));
  const std::string itself = absl::StrCat(testing::TempDir(), "/itself.flags");
  WriteFile("itself.flags", absl::StrCat("--flagfile=", itself, "\n"));
  EXPECT_THAT(ErrorOf({"--flagfile", itself}), HasSubstr("too deeply"));
}

TEST_F(Program, HelpListsTheProgramsOwnFlags) {
  const std::string help = HelpText(Usage());
  EXPECT_THAT(help, HasSubstr("Does things."));
  EXPECT_THAT(help, HasSubstr("--test-count"));
  EXPECT_THAT(help, HasSubstr("[3]"));
  EXPECT_THAT(help, testing::Not(HasSubstr("--test-other")));
}

using ProgramDeathTest = Program;

TEST_F(ProgramDeathTest, BadUsageExitsTwoWithOneLine) {
  const auto run = [](std::vector<std::string> arguments) {
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    ParseProgramFlags(static_cast<int>(argv.size()), argv.data(), Usage());
    std::exit(0);
  };
  EXPECT_EXIT(run({"/bin/program", "--unknown=1"}), testing::ExitedWithCode(kExitUsage),
              "^program: unknown flag --unknown [^\n]*\n$");
  EXPECT_EXIT(run({"program", "--help"}), testing::ExitedWithCode(kExitOk), "");
  EXPECT_EXIT(run({"program", "--version"}), testing::ExitedWithCode(kExitOk), "");
  EXPECT_EXIT(run({"program", "--test-count=4"}), testing::ExitedWithCode(0), "");
}

TEST_F(Program, ExitCodesFollowTheStatus) {
  EXPECT_EQ(ReportFailure("program", absl::OkStatus()), kExitOk);
  EXPECT_EQ(ReportFailure("program", absl::InternalError("broken")), kExitFailure);
  EXPECT_EQ(ReportUsageError("program", absl::InvalidArgumentError("--x is 3")), kExitUsage);
}

TEST_F(Program, VersionTellsCommitAndArithmetics) {
  const std::string version = VersionText("program");
  EXPECT_THAT(version, testing::StartsWith("program "));
  EXPECT_THAT(version, HasSubstr(std::string(Commit())));
  EXPECT_THAT(version, HasSubstr("f32 bf16"));
  EXPECT_FALSE(Commit().empty());
}

}  // namespace
}  // namespace blockserve
