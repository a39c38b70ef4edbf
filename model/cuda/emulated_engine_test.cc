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
#include "model/cuda/memory_plan.h"
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

int64_t FreeBytes() { return cuda::GetDeviceInfo(0)->free_bytes; }
int64_t Allocated(const MemoryPlan& plan) { return plan.total() - plan.graphs; }

TEST(CudaEngines, TakeTheMemoryThatTheyPlan) {
  struct Case {
    const char* model;
    int32_t rows;
    int32_t lanes;  // batches in flight
  };
  ThreadPool pool(1);
  for (const auto& [name, rows, lanes] : {Case{"concat_l4", 130, 2},
                                          {"projection_layer_f16", 3, 1},
                                          {"summation", 3, 1},
                                          {"widths_differ_l8", 3, 1},
                                          {"vanilla", 3, 1}}) {
    const std::unique_ptr<Checkpoint> model = Open(name);
    ASSERT_NE(model, nullptr);
    for (const Arithmetic arithmetic : {Arithmetic::kCudaF32, Arithmetic::kCudaBf16}) {
      SCOPED_TRACE(testing::Message() << name << ", " << ArithmeticName(arithmetic));
      EngineOptions options;
      options.arithmetic = arithmetic;
      options.cuda_device = 0;
      options.pool = &pool;
      options.max_rows = rows;
      const cuda::ElementType type =
          StoresBf16(arithmetic) ? cuda::ElementType::kBf16 : cuda::ElementType::kF32;
      const int32_t lane_rows = lanes == 1 ? rows : 128;  // whole tiles of rows
      const int64_t before = FreeBytes();
      const absl::StatusOr<std::unique_ptr<TokenEngine>> token = LoadTokenEngine(*model, options);
      ASSERT_TRUE(token.ok()) << token.status();
      const int64_t between = FreeBytes();
      const absl::StatusOr<std::unique_ptr<BlockEngine>> block = LoadBlockEngine(*model, options);
      ASSERT_TRUE(block.ok()) << block.status();
      EXPECT_EQ(before - between,
                Allocated(PlanTokenEngine(model->config(), type, lanes, lane_rows, lane_rows, 0)));
      EXPECT_EQ(between - FreeBytes(), Allocated(PlanBlockEngine(model->config(), type, rows, 0)));
    }
  }
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

TEST(CudaEngines, OtherProductsRunUnderNamesOfTheirOwn) {
  for (const auto& [arithmetic, name] : {std::pair{Arithmetic::kCudaBf16Own, "cuda-bf16-own-"},
                                         {Arithmetic::kCudaBf16Fast, "cuda-bf16-fast-"}}) {
    TestModelOptions options;
    options.arithmetic = arithmetic;
    absl::StatusOr<std::unique_ptr<TestModel>> model =
        TestModel::Load("tests/golden/concat_l4", options);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_THAT(*ProbeNumericId((*model)->token()), testing::StartsWith(name));
    EXPECT_THAT(*ProbeNumericId((*model)->block()), testing::StartsWith(name));
    EXPECT_EQ(IsBatchInvariant((*model)->token().arithmetic()),
              arithmetic == Arithmetic::kCudaBf16Own);
  }
}

// Kernels of both engines, whether captured or not.
TEST(CudaEngines, LaunchKernelsEarlyWhereTheyAreToldTo) {
  for (const bool early : {false, true}) {
    TestModelOptions options;
    options.arithmetic = Arithmetic::kCudaF32;
    options.early_launch = early;
    const cuda::emulation::LaunchCount launches;
    const std::unique_ptr<TestModel> model = LoadGolden("concat_l4", options);
    ASSERT_NE(model, nullptr);
    EXPECT_GT(launches.all(), 0);
    EXPECT_EQ(launches.early(), early ? launches.all() : 0);
    const int64_t loading = launches.all();
    const int32_t length = model->config().block_length;
    ASSERT_TRUE(model->Prefill(std::vector<int32_t>(3 * length, 1), 3).ok());
    EXPECT_GT(launches.all(), loading);
    EXPECT_EQ(launches.early(), early ? launches.all() : 0);
  }
}

EngineOptions TimedBy(StepTimer& timer, ThreadPool& pool) {
  EngineOptions options;
  options.arithmetic = Arithmetic::kCudaBf16;
  options.cuda_device = 0;
  options.pool = &pool;
  options.timer = &timer;
  return options;
}

TEST(CudaEngines, AProfiledBlockIsTheSameBlockAndTellsEveryKernelsPart) {
  const std::unique_ptr<Checkpoint> model = Open("concat_l4");
  ASSERT_NE(model, nullptr);
  ThreadPool pool(1);
  StepTimer timer;
  const EngineOptions options = TimedBy(timer, pool);
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
  EXPECT_EQ(timer.laps(StepTimer::kLaterSteps, StepTimer::kMatmul), 0);
  timer.SetProfiling(true);
  TokenRowResult profiled;
  (*token)->Decode({&row, 1}, {&profiled, 1});
  EXPECT_EQ(plain.tokens, profiled.tokens);
  EXPECT_EQ(plain.logprobs, profiled.logprobs);
  // The emulated device has no time, but what has one on another is told.
  const auto expect_of_one_block = [&](int64_t blocks) {
    const int64_t layers = model->config().token.num_layers;
    const int64_t later = model->config().block_length - 1;
    EXPECT_EQ(timer.laps(StepTimer::kExpansion, StepTimer::kMatmul), blocks);
    for (const auto& [part, steps] :
         {std::pair{StepTimer::kFirstStep, int64_t{1}}, {StepTimer::kLaterSteps, later}}) {
      EXPECT_EQ(timer.laps(part, StepTimer::kMatmul), blocks * steps * layers * 4);
      EXPECT_EQ(timer.laps(part, StepTimer::kAttention), blocks * steps * layers);
      // Embedding, a norm and GELU a layer, the last norm.
      EXPECT_EQ(timer.laps(part, StepTimer::kRows), blocks * steps * (1 + layers * 2 + 1));
      EXPECT_EQ(timer.laps(part, StepTimer::kHead), blocks * steps);
      EXPECT_EQ(timer.laps(part, StepTimer::kSampling), blocks * steps);
    }
  };
  expect_of_one_block(1);
  // Once more, with the events that are there.
  (*token)->Decode({&row, 1}, {&profiled, 1});
  EXPECT_EQ(plain.logprobs, profiled.logprobs);
  expect_of_one_block(2);
  EXPECT_EQ(timer.laps(StepTimer::kBlockStep, StepTimer::kMatmul), 0);
}

TEST(CudaEngines, AProfiledStepIsTheSameStepAndTellsItsParts) {
  const std::unique_ptr<Checkpoint> model = Open("concat_l4");
  ASSERT_NE(model, nullptr);
  ThreadPool pool(1);
  StepTimer timer;
  const EngineOptions options = TimedBy(timer, pool);
  absl::StatusOr<std::unique_ptr<BlockEngine>> block = LoadBlockEngine(*model, options);
  ASSERT_TRUE(block.ok()) << block.status();
  ASSERT_TRUE((*block)->AllocateKv(4, 16).ok());
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7, 8};
  const std::vector<int32_t> pages = {0};
  BlockChunk chunk;
  chunk.tokens = tokens;
  chunk.pages = pages;
  chunk.first_context = 1;
  std::vector<float> plain(model->config().block.hidden_size), profiled(plain.size());
  ASSERT_TRUE((*block)->Step({&chunk, 1}, absl::MakeSpan(plain)).ok());
  timer.SetProfiling(true);
  ASSERT_TRUE((*block)->Step({&chunk, 1}, absl::MakeSpan(profiled)).ok());
  EXPECT_EQ(plain, profiled);
  const int64_t layers = model->config().block.num_layers;
  EXPECT_EQ(timer.laps(StepTimer::kBlockStep, StepTimer::kMatmul), layers * 4);
  EXPECT_EQ(timer.laps(StepTimer::kBlockStep, StepTimer::kAttention), layers);
}

TEST(CudaEngines, SequencesLongerThanTheFirstRotaryTableGoOn) {
  TestModelOptions options;
  options.num_pages = 4;
  options.page_blocks = 8400;  // 33,600 positions
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
  chunk.first_block = 32'767;
  ASSERT_TRUE(block.Step({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  const std::vector<float> before = contexts;
  chunk.first_block = 33'000;
  ASSERT_TRUE(block.Step({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  chunk.first_block = 32'767;
  ASSERT_TRUE(block.Step({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  EXPECT_EQ(before, contexts);
}

// Rows with contexts of their own, and their blocks as a device that is well writes them.
struct Blocks {
  Blocks(TokenEngine& engine, int count) : contexts(count), rows(count), expected(count) {
    for (int i = 0; i < count; ++i) {
      contexts[i].assign(engine.config().block.hidden_size, 0.01f * static_cast<float>(i + 1));
      rows[i].context = contexts[i];
      rows[i].limit = engine.config().block_length;
      rows[i].seed = 1000 + static_cast<uint64_t>(i);
      rows[i].sampling = &sampling;
    }
    engine.Decode(rows, absl::MakeSpan(expected));
    for (const TokenRowResult& result : expected) EXPECT_TRUE(result.status.ok());
  }

  // Every row has its block or, where `may_fail`, is UNAVAILABLE; returns how many are.
  int Decode(TokenEngine& engine, bool may_fail) const {
    std::vector<TokenRowResult> results(rows.size());
    engine.Decode(rows, absl::MakeSpan(results));
    int failed = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (may_fail && absl::IsUnavailable(results[i].status)) {
        EXPECT_THAT(std::string(results[i].status.message()),
                    AllOf(HasSubstr("cuda:0 failed: "), HasSubstr("emulated failure")));
        ++failed;
        continue;
      }
      EXPECT_TRUE(results[i].status.ok()) << results[i].status;
      EXPECT_EQ(results[i].tokens, expected[i].tokens) << "row " << i;
      EXPECT_EQ(results[i].logprobs, expected[i].logprobs) << "row " << i;
    }
    return failed;
  }

  SamplingParameters sampling;
  std::vector<std::vector<float>> contexts;
  std::vector<TokenRow> rows;
  std::vector<TokenRowResult> expected;
};

// Two Starts before the first Finish: what the second writes while the first is under way harms
// neither, also where one of them takes more than a lane.
TEST(CudaEngines, BatchesUnderWayTogetherAreThoseOneAfterAnother) {
  TestModelOptions options;
  options.max_rows = 128;
  absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load("tests/golden/concat_l4", options);
  ASSERT_TRUE(model.ok()) << model.status();
  TokenEngine& engine = (*model)->token();
  ASSERT_EQ(engine.max_in_flight(), 2);
  ASSERT_EQ(engine.batch_rows(), 64);
  const Blocks blocks(engine, 150);
  const absl::Span<const TokenRow> rows = blocks.rows;
  for (const std::vector<size_t>& batches :
       {std::vector<size_t>{64, 64, 22}, {1, 2, 64}, {70, 80}, {10, 130, 5}}) {
    std::vector<TokenRowResult> results(rows.size());
    std::vector<size_t> begins = {0};
    for (const size_t batch : batches) begins.push_back(begins.back() + batch);
    size_t finished = 0;
    const auto finish = [&] {
      engine.Finish();
      for (size_t i = begins[finished]; i < begins[finished + 1]; ++i) {
        EXPECT_TRUE(results[i].status.ok()) << results[i].status;
        EXPECT_EQ(results[i].tokens, blocks.expected[i].tokens) << "row " << i;
        EXPECT_EQ(results[i].logprobs, blocks.expected[i].logprobs) << "row " << i;
      }
      ++finished;
    };
    for (size_t b = 0; b < batches.size(); ++b) {
      if (b - finished == 2) finish();
      engine.Start(rows.subspan(begins[b], batches[b]),
                   absl::MakeSpan(results).subspan(begins[b], batches[b]));
    }
    while (finished < batches.size()) finish();
  }
}

// As above, of the block engine: later steps read what earlier ones write, and pages are copied
// between them. One of the steps takes three batches.
TEST(CudaEngines, StepsUnderWayTogetherAreThoseOneAfterAnother) {
  TestModelOptions options;
  options.max_rows = 8;
  options.num_pages = 16;
  options.page_blocks = 4;
  absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load("tests/golden/concat_l4", options);
  ASSERT_TRUE(model.ok()) << model.status();
  BlockEngine& engine = (*model)->block();
  ASSERT_EQ(engine.max_in_flight(), 2);
  const auto width = static_cast<size_t>(engine.config().block.hidden_size);
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 24 * 4; ++i) tokens.push_back((i * 7 + i / 5) % 100);
  struct Part {
    int64_t first_block;
    int64_t blocks;
    std::vector<int32_t> pages;
  };
  const std::vector<std::vector<Part>> steps = {
      {{0, 11, {0, 1, 2}}},                                          // a prompt
      {{11, 9, {0, 1, 2, 3, 4}}, {0, 10, {8, 9, 10}}},               // its rest, and another one
      {{20, 1, {0, 1, 2, 3, 4, 5}}, {10, 1, {8, 9, 10}}},            // decoding
      {{19, 1, {0, 1, 2, 3, 6}}},                                    // in a copied page
      {{21, 1, {0, 1, 2, 3, 4, 5}}, {20, 1, {0, 1, 2, 3, 6, 11}}}};  // and on from both
  const auto run = [&](size_t in_flight) {
    std::vector<std::vector<float>> contexts(steps.size());
    size_t under_way = 0;
    for (size_t s = 0; s < steps.size(); ++s) {
      if (under_way == in_flight) {
        EXPECT_TRUE(engine.Finish().ok());
        --under_way;
      }
      if (s == 3) engine.CopyPage(4, 6, 3);
      // Of the caller, who has other uses for them as soon as the step is begun.
      std::vector<int32_t> own_tokens = tokens;
      std::vector<Part> parts = steps[s];
      std::vector<BlockChunk> chunks;
      size_t rows = 0;
      for (const Part& part : parts) {
        BlockChunk& chunk = chunks.emplace_back();
        chunk.tokens = absl::MakeConstSpan(own_tokens)
                           .subspan(static_cast<size_t>(part.first_block) * 4,
                                    static_cast<size_t>(part.blocks) * 4);
        chunk.first_block = part.first_block;
        chunk.pages = part.pages;
        rows += static_cast<size_t>(part.blocks);
      }
      contexts[s].resize(rows * width);
      EXPECT_TRUE(engine.Start(chunks, absl::MakeSpan(contexts[s])).ok());
      ++under_way;
      std::fill(own_tokens.begin(), own_tokens.end(), -1);
      for (Part& part : parts) std::fill(part.pages.begin(), part.pages.end(), -1);
    }
    for (; under_way > 0; --under_way) EXPECT_TRUE(engine.Finish().ok());
    return contexts;
  };
  const std::vector<std::vector<float>> expected = run(1);
  EXPECT_EQ(run(2), expected);
  const auto row = [&](size_t step, size_t index) {
    return std::vector<float>(expected[step].begin() + index * width,
                              expected[step].begin() + (index + 1) * width);
  };
  EXPECT_EQ(row(4, 1), row(2, 0)) << "the copied page has what the page has";
  EXPECT_EQ(row(1, 9), row(0, 0)) << "the other prompt begins alike";
}

// Freed memory does not wait for who uses it.
TEST(CudaEngines, WaitForTheirDeviceBeforeTheyGo) {
  TestModelOptions options;
  options.max_rows = 128;
  std::unique_ptr<TestModel> model = LoadGolden("concat_l4", options);
  ASSERT_NE(model, nullptr);
  const Blocks blocks(model->token(), 128);
  std::vector<TokenRowResult> results(blocks.rows.size());
  model->token().Start(blocks.rows, absl::MakeSpan(results));
  const std::vector<int32_t> tokens(3 * 4, 1);
  const std::vector<int32_t> pages = {0};
  std::vector<float> contexts(3 * model->config().block.hidden_size);
  BlockChunk chunk;
  chunk.tokens = tokens;
  chunk.pages = pages;
  ASSERT_TRUE(model->block().Start({&chunk, 1}, absl::MakeSpan(contexts)).ok());
  model.reset();
}

TEST(CudaFailures, ACallThatFailsOnceFailsItsRowsAloneWhicheverItIs) {
  TestModelOptions options;
  options.max_rows = 128;  // two batches in flight
  absl::StatusOr<std::unique_ptr<TestModel>> model =
      TestModel::Load("tests/golden/concat_l4", options);
  ASSERT_TRUE(model.ok()) << model.status();
  TokenEngine& engine = (*model)->token();
  Blocks blocks(engine, 65);
  std::vector<float> logits(engine.config().block_length * engine.config().vocab_size);
  // By graphs; and step by step, which is as many calls again as there are kernels.
  for (const bool with_logits : {false, true}) {
    if (with_logits) blocks.rows.back().logits = absl::MakeSpan(logits);
    int64_t calls = 0;
    for (int64_t call = 0;; call += call < 16 ? 1 : 41) {
      int failed;
      {
        const cuda::emulation::CallFailures failure(call, 1);
        failed = blocks.Decode(engine, /*may_fail=*/true);
        if (!failure.any()) break;
      }
      EXPECT_TRUE(failed == 1 || failed == 64) << failed << " rows by call " << call;
      EXPECT_TRUE(engine.Lost().ok()) << engine.Lost();
      EXPECT_EQ(blocks.Decode(engine, /*may_fail=*/false), 0) << "after call " << call;
      calls = call;
    }
    EXPECT_GT(calls, with_logits ? 50 : 5);
  }
}

TEST(CudaFailures, ATokenEngineWhoseDeviceIsLostSaysSo) {
  absl::StatusOr<std::unique_ptr<TestModel>> model = TestModel::Load("tests/golden/concat_l4", {});
  ASSERT_TRUE(model.ok()) << model.status();
  TokenEngine& engine = (*model)->token();
  const Blocks blocks(engine, 3);
  EXPECT_TRUE(engine.Lost().ok());
  const cuda::emulation::CallFailures failure(2);
  EXPECT_EQ(blocks.Decode(engine, /*may_fail=*/true), 3);
  EXPECT_THAT(std::string(engine.Lost().message()), HasSubstr("cuda:0 is lost: emulated"));
  EXPECT_EQ(blocks.Decode(engine, /*may_fail=*/true), 3);
  // Nor is what was not computed taken for what the device computes.
  EXPECT_EQ(ProbeNumericId(engine).status().code(), absl::StatusCode::kUnavailable);
}

// A prompt of four pages, of which the last step grows the rotary tables, so that graphs are
// captured again.
class CudaBlockFailures : public testing::Test {
 protected:
  absl::Status Load() {
    TestModelOptions options;
    options.max_rows = 2;
    options.num_pages = 5;
    options.page_blocks = 8400;
    absl::StatusOr<std::unique_ptr<TestModel>> model =
        TestModel::Load("tests/golden/concat_l4", options);
    if (!model.ok()) return model.status();
    model_ = *std::move(model);
    return absl::OkStatus();
  }
  BlockEngine& engine() { return model_->block(); }
  absl::Status Start(int64_t block, absl::Span<const int32_t> pages, std::vector<float>& contexts) {
    contexts.assign(engine().config().block.hidden_size, 0.0f);
    BlockChunk chunk;
    chunk.tokens = tokens_;
    chunk.pages = pages;
    chunk.first_block = block;
    return engine().Start({&chunk, 1}, absl::MakeSpan(contexts));
  }
  absl::Status Step(int64_t block, std::vector<float>& contexts) {
    const absl::Status status = Start(block, pages_, contexts);
    return status.ok() ? engine().Finish() : status;
  }
  static constexpr int64_t kLater = 33000;  // beyond the first rotary tables

  const std::vector<int32_t> tokens_ = {1, 2, 3, 4};
  const std::vector<int32_t> pages_ = {0, 1, 2, 3};
  std::unique_ptr<TestModel> model_;
};

TEST_F(CudaBlockFailures, ACallThatFailsOnceFailsItsStepAloneWhicheverItIs) {
  ASSERT_TRUE(Load().ok());
  std::vector<float> expected, later, contexts;
  ASSERT_TRUE(Step(3, expected).ok());
  ASSERT_TRUE(Step(kLater, later).ok());
  int failures = 0;
  for (int64_t call = 0;; call += call < 8 ? 1 : 7) {
    ASSERT_TRUE(Load().ok());
    {
      const cuda::emulation::CallFailures failure(call, 1);
      const absl::Status status = Step(kLater, contexts);
      if (!failure.any()) break;
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status << " by call " << call;
    }
    ++failures;
    EXPECT_TRUE(engine().Lost().ok()) << engine().Lost();
    // Smaller than what failed to grow, then as large.
    ASSERT_TRUE(Step(3, contexts).ok()) << "after call " << call;
    EXPECT_EQ(contexts, expected) << "after call " << call;
    ASSERT_TRUE(Step(kLater, contexts).ok()) << "after call " << call;
    EXPECT_EQ(contexts, later) << "after call " << call;
  }
  EXPECT_GT(failures, 15);
}

TEST_F(CudaBlockFailures, ACallThatFailsOnceFailsOneOfTheStepsUnderWay) {
  ASSERT_TRUE(Load().ok());
  std::vector<float> expected, first, second;
  ASSERT_TRUE(Step(3, expected).ok());
  int failures[2] = {0, 0};
  for (int64_t call = 0;; ++call) {
    {
      const cuda::emulation::CallFailures failure(call, 1);
      // What Start refuses was not begun.
      const absl::Status starts[2] = {Start(3, {0}, first), Start(3, {4}, second)};
      int failed = 0;
      for (const int step : {0, 1}) {
        const absl::Status status = starts[step].ok() ? engine().Finish() : starts[step];
        if (status.ok()) {
          EXPECT_EQ(step == 0 ? first : second, expected) << "by call " << call;
          continue;
        }
        EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status << " by call " << call;
        ++failures[step];
        ++failed;
      }
      if (!failure.any()) break;
      EXPECT_EQ(failed, 1) << "by call " << call;
    }
    EXPECT_TRUE(engine().Lost().ok()) << engine().Lost();
    ASSERT_TRUE(Step(3, first).ok()) << "after call " << call;
    EXPECT_EQ(first, expected) << "after call " << call;
  }
  EXPECT_GT(failures[0], 3);
  EXPECT_GT(failures[1], 3);
}

TEST_F(CudaBlockFailures, ALostDeviceAndAPageThatWasNotCopiedAreSaid) {
  std::vector<float> contexts;
  ASSERT_TRUE(Load().ok());
  EXPECT_TRUE(engine().Lost().ok());
  {
    const cuda::emulation::CallFailures failure(0);
    EXPECT_EQ(Step(3, contexts).code(), absl::StatusCode::kUnavailable);
  }
  EXPECT_THAT(std::string(engine().Lost().message()), HasSubstr(" is lost: emulated loss"));
  EXPECT_EQ(Step(3, contexts), engine().Lost());

  ASSERT_TRUE(Load().ok());
  {
    const cuda::emulation::CallFailures failure(1, 1);
    engine().CopyPage(0, 4, 1);
  }
  EXPECT_THAT(std::string(engine().Lost().message()), HasSubstr("a page was not copied: emulated"));
  EXPECT_EQ(Step(3, contexts), engine().Lost());
}

}  // namespace
}  // namespace blockserve
