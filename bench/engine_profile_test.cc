// Where a device's time goes, on the emulated device, which has none: what is told of is counted.
#include <memory>

#include "bench/engine_run.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulation/emulator.h"

namespace blockserve {
namespace {

TEST(EngineProfile, TellsThePrefillAndTheRoundsAndLeavesTheEnginesAsTheyWere) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open("tests/golden/concat_l4");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelConfig& config = (*checkpoint)->config();
  ThreadPool pool(1);
  const Workload workload{9, 23, 3};  // six blocks a sequence
  EngineRunOptions options;
  options.arithmetic = Arithmetic::kCudaF32;
  options.cuda_device = 0;
  options.groups = 2;  // which a profile has not
  options.batching = {16, 4, 4};
  absl::StatusOr<std::unique_ptr<EngineRunner>> runner =
      EngineRunner::Load(**checkpoint, options, pool, workload);
  ASSERT_TRUE(runner.ok()) << runner.status();
  const absl::StatusOr<EngineRunResult> before = (*runner)->Run(workload);
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_EQ(before->decode_times.laps(StepTimer::kFirstStep, StepTimer::kHead), 0);

  const absl::StatusOr<EngineRunner::ProfiledTimes> times = (*runner)->Profile(workload);
  ASSERT_TRUE(times.ok()) << times.status();
  const int64_t layers = config.block.num_layers;
  // Nine blocks in one step; of four rounds three append.
  EXPECT_EQ(times->prefill.laps(StepTimer::kBlockStep, StepTimer::kAttention), layers);
  EXPECT_EQ(times->prefill.laps(StepTimer::kFirstStep, StepTimer::kAttention), 0);
  EXPECT_EQ(times->decode.laps(StepTimer::kBlockStep, StepTimer::kAttention), 3 * layers);
  EXPECT_EQ(times->decode.laps(StepTimer::kFirstStep, StepTimer::kHead), 4);

  const absl::StatusOr<EngineRunResult> after = (*runner)->Run(workload);
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(after->output_hash, before->output_hash);
  EXPECT_EQ(after->decode_times.laps(StepTimer::kFirstStep, StepTimer::kHead), 0);
}

TEST(EngineRun, LaunchesEarlyWhereItIsToldTo) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open("tests/golden/concat_l4");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ThreadPool pool(1);
  const Workload workload{5, 8, 2};
  uint64_t hashes[2];
  for (const bool early : {false, true}) {
    EngineRunOptions options;
    options.arithmetic = Arithmetic::kCudaF32;
    options.cuda_device = 0;
    options.early_launch = early;
    options.batching = {8, 2, 2};
    const cuda::emulation::LaunchCount launches;
    absl::StatusOr<std::unique_ptr<EngineRunner>> runner =
        EngineRunner::Load(**checkpoint, options, pool, workload);
    ASSERT_TRUE(runner.ok()) << runner.status();
    const absl::StatusOr<EngineRunResult> result = (*runner)->Run(workload);
    ASSERT_TRUE(result.ok()) << result.status();
    hashes[early] = result->output_hash;
    EXPECT_GT(launches.all(), 0);
    EXPECT_EQ(launches.early(), early ? launches.all() : 0);
  }
  EXPECT_EQ(hashes[0], hashes[1]);
}

TEST(StepTimer, ScalesWhatItWasTold) {
  StepTimer timer;
  timer.Book(StepTimer::kBlockStep, StepTimer::kMatmul, 2);
  timer.Book(StepTimer::kFirstStep, StepTimer::kMatmul, 3);
  timer.Scale(StepTimer::kBlockStep, 1.5);
  EXPECT_EQ(timer.seconds(StepTimer::kBlockStep, StepTimer::kMatmul), 3);
  EXPECT_EQ(timer.seconds(StepTimer::kFirstStep, StepTimer::kMatmul), 3);
  EXPECT_EQ(timer.laps(StepTimer::kBlockStep, StepTimer::kMatmul), 1);
}

}  // namespace
}  // namespace blockserve
