#include "bench/report.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(Percentile, IsAValueThatOccurred) {
  EXPECT_EQ(Percentile({3, 1, 2}, 0.5), 2);
  EXPECT_EQ(Percentile({4, 3, 2, 1}, 0.99), 4);
  EXPECT_EQ(Percentile({1}, 0.5), 1);
  EXPECT_EQ(Percentile({}, 0.5), 0);
}

EngineReport Report() {
  EngineReport report;
  report.command = "blockserve-bench --model m";
  report.commit = "abc";
  report.model = "m";
  report.config.vocab_size = 100;
  report.config.block_length = 2;
  report.config.expansion_ratio = 2;
  for (StackConfig* stack : {&report.config.block, &report.config.token}) {
    stack->hidden_size = 32;
    stack->num_heads = 2;
    stack->num_layers = 1;
    stack->intermediate_size = 64;
  }
  report.machine.fma_f32 = {"FMA", 1e9, 2e9};
  report.machine.read_bytes_per_s = 1e9;
  report.workload = {4, 6, 2};
  for (const double seconds : {3.0, 1.0, 2.0}) {
    EngineRunResult run;
    run.prefill_seconds = seconds / 2;
    run.decode_seconds = seconds / 2;
    run.round_seconds = {seconds / 6, seconds / 6, seconds / 6};
    report.runs.push_back(std::move(run));
  }
  return report;
}

TEST(ReportJson, TellsTheMiddleRun) {
  const nlohmann::ordered_json json = ReportJson(Report());
  EXPECT_DOUBLE_EQ(json["output_tokens_per_s"], 12 / 2.0);
  EXPECT_DOUBLE_EQ(json["prefill_tokens_per_s"], 8 / 1.0);
  EXPECT_DOUBLE_EQ(json["decode_tokens_per_s"], 12 / 1.0);
  EXPECT_EQ(json["output_tokens_per_s_of_runs"].size(), 3u);
}

TEST(ReportJson, SharesAreTheCountedWorkOverTimeAndPeak) {
  const EngineReport report = Report();
  const nlohmann::ordered_json json = ReportJson(report);
  const Work work = CountWork(report.config, report.storage, report.workload, report.batching);
  EXPECT_DOUBLE_EQ(json["share_of_peak"], work.all().flop() / 2.0 / 2e9);
  EXPECT_DOUBLE_EQ(json["decode"]["share_of_peak"], work.decode().flop() / 1.0 / 2e9);
  EXPECT_DOUBLE_EQ(json["formula"]["flop"], work.all().flop());
  for (const char* key : {"machine", "commit", "command"}) EXPECT_TRUE(json.contains(key)) << key;
}

TEST(ReportTable, OfADeviceHasItsPeaksAndNoneOfTheProcessor) {
  EngineReport report = Report();
  report.arithmetic = Arithmetic::kCudaBf16;
  report.machine = {};
  report.machine.threads = 1;
  report.machine.device = "a device";
  report.machine.device_product = {"bfloat16 product", 0, 3e12};
  report.machine.device_bytes_per_s = 4e9;
  report.profiled = true;
  for (EngineRunResult& run : report.runs) {
    run.decode_times.Book(StepTimer::kFirstStep, StepTimer::kMatmul, 0.25);
  }
  const nlohmann::ordered_json json = ReportJson(report);
  const Work work = CountWork(report.config, report.storage, report.workload, report.batching);
  EXPECT_DOUBLE_EQ(json["share_of_peak"], work.all().flop() / 2.0 / 3e12);
  EXPECT_DOUBLE_EQ(json["machine"]["device"]["product_gflop_per_s"], 3000);
  EXPECT_FALSE(json["machine"].contains("fma_f32"));
  // Seconds of the device, not shares of the measured second.
  EXPECT_DOUBLE_EQ(json["decode"]["kinds_of_work"]["matrix_products_seconds"], 0.25);
  const std::string table = ReportTable(json);
  EXPECT_THAT(table, HasSubstr("bfloat16 product 3.0 TFLOP/s; memory 4 GB/s"));
  EXPECT_THAT(table, Not(HasSubstr("memory, read")));
}

TEST(ReportTable, HasEveryPart) {
  const std::string table = ReportTable(ReportJson(Report()));
  for (const char* part : {"block step", "expansion", "first step", "later steps", "head",
                           "FLOP = ", "round", "memory"}) {
    EXPECT_THAT(table, HasSubstr(part));
  }
}

}  // namespace
}  // namespace blockserve
