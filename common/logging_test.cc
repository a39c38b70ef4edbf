#include "common/logging.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "common/log_budget.h"

namespace blockserve {
namespace {

TEST(Logging, TextShowsTheFieldsBehindTheMessage) {
  EXPECT_EQ(FormatTextEvent("request finished", {{"request_id", "r-1"},
                                                 {"tokens", int64_t{5}},
                                                 {"total_ms", 1.5},
                                                 {"sampled", true},
                                                 {"key", ""},
                                                 {"error", "no \"room\""}}),
            R"(request finished request_id=r-1 tokens=5 total_ms=1.5 sampled=true )"
            R"(error="no \"room\"")");
}

TEST(Logging, JsonEscapesWhatTheClientsWrote) {
  EXPECT_EQ(FormatJsonEvent("a\nb", {{"request_id", "x\"},{\x01"}, {"n", int64_t{-1}}}),
            R"("message":"a\nb","request_id":"x\"},{\u0001","n":-1)");
}

TEST(Logging, TextIsOneLineThatMovesNoTerminal) {
  // C1 is a control character in two bytes; U+2028 ends a line for some readers.
  const std::string written = "a\n\x1b[2J\xc2\x9b\xe2\x80\xa8\xc3\xa9 \"b\"\r";
  const std::string escaped = "a\\n\\u001b[2J\\u009b\\u2028\xc3\xa9 ";
  EXPECT_EQ(FormatTextEvent(written, {}), absl::StrCat(escaped, "\"b\"\\u000d"));
  EXPECT_EQ(FormatTextEvent("m", {{"id", written}}),
            absl::StrCat("m id=\"", escaped, "\\\"b\\\"\\u000d\""));
  for (const absl::string_view plain : {"\x1b[2J", "\x7f", "\xc2\x85", "\xe2\x80\xa9"}) {
    EXPECT_EQ(FormatTextEvent("m", {{"id", plain}}).substr(0, 6), "m id=\"") << plain;
  }
  EXPECT_EQ(FormatTextEvent("\xff!", {}), "?!");
}

TEST(Logging, JsonHasNoInvalidUtf8AndNoInfinity) {
  EXPECT_EQ(FormatJsonEvent("m", {{"id", "\xff\xfe"}, {"x", 1.0 / 0.0}}),
            R"("message":"m","id":"??","x":null)");
  EXPECT_EQ(FormatJsonEvent("m", {{"id", "\xc3\xa9"}}), "\"message\":\"m\",\"id\":\"\xc3\xa9\"");
}

TEST(LogBudget, TellsHowManyLinesItHasLeftOut) {
  LogBudget budget;
  absl::Time now = absl::UnixEpoch();
  for (int i = 1; i < LogBudget::kLines; ++i) EXPECT_EQ(budget.Take(now), "");
  EXPECT_EQ(budget.Take(now), "the next ones, for some seconds");
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(budget.Take(now), std::nullopt);
  now += LogBudget::kPeriod;
  EXPECT_EQ(budget.Take(now), "1000 before this one");
  EXPECT_EQ(budget.Take(now), "");
}

TEST(LogBudget, MayHaveALongerPeriod) {
  LogBudget budget(absl::Minutes(10));
  absl::Time now = absl::UnixEpoch();
  for (int i = 1; i < LogBudget::kLines; ++i) EXPECT_EQ(budget.Take(now), "");
  EXPECT_EQ(budget.Take(now), "the next ones, for some minutes");
  now += LogBudget::kPeriod;
  EXPECT_EQ(budget.Take(now), std::nullopt);
  now += absl::Minutes(10);
  EXPECT_EQ(budget.Take(now), "1 before this one");
}

TEST(Logging, RefusesUnknownFormats) {
  EXPECT_EQ(ConfigureLogging({.program = "p", .level = "info", .format = "xml"}).message(),
            "--log-format is \"xml\"; use text or json");
}

TEST(Logging, QueuedLinesAreWrittenBeforeTheLastOne) {
  testing::internal::CaptureStderr();
  ASSERT_TRUE(ConfigureLogging({.program = "p", .format = "json", .queued = true}).ok());
  for (int i = 0; i < 3; ++i) LogEvent(LogLevel::kInfo, "a line", {{"number", int64_t{i}}});
  LogDebug("not this one");
  PrintLastLine("q", "the end");
  const std::string written = testing::internal::GetCapturedStderr();
  ASSERT_TRUE(ConfigureLogging({}).ok());
  const std::vector<std::string> lines = absl::StrSplit(written, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 4u) << written;
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(absl::EndsWith(lines[i], absl::StrCat(R"("message":"a line","number":)", i, "}")))
        << lines[i];
  }
  EXPECT_TRUE(absl::StartsWith(lines[3], R"({"time":")")) << lines[3];
  EXPECT_TRUE(absl::StrContains(lines[3], R"(,"level":"error","program":"q","pid":)")) << lines[3];
  EXPECT_TRUE(absl::EndsWith(lines[3], R"(,"message":"the end"})")) << lines[3];
  EXPECT_EQ(LogLinesLost(), 0);
}

TEST(Logging, TheLastLineOfAProgramIsForPeopleUnlessItsLogIsNot) {
  testing::internal::CaptureStderr();
  PrintLastLine("p", "the \"end\"");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "p: the \"end\"\n");
}

}  // namespace
}  // namespace blockserve
