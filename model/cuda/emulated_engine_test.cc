// What the CUDA engines do beside computing: choice of the device, memory that does not suffice,
// lists that are too long. On the emulated device, whose size a test can set.
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cuda/emulation/emulator.h"
#include "model/cuda/cuda_engines.h"
#include "model/device.h"
#include "model/engine_test_util.h"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::unique_ptr<Checkpoint> Open(const std::string& name) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open("tests/golden/" + name);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

TEST(CudaDevice, AutoTakesItAndKeepsWhatTheTensorsHold) {
  const std::unique_ptr<Checkpoint> model = Open("concat_l4");
  ASSERT_NE(model, nullptr);
  const absl::StatusOr<EngineChoice> choice = ChooseEngine("auto", "auto", *model);
  ASSERT_TRUE(choice.ok()) << choice.status();
  EXPECT_EQ(choice->cuda_device, 0);
  EXPECT_EQ(choice->arithmetic, Arithmetic::kCudaF32);
  EXPECT_EQ(ChooseEngine("auto", "f32", *model)->cuda_device, -1);
  EXPECT_EQ(ChooseEngine("cpu", "auto", *model)->arithmetic, Arithmetic::kF32);
  EXPECT_EQ(ChooseEngine("auto", "cuda-bf16", *model)->cuda_device, 0);
  EXPECT_EQ(ChooseEngine("cuda:0", "cuda-bf16-fast", *model)->arithmetic,
            Arithmetic::kCudaBf16Fast);
}

TEST(CudaDevice, OneThatIsNotThereIsNamed) {
  const std::unique_ptr<Checkpoint> model = Open("concat_l4");
  ASSERT_NE(model, nullptr);
  EXPECT_THAT(std::string(ChooseEngine("cuda:7", "auto", *model).status().message()),
              AllOf(HasSubstr("--device cuda:7: "), Not(HasSubstr("\n"))));
}

TEST(CudaEngines, SayWhatTheyNeedWhereMemoryDoesNotSuffice) {
  const std::unique_ptr<Checkpoint> model = Open("concat_l4");
  ASSERT_NE(model, nullptr);
  ThreadPool pool(1);
  EngineOptions options;
  options.arithmetic = Arithmetic::kCudaF32;
  options.cuda_device = 0;
  options.pool = &pool;
  {
    const cuda::emulation::DeviceMemoryLimit limit(int64_t{10} << 20);
    for (const absl::Status& status :
         {LoadTokenEngine(*model, options).status(), LoadBlockEngine(*model, options).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr("cuda:0 ("), HasSubstr(" free; "), HasSubstr(" needs "),
                        HasSubstr("of weights"), Not(HasSubstr("\n"))));
    }
  }
  absl::StatusOr<std::unique_ptr<BlockEngine>> block = LoadBlockEngine(*model, options);
  ASSERT_TRUE(block.ok()) << block.status();
  const cuda::emulation::DeviceMemoryLimit limit(int64_t{512} << 20);
  const absl::Status status = (*block)->AllocateKv(1'000'000, 16);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("cuda:0 ("), HasSubstr("KV of 1000000 pages of 16 blocks needs")));
  // What was refused leaves the engine as it was.
  ASSERT_TRUE((*block)->AllocateKv(8, 16).ok());
  EXPECT_GT((*block)->DefaultKvBytes(), 0);
}

TEST(CudaEngines, ARowWithListsBeyondTheDevicesRoomIsRefusedAlone) {
  absl::StatusOr<std::unique_ptr<TestModel>> model = TestModel::Load("tests/golden/concat_l4", {});
  ASSERT_TRUE(model.ok()) << model.status();
  const ModelConfig& config = (*model)->config();
  const std::vector<float> context(config.block.hidden_size, 0.5f);
  const std::vector<LogitBias> endless(100'000, LogitBias{1, 0.0f});
  const SamplingParameters sampling;
  std::vector<TokenRow> rows(3);
  for (TokenRow& row : rows) {
    row.context = context;
    row.limit = config.block_length;
    row.sampling = &sampling;
  }
  rows[1].logit_bias = endless;
  std::vector<TokenRowResult> results(3);
  (*model)->token().Decode(rows, absl::MakeSpan(results));
  EXPECT_TRUE(results[0].status.ok()) << results[0].status;
  EXPECT_EQ(results[1].status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(results[1].status.message()), HasSubstr("logit_bias"));
  EXPECT_TRUE(results[2].status.ok()) << results[2].status;
  EXPECT_EQ(results[0].tokens, results[2].tokens);
}

TEST(CudaEngines, FastArithmeticRunsUnderItsOwnName) {
  TestModelOptions options;
  options.arithmetic = Arithmetic::kCudaBf16Fast;
  absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load("tests/golden/concat_l4", options);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT(ProbeNumericId((*model)->token()), testing::StartsWith("cuda-bf16-fast-"));
  EXPECT_THAT(*ProbeNumericId((*model)->block()), testing::StartsWith("cuda-bf16-fast-"));
  EXPECT_FALSE(IsBatchInvariant((*model)->token().arithmetic()));
}

TEST(CudaEngines, AProfiledBlockIsTheSameBlockAndTellsEveryPart) {
  const std::unique_ptr<Checkpoint> model = Open("concat_l4");
  ASSERT_NE(model, nullptr);
  ThreadPool pool(1);
  StepTimer timer;
  EngineOptions options;
  options.arithmetic = Arithmetic::kCudaBf16;
  options.cuda_device = 0;
  options.pool = &pool;
  options.timer = &timer;
  absl::StatusOr<std::unique_ptr<TokenEngine>> token = LoadTokenEngine(*model, options);
  ASSERT_TRUE(token.ok()) << token.status();
  const std::vector<float> context((*token)->config().block.hidden_size, 0.5f);
  const SamplingParameters sampling;
  TokenRow row;
  row.context = context;
  row.limit = (*token)->config().block_length;
  row.sampling = &sampling;
  TokenRowResult plain;
  (*token)->Decode({&row, 1}, {&plain, 1});
  EXPECT_EQ(timer.seconds(StepTimer::kLaterSteps, StepTimer::kMatmul), 0);
  timer.SetProfiling(true);
  TokenRowResult profiled;
  (*token)->Decode({&row, 1}, {&profiled, 1});
  EXPECT_EQ(plain.tokens, profiled.tokens);
  EXPECT_EQ(plain.logprobs, profiled.logprobs);
  EXPECT_GT(timer.seconds(StepTimer::kExpansion, StepTimer::kMatmul), 0);
  for (const StepTimer::Part part : {StepTimer::kFirstStep, StepTimer::kLaterSteps}) {
    for (const StepTimer::Work work : {StepTimer::kMatmul, StepTimer::kAttention, StepTimer::kRows,
                                       StepTimer::kHead, StepTimer::kSampling}) {
      EXPECT_GT(timer.seconds(part, work), 0) << part << " " << work;
    }
  }
}

TEST(CudaEngines, SequencesLongerThanTheFirstRotaryTableGoOn) {
  TestModelOptions options;
  options.num_pages = 4;
  options.page_blocks = 4096;  // 16,384 positions
  absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load("tests/golden/concat_l4", options);
  ASSERT_TRUE(model.ok()) << model.status();
  BlockEngine& block = (*model)->block();
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  const std::vector<int32_t> pages = {0, 1, 2, 3};
  std::vector<float> contexts(block.config().block.hidden_size);
  BlockChunk chunk;
  chunk.tokens = tokens;
  chunk.pages = pages;
  // Positions before it were never written: their keys are zero, which is as good as any.
  chunk.first_block = 8191;
  ASSERT_TRUE(block.Step({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  const std::vector<float> before = contexts;
  chunk.first_block = 16'000;
  ASSERT_TRUE(block.Step({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  chunk.first_block = 8191;
  ASSERT_TRUE(block.Step({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  EXPECT_EQ(before, contexts);
}

}  // namespace
}  // namespace blockserve
