#include "common/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kBuckets[] = {0.1, 1};
constexpr MetricDefinition kSteps = {MetricKind::kCounter, "test_steps_total", "Steps done."};
constexpr MetricDefinition kRows = {
    MetricKind::kGauge, "test_rows", "Rows by worker.", {"worker"}, /*max_series=*/2};
constexpr MetricDefinition kRowsDone = {
    MetricKind::kCounter, "test_rows_total", "Rows done.", {"worker"}, /*max_series=*/2};
constexpr MetricDefinition kWait = {
    MetricKind::kHistogram, "test_wait_seconds", "Waits.", {}, /*max_series=*/1, kBuckets};

TEST(Metrics, RendersCountersGaugesAndHistograms) {
  MetricRegistry registry;
  registry.Counter(kSteps).Add();
  registry.Counter(kSteps).Add(2);
  registry.Gauge(kRows, {"a"}).Set(5);
  registry.Histogram(kWait).Observe(0.5);
  const std::string text = registry.RenderText();
  EXPECT_THAT(text, HasSubstr("# HELP test_steps_total Steps done.\n"));
  EXPECT_THAT(text, HasSubstr("# TYPE test_steps_total counter\ntest_steps_total 3\n"));
  EXPECT_THAT(text, HasSubstr("test_rows{worker=\"a\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("test_wait_seconds_bucket{le=\"0.1\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("test_wait_seconds_bucket{le=\"1\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("test_wait_seconds_count 1\n"));
}

TEST(Metrics, TellsDeclaredMetricsBeforeTheyHaveASeries) {
  MetricRegistry registry;
  const MetricDefinition* const list[] = {&kRows};
  registry.Declare(list);
  EXPECT_THAT(registry.RenderText(), HasSubstr("# TYPE test_rows gauge\n"));
}

TEST(Metrics, BoundsTheSeriesOfLabels) {
  MetricRegistry registry;
  for (int i = 0; i < 1000; ++i) registry.Counter(kRowsDone, {absl::StrCat("w", i)}).Add(1);
  const std::string text = registry.RenderText();
  EXPECT_THAT(text, HasSubstr("test_rows_total{worker=\"w1\"} 1\n"));
  EXPECT_THAT(text, Not(HasSubstr("w2")));
  EXPECT_THAT(text, HasSubstr("test_rows_total{worker=\"other\"} 998\n"));
}

TEST(Metrics, ForgetsRemovedSeriesAndHasRoomForOthersAgain) {
  MetricRegistry registry;
  registry.Gauge(kRows, {"a"}).Set(1);
  registry.Gauge(kRows, {"b"}).Set(1);
  registry.Remove(kRows, {"a"});
  registry.Gauge(kRows, {"c"}).Set(1);
  const std::string text = registry.RenderText();
  EXPECT_THAT(text, Not(HasSubstr("\"a\"")));
  EXPECT_THAT(text, HasSubstr("test_rows{worker=\"c\"} 1\n"));
}

TEST(Metrics, EscapesLabelValues) {
  MetricRegistry registry;
  registry.Gauge(kRows, {"a\"\n\\"}).Set(1);
  EXPECT_THAT(registry.RenderText(), HasSubstr("test_rows{worker=\"a\\\"\\n\\\\\"} 1\n"));
}

TEST(Metrics, AsksCollectorsUntilTheyAreGone) {
  MetricRegistry registry;
  int asked = 0;
  std::shared_ptr<void> collector = registry.OnCollect([&] { ++asked; });
  registry.RenderText();
  registry.RenderText();
  EXPECT_EQ(asked, 2);
  collector.reset();
  registry.RenderText();
  EXPECT_EQ(asked, 2);
}

TEST(Metrics, HandlesWithoutARegistryCountNothing) {
  MetricCounter().Add();
  MetricGauge().Set(1);
  MetricHistogram().Observe(1);
  EXPECT_EQ(MetricCounter().Value(), 0);
}

}  // namespace
}  // namespace blockserve
