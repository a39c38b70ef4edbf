#include "common/process_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "common/metric_definitions.h"
#include "common/version.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

TEST(ProcessMetrics, TellWhatTheProcessUses) {
  MetricRegistry registry;
  const std::shared_ptr<void> collector = AddProcessMetrics(registry);
  EXPECT_THAT(registry.RenderText(), HasSubstr("blockserve_build_info{commit=\""));
  EXPECT_GT(registry.Gauge(kProcessResidentBytes).Value(), 1 << 20);
  EXPECT_GE(registry.Gauge(kProcessOpenFiles).Value(), 3);  // the standard streams at least
  const double age = absl::ToUnixSeconds(absl::Now()) - registry.Gauge(kProcessStartTime).Value();
  EXPECT_GE(age, -2);
  EXPECT_LT(age, 3600);
}

TEST(ProcessMetrics, ProcessorTimeOnlyGrows) {
  MetricRegistry registry;
  const std::shared_ptr<void> collector = AddProcessMetrics(registry);
  registry.RenderText();
  const double before = registry.Counter(kProcessCpuSeconds).Value();
  volatile uint64_t sink = 0;
  for (uint64_t i = 0; i < 50'000'000; ++i) sink = sink + i;
  registry.RenderText();
  EXPECT_GT(registry.Counter(kProcessCpuSeconds).Value(), before);
}

}  // namespace
}  // namespace blockserve
