#include "bench/engine_run.h"

#include <memory>

#include "bench/peak_kernels.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

class EngineRunTest : public ::testing::TestWithParam<const char*> {};

TEST_P(EngineRunTest, ChecksAndGeneratesTheSameInAnyBatching) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(std::string("tests/golden/") + GetParam());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ThreadPool pool(2);
  const Workload workload{33, 10, 5};
  uint64_t hash = 0;
  for (const int64_t rows : {64, 2, 3}) {
    EngineRunOptions options;
    options.groups = rows == 3 ? 2 : 1;
    options.batching.token_rows = rows;
    options.batching.prefill_blocks = 3 * rows;
    options.temperature = 0.8f;
    absl::StatusOr<std::unique_ptr<EngineRunner>> runner =
        EngineRunner::Load(**checkpoint, options, pool, workload);
    ASSERT_TRUE(runner.ok()) << runner.status();
    EXPECT_TRUE((*runner)->CheckBatchInvariance().ok());
    absl::StatusOr<EngineRunResult> run = (*runner)->Run(workload);
    ASSERT_TRUE(run.ok()) << run.status();
    ASSERT_EQ(run->outputs.size(), 5u);
    for (const SequenceOutput& output : run->outputs) EXPECT_EQ(output.tokens.size(), 10u);
    if (rows == 64) hash = run->output_hash;
    EXPECT_EQ(run->output_hash, hash);
    if (options.groups == 2) continue;
    // The parts that were timed lie within the whole.
    double timed = 0;
    for (int work = 0; work < StepTimer::kNumWorks; ++work) {
      for (int part = 0; part < StepTimer::kNumParts; ++part) {
        timed += run->decode_times.seconds(static_cast<StepTimer::Part>(part),
                                           static_cast<StepTimer::Work>(work));
      }
    }
    EXPECT_GT(timed, 0);
    EXPECT_LE(timed, run->decode_seconds);
    EXPECT_GT(run->decode_times.seconds(StepTimer::kFirstStep, StepTimer::kHead), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, EngineRunTest,
                         ::testing::Values("concat_l4", "widths_differ_l8", "vanilla"));

TEST(PeakLoops, CountWhatTheyDo) {
  for (const KernelTarget target : SupportedKernelTargets()) {
    const PeakLoops loops = FindPeakLoops(target);
    for (const PeakLoop& loop : {loops.fma_f32, loops.bf16_dot, loops.int8_dot}) {
      if (loop.run == nullptr) continue;
      EXPECT_EQ(loop.run(6), 2 * loop.run(3)) << loop.name;
    }
  }
  const std::vector<float> ones(640, 1.0f);
  EXPECT_GT(ReadAll(ones.data(), 640), 0);
}

}  // namespace
}  // namespace blockserve
