// Steps of both engines take no memory from the heap once they have run for a while.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/cpu_kernels.h"
#include "model/engine_test_util.h"

namespace {

// Of all threads.
std::atomic<int64_t> allocations{0};

void* Allocate(size_t size, size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
  if (memory == nullptr) std::abort();
  return memory;
}

}  // namespace

// The whole program's, the engines' included.
void* operator new(size_t size) { return Allocate(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return Allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace blockserve {
namespace {

constexpr int32_t kSequences = 9;
constexpr int32_t kPageBlocks = 4;
constexpr int32_t kBlocks = 48;

// Some sequences that grow block by block, as a server runs them.
class Sequences {
 public:
  Sequences(TestModel& model, const SamplingParameters& sampling) : model_(model) {
    const ModelConfig& config = model.config();
    pages_each_ = (kBlocks + kPageBlocks - 1) / kPageBlocks;
    pages_.resize(kSequences * pages_each_);
    std::iota(pages_.begin(), pages_.end(), 0);
    contexts_.resize(kSequences * config.block.hidden_size, 0.25f);
    rows_.resize(kSequences);
    results_.resize(kSequences);
    chunks_.resize(kSequences);
    for (TokenRow& row : rows_) {
      row.limit = config.block_length;
      row.sampling = &sampling;
    }
  }

  // A block of every sequence.
  absl::Status Step() {
    const int64_t width = model_.config().block.hidden_size;
    for (int32_t s = 0; s < kSequences; ++s) {
      rows_[s].context = absl::MakeConstSpan(contexts_).subspan(s * width, width);
      rows_[s].seed = s;
      rows_[s].position = int64_t{block_} * model_.config().block_length;
    }
    model_.token().Decode(rows_, absl::MakeSpan(results_));
    for (int32_t s = 0; s < kSequences; ++s) {
      if (!results_[s].status.ok()) return results_[s].status;
      chunks_[s].tokens = results_[s].tokens;
      chunks_[s].first_block = block_;
      chunks_[s].first_context = block_;
      chunks_[s].pages = absl::MakeConstSpan(pages_).subspan(s * pages_each_, pages_each_);
    }
    ++block_;
    return model_.block().Step(chunks_, absl::MakeSpan(contexts_));
  }

 private:
  TestModel& model_;
  int32_t pages_each_ = 0;
  int32_t block_ = 0;
  std::vector<int32_t> pages_;
  std::vector<float> contexts_;
  std::vector<TokenRow> rows_;
  std::vector<TokenRowResult> results_;
  std::vector<BlockChunk> chunks_;
};

class SteadyState : public testing::TestWithParam<Arithmetic> {};

TEST_P(SteadyState, StepsAllocateNothing) {
  if (GetParam() == Arithmetic::kBf16Dot &&
      GetCpuKernels(SupportedKernelTargets().front()).bf16dot_matmul == nullptr) {
    GTEST_SKIP() << "no AVX512-BF16";
  }
  for (const std::string folder : {"concat_l4", "projection_layer_f16", "summation"}) {
    TestModelOptions options;
    options.arithmetic = GetParam();
    options.num_threads = 2;
    options.page_blocks = kPageBlocks;
    options.num_pages = kSequences * kBlocks / kPageBlocks;
    absl::StatusOr<std::unique_ptr<TestModel>> model =
        TestModel::Load("tests/golden/" + folder, options);
    ASSERT_TRUE(model.ok()) << model.status();
    for (const SamplingParameters& sampling :
         {SamplingParameters{.temperature = 0}, SamplingParameters{.temperature = 1},
          SamplingParameters{.temperature = 0.8f, .top_k = 40, .top_p = 0.9f}}) {
      SCOPED_TRACE(testing::Message() << folder << ", temperature " << sampling.temperature);
      // A thread of the pool gets its scratch with its first task, which on a busy machine comes
      // late: some run of the many has to be without any.
      int64_t allocated = 0;
      absl::Status status;
      for (int attempt = 0; attempt < 20; ++attempt) {
        Sequences run(**model, sampling);
        // Scratch that grows with the context doubles: what is there after 32 blocks lasts for 48.
        for (int i = 0; i < 32; ++i) ASSERT_TRUE(run.Step().ok());
        const int64_t before = allocations.load();
        for (int i = 32; i < kBlocks && status.ok(); ++i) status = run.Step();
        allocated = allocations.load() - before;
        if (allocated == 0) break;
      }
      EXPECT_EQ(allocated, 0);
      EXPECT_TRUE(status.ok()) << status;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Arithmetics, SteadyState,
                         testing::Values(Arithmetic::kF32, Arithmetic::kBf16, Arithmetic::kBf16Dot,
                                         Arithmetic::kInt8),
                         [](const testing::TestParamInfo<Arithmetic>& info) {
                           return std::string(ArithmeticName(info.param));
                         });

}  // namespace
}  // namespace blockserve
