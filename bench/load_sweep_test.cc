// Sweeps, knees and comparisons, and events of an HTTP stream.
#include "bench/load_sweep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "bench/load_plot.h"
#include "bench/load_sse.h"

namespace blockserve {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

TEST(ParseSweep, ListsAndRangesOfRatesAndConcurrencies) {
  EXPECT_THAT(ParseSweep("1,2,4.5")->values, ElementsAre(1, 2, 4.5));
  EXPECT_THAT(ParseSweep("1:64:4")->values,
              ElementsAre(1, DoubleNear(4, 1e-9), DoubleNear(16, 1e-9), DoubleNear(64, 1e-9)));
  const auto by_concurrency = ParseSweep("concurrency:1:8:8");
  EXPECT_TRUE(by_concurrency->by_concurrency);
  EXPECT_THAT(by_concurrency->values, ElementsAre(1, 2, 3, 4, 6, 8));
  for (const char* bad :
       {"", "0", "a", "1:2", "4:1:3", "1:4:1", "1,2,", "3,2", "concurrency:0.2"}) {
    EXPECT_FALSE(ParseSweep(bad).ok()) << bad;
  }
}

TEST(FindKnee, IsWhereAQueueBegins) {
  // Latency of a server that holds 100 per second: 1 / (100 - rate), then without bound.
  std::vector<CurvePoint> curve;
  for (const double rate : {10.0, 30.0, 50.0, 70.0, 85.0, 95.0, 99.0}) {
    curve.push_back({rate, 1 / (100 - rate)});
  }
  EXPECT_EQ(FindKnee(absl::MakeConstSpan(curve)), 4);
  // Beyond saturation throughput stands still and latency goes on.
  curve.push_back({99.5, 5});
  EXPECT_EQ(FindKnee(absl::MakeConstSpan(curve)), 5);
}

TEST(FindKnee, ThereIsNoneInTooFewPointsOrAFlatLine) {
  EXPECT_EQ(FindKnee(std::vector<CurvePoint>{{1, 1}, {2, 2}}), -1);
  EXPECT_EQ(FindKnee(std::vector<CurvePoint>{{1, 1}, {1, 2}, {1, 3}}), -1);
}

SweepPoint Point(double rate, int64_t answered, int64_t latency_us) {
  SweepPoint point;
  point.offered = rate;
  LoadResult& result = point.report.result;
  result.window_end = 1'000'000;
  result.sent = static_cast<int64_t>(rate);
  result.ok = result.good = result.window_ok = answered;
  result.window_output_tokens = 10 * answered;
  result.e2e.Add(latency_us, answered);
  result.ttft.Add(latency_us / 2, answered);
  return point;
}

TEST(Sweep, TellsKneeAndHowFarTheServerKeepsUp) {
  const SweepPlan plan = *ParseSweep("10,20,40,80,160");
  const std::vector<SweepPoint> points = {Point(10, 10, 1000), Point(20, 20, 1100),
                                          Point(40, 40, 1500), Point(80, 60, 90'000),
                                          Point(160, 61, 500'000)};
  EXPECT_EQ(FindKnee(plan, points).index, 3);
  EXPECT_EQ(FindSaturation(plan, points), 2);
  const nlohmann::ordered_json json = SweepToJson(plan, points);
  EXPECT_EQ(json["knee"], 80);
  EXPECT_EQ(json["keeps_up_to"], 40);
  EXPECT_EQ(json["points"].size(), 5u);
  EXPECT_THAT(SweepToText(plan, points), HasSubstr("<- knee"));
  const std::string page = PageOf(plan, points);
  EXPECT_THAT(page, HasSubstr("knee: 80 requests/s"));
  // Nothing of it comes from elsewhere.
  EXPECT_EQ(page.find("src="), std::string::npos);
  EXPECT_EQ(page.find("nan"), std::string::npos);
}

// Latency of a server that holds 100 requests per second, at rates that it keeps up with.
TEST(Sweep, NamesNoKneeWhereTheServerDidNotComeToItsLimit) {
  const SweepPlan plan = *ParseSweep("5,10,20,30,40");
  std::vector<SweepPoint> points;
  for (const double rate : plan.values) {
    points.push_back(
        Point(rate, static_cast<int64_t>(rate), static_cast<int64_t>(1e6 / (100 - rate))));
  }
  const Knee knee = FindKnee(plan, points);
  EXPECT_EQ(knee.index, -1);
  EXPECT_THAT(knee.none, HasSubstr("within what was offered"));
  const nlohmann::ordered_json json = SweepToJson(plan, points);
  EXPECT_TRUE(json["knee"].is_null());
  EXPECT_EQ(json["no_knee"], knee.none);
  EXPECT_EQ(json["keeps_up_to"], 40);
  EXPECT_THAT(SweepToText(plan, points), HasSubstr("no knee: the server did not come"));
  EXPECT_EQ(PageOf(plan, points).find("knee: 4"), std::string::npos);

  // It answers all of 90, but most of a request's time is waiting: that is a knee.
  const SweepPlan further = *ParseSweep("5,10,20,30,40,90");
  points.push_back(Point(90, 90, 100'000));
  EXPECT_EQ(FindKnee(further, points).index, 4);
  EXPECT_FALSE(SweepToJson(further, points).contains("no_knee"));
}

TEST(Sweep, NamesNoKneeWhereAllOfItIsBeyond) {
  const SweepPlan plan = *ParseSweep("200,300,400");
  const std::vector<SweepPoint> points = {Point(200, 100, 500'000), Point(300, 101, 900'000),
                                          Point(400, 99, 1'400'000)};
  EXPECT_EQ(FindKnee(plan, points).index, -1);
  EXPECT_THAT(FindKnee(plan, points).none, HasSubstr("at the lowest load"));
  const SweepPlan two = *ParseSweep("10,20");
  EXPECT_THAT(FindKnee(two, {Point(10, 10, 1000), Point(20, 20, 1000)}).none,
              HasSubstr("fewer than three"));
}

TEST(Sweep, ByConcurrencyTheTimeOfARequestTellsTheLimit) {
  const SweepPlan plan = *ParseSweep("concurrency:1,2,4,8,16");
  const auto curve = [&](int64_t most_per_s) {
    std::vector<SweepPoint> points;
    for (const double n : plan.values) {
      // 10 ms each, until the limit.
      const int64_t answered = std::min(most_per_s, static_cast<int64_t>(n * 100));
      points.push_back(Point(n, answered, static_cast<int64_t>(n * 1e6) / answered));
    }
    return points;
  };
  EXPECT_EQ(FindKnee(plan, curve(10'000)).index, -1);
  EXPECT_EQ(FindKnee(plan, curve(400)).index, 2);
}

TEST(Compare, ShowsChangesAndWhatWasAskedOtherwise) {
  LoadReport a = Point(10, 10, 1000).report, b = Point(10, 10, 2000).report;
  a.description.workload = {{"rate", 10}};
  b.description.workload = {{"rate", 10}};
  EXPECT_THAT(CompareToText(a, b), HasSubstr("+100.0 %"));
  EXPECT_THAT(CompareToText(a, b), HasSubstr("the answers are the same"));
  b.result.output_hash = 1;
  EXPECT_THAT(CompareToText(a, b), HasSubstr("the answers differ"));
  b.description.workload["rate"] = 12;
  EXPECT_THAT(CompareToText(a, b), HasSubstr("differs: rate 10, 12"));
  EXPECT_THAT(CompareToText(a, b), HasSubstr("the answers differ"));
  b.description.workload["seed"] = 2;
  EXPECT_THAT(CompareToText(a, b), Not(HasSubstr("the answers")));
}

TEST(Compare, RunsOfATraceAgreeWhereTheyWereDueAlike) {
  LoadReport a = Point(10, 10, 1000).report, b = a;
  a.description.workload = {{"trace", "t"}, {"warmup_s", 0}};
  b.description.workload = a.description.workload;
  EXPECT_THAT(CompareToText(a, b), HasSubstr("the answers are the same"));
  b.description.workload["warmup_s"] = 1;
  EXPECT_THAT(CompareToText(a, b), Not(HasSubstr("the answers")));
  b = a;
  b.description.target = {{"model_id", "another"}};
  EXPECT_THAT(CompareToText(a, b), Not(HasSubstr("the answers")));
}

class Recording final : public RequestObserver {
 public:
  void OnTokens(uint32_t choice, int64_t count, absl::Span<const int32_t> ids) override {
    tokens.push_back({choice, count});
    all_ids.insert(all_ids.end(), ids.begin(), ids.end());
  }
  void OnMessageEnd(int64_t) override {}
  void OnFinished(uint32_t choice) override { finished.push_back(choice); }
  void OnUsage(const UsageReport& one) override { usage = one; }
  void OnEnd(int64_t, const std::string&, const std::string&) override {}

  std::vector<std::pair<uint32_t, int64_t>> tokens;
  std::vector<int32_t> all_ids;
  std::vector<uint32_t> finished;
  UsageReport usage;
};

constexpr absl::string_view kStream =
    "data: {\"choices\":[{\"index\":0,\"text\":\"a\",\"finish_reason\":null}]}\n\n"
    ": a comment\n\n"
    "data: "
    "{\"choices\":[{\"index\":1,\"text\":\"b\",\"token_ids\":[5,6],\"finish_reason\":\"stop\"}]}"
    "\r\n\r\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":3,"
    "\"prompt_tokens_details\":{\"cached_tokens\":2}}}\n\n"
    "data: [DONE]\n\n";

TEST(CompletionEvents, AreTheSameInPiecesOfAnySize) {
  for (size_t size = 1; size <= kStream.size(); size += 3) {
    Recording seen;
    CompletionEvents events(&seen);
    for (size_t at = 0; at < kStream.size(); at += size) events.Take(kStream.substr(at, size));
    EXPECT_TRUE(events.done());
    EXPECT_EQ(events.fault(), "");
    EXPECT_THAT(seen.tokens, ElementsAre(std::pair(0u, 1), std::pair(1u, 2)));
    EXPECT_THAT(seen.all_ids, ElementsAre(5, 6));
    EXPECT_THAT(seen.finished, ElementsAre(1u));
    EXPECT_EQ(seen.usage.prompt_tokens, 3);
    EXPECT_EQ(seen.usage.cached_prompt_tokens, 2);
  }
}

TEST(CompletionEvents, AnEndThatShowsNothingIsATokenWhereUsageCountsIt) {
  for (const int told : {1, 2}) {
    Recording seen;
    CompletionEvents events(&seen);
    events.Take("data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":null}]}\n\n");
    events.Take("data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n");
    EXPECT_THAT(seen.tokens, SizeIs(1));
    EXPECT_THAT(seen.finished, ElementsAre(0u));
    events.Take(
        absl::StrCat("data: {\"choices\":[],\"usage\":{\"completion_tokens\":", told, "}}\n\n"));
    EXPECT_THAT(seen.tokens, SizeIs(told));
    EXPECT_EQ(seen.usage.completion_tokens, told);
  }
}

TEST(CompletionEvents, ErrorsAndBrokenEventsAreTold) {
  Recording seen;
  CompletionEvents failed(&seen), broken(&seen);
  failed.Take("data: {\"error\":{\"message\":\"the tier is gone\"}}\n\n");
  EXPECT_EQ(failed.fault(), "the tier is gone");
  broken.Take("data: {\"choices\":[\n\n");
  EXPECT_THAT(broken.fault(), HasSubstr("no JSON"));
}

TEST(CompletionEvents, ALineThatNeverEndsIsNotKept) {
  Recording seen;
  CompletionEvents events(&seen);
  const std::string piece(1 << 20, 'x');
  for (int i = 0; i < 16; ++i) events.Take(piece);
  EXPECT_EQ(events.fault(), "");
  events.Take(piece);
  EXPECT_THAT(events.fault(), HasSubstr("longer than 16 MiB"));
}

}  // namespace
}  // namespace blockserve
