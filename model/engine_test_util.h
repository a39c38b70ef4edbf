// Drives the two engines without services, for tests: the loop of generation and of scoring.
#ifndef BLOCKSERVE_MODEL_ENGINE_TEST_UTIL_H_
#define BLOCKSERVE_MODEL_ENGINE_TEST_UTIL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/thread_pool.h"
#include "gtest/gtest.h"
#include "model/alignment.h"
#include "model/checkpoint.h"
#include "model/engine.h"

namespace blockserve {

// Which engines a test program runs: the CPU's, or, with BLOCKSERVE_TEST_CUDA, those of the first
// CUDA device (or of its emulation, whichever it is linked with).
#ifdef BLOCKSERVE_TEST_CUDA
inline constexpr Arithmetic kTestedF32 = Arithmetic::kCudaF32;
inline constexpr Arithmetic kTestedBf16 = Arithmetic::kCudaBf16;
#ifdef BLOCKSERVE_CUDA_EMULATED  // where tensor cores' products take minutes
inline constexpr Arithmetic kTestedArithmetics[] = {Arithmetic::kCudaF32, Arithmetic::kCudaBf16};
#else
inline constexpr Arithmetic kTestedArithmetics[] = {Arithmetic::kCudaF32, Arithmetic::kCudaBf16,
                                                    Arithmetic::kCudaBf16Own};
#endif
#else
inline constexpr Arithmetic kTestedF32 = Arithmetic::kF32;
inline constexpr Arithmetic kTestedBf16 = Arithmetic::kBf16;
inline constexpr Arithmetic kTestedArithmetics[] = {Arithmetic::kF32, Arithmetic::kBf16,
                                                    Arithmetic::kBf16Dot, Arithmetic::kInt8};
#endif

// Why this machine cannot run an arithmetic; empty where it can.
std::string WhyNotHere(Arithmetic arithmetic);
// "cuda_f32": an arithmetic in the name of a test.
std::string TestName(Arithmetic arithmetic);

// Skips, with the reason, where the machine has no device for the tested engines.
class EngineTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNotHere(kTestedF32); !why.empty()) GTEST_SKIP() << why;
  }
};

struct TestModelOptions {
  Arithmetic arithmetic = kTestedF32;
  int num_threads = 1;
  int32_t max_rows = 64;
  int64_t num_pages = 64;
  int32_t page_blocks = 16;
  std::optional<KernelTarget> kernel_target;
  bool early_launch = false;
};

struct Generated {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<float> prompt_contexts;  // [blocks of the prompt, D]
  std::vector<float> logits;           // [first tokens, V], as many as were asked for, whole blocks
};

// Both engines of one model. One sequence at a time, on pages 0, 1, ….
class TestModel {
 public:
  static absl::StatusOr<std::unique_ptr<TestModel>> Load(const std::string& directory,
                                                         const TestModelOptions& options);

  const ModelConfig& config() const { return checkpoint_->config(); }
  BlockEngine& block() { return *block_; }
  TokenEngine& token() { return *token_; }

  // Generates `num_tokens` without stopping; logits of the first `logit_blocks` blocks are kept.
  absl::StatusOr<Generated> Generate(Alignment alignment, absl::Span<const int32_t> prompt,
                                     int32_t num_tokens, const SamplingParameters& sampling,
                                     int32_t logit_blocks = 0);
  // Log-probabilities of `continuation` after `prompt`.
  absl::StatusOr<std::vector<float>> Score(Alignment alignment, absl::Span<const int32_t> prompt,
                                           absl::Span<const int32_t> continuation);

  // Contexts of all blocks of `block_tokens`, from position 0, in chunks of `chunk_blocks`.
  absl::StatusOr<std::vector<float>> Prefill(absl::Span<const int32_t> block_tokens,
                                             int64_t chunk_blocks);

 private:
  TestModel() = default;
  // Runs one block and returns its context row.
  absl::StatusOr<std::vector<float>> StepBlock(int64_t position, absl::Span<const int32_t> tokens);

  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<BlockEngine> block_;
  std::unique_ptr<TokenEngine> token_;
  std::vector<int32_t> pages_;
};

// The engines of tests/golden/`folder`; null, and a failure of the test, where they cannot be had.
std::unique_ptr<TestModel> LoadGolden(const std::string& folder, const TestModelOptions& options);

std::vector<int32_t> RandomTokens(std::mt19937& random, const ModelConfig& config, int64_t count);

bool SameBits(absl::Span<const float> a, absl::Span<const float> b);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_ENGINE_TEST_UTIL_H_
