// The engines against the authors' implementation: every quantity of the golden folders, with the
// tolerances of tests/golden/README.md.
#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/worst_error_for_test.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/engine_test_util.h"
#include "model/safetensors.h"
#include "nlohmann/json.hpp"

namespace blockserve {
namespace {

constexpr double kTensorTolerance = 1e-5;   // of the largest magnitude
constexpr double kLogprobTolerance = 5e-5;  // absolute
constexpr double kBf16Tolerance = 3e-2;     // of the largest magnitude
#ifndef BLOCKSERVE_TEST_CUDA
constexpr double kBf16DotTolerance = 4e-2;  // of the largest magnitude
constexpr double kInt8Tolerance = 12e-2;    // of the largest magnitude
#endif

// The folder of a golden model: in the repository, or where the build found the larger ones.
std::string FindFolder(const std::string& name) {
  for (const std::string& root :
       {std::string("tests/golden"), std::string(BLOCKSERVE_GOLDEN_DIR)}) {
    struct stat info;
    const std::string folder = absl::StrCat(root, "/", name);
    if (stat(absl::StrCat(folder, "/expected.json").c_str(), &info) == 0) return folder;
  }
  return "";
}

std::vector<float> Floats(const SafetensorsSet& set, const std::string& name) {
  const TensorView* view = set.Find(name);
  if (view == nullptr || view->dtype != DType::kF32) return {};
  std::vector<float> values(view->data.size() / sizeof(float));
  std::memcpy(values.data(), view->data.data(), view->data.size());
  return values;
}

double LargestMagnitude(absl::Span<const float> values) {
  double largest = 0;
  for (const float value : values)
    largest = std::max(largest, std::abs(static_cast<double>(value)));
  return largest;
}

double LargestError(absl::Span<const float> expected, absl::Span<const float> actual) {
  if (expected.size() != actual.size()) return INFINITY;
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(static_cast<double>(expected[i]) - actual[i]);
    largest = WorstError(largest, error);
  }
  return largest;
}

struct Errors {
  double context = 0;  // of the largest magnitude
  double logits = 0;   // of the largest magnitude
  double logprobs = 0;
};

class Golden : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNotHere(kTestedF32); !why.empty()) GTEST_SKIP() << why;
    folder_ = FindFolder(GetParam());
    if (folder_.empty())
      GTEST_SKIP() << GetParam() << " is neither in tests/golden nor in " << BLOCKSERVE_GOLDEN_DIR;
    std::ifstream file(absl::StrCat(folder_, "/expected.json"));
    cases_ = nlohmann::json::parse(file)["cases"];
    absl::StatusOr<SafetensorsSet> tensors =
        SafetensorsSet::OpenFile(absl::StrCat(folder_, "/expected.safetensors"));
    ASSERT_TRUE(tensors.ok()) << tensors.status();
    tensors_ = *std::move(tensors);
  }

  std::unique_ptr<TestModel> Load(Arithmetic arithmetic) {
    TestModelOptions options;
    options.arithmetic = arithmetic;
    options.num_threads = 2;
    options.early_launch = early_launch_;
    absl::StatusOr<std::unique_ptr<TestModel>> model = TestModel::Load(folder_, options);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? *std::move(model) : nullptr;
  }

  void ExpectTheReferencesNumbers();
  void ExpectNear(Arithmetic arithmetic, double tolerance);

  bool early_launch_ = false;
  std::string folder_;
  nlohmann::json cases_;
  SafetensorsSet tensors_;
};

void Golden::ExpectTheReferencesNumbers() {
  const std::unique_ptr<TestModel> model = Load(kTestedF32);
  ASSERT_NE(model, nullptr);
  SamplingParameters greedy;
  greedy.temperature = 0;
  Errors errors;
  ASSERT_EQ(cases_.size(), 5u);
  for (size_t n = 0; n < cases_.size(); ++n) {
    SCOPED_TRACE(absl::StrCat("case ", n));
    const nlohmann::json& expected = cases_[n];
    const auto prompt = expected["prompt"].get<std::vector<int32_t>>();

    const auto check_logprobs = [&](const std::vector<float>& actual, const std::string& key) {
      const double error = LargestError(expected[key].get<std::vector<float>>(), actual);
      EXPECT_LE(error, kLogprobTolerance) << key;
      errors.logprobs = WorstError(errors.logprobs, error);
    };
    const int32_t length = model->config().block_length;
    const int32_t logit_blocks = length == 1 ? 8 : 2;
    absl::StatusOr<Generated> end =
        model->Generate(Alignment::kEnd, prompt, 64, greedy, logit_blocks);
    ASSERT_TRUE(end.ok()) << end.status();
    EXPECT_EQ(end->tokens, expected["greedy"].get<std::vector<int32_t>>());
    check_logprobs(end->logprobs, "greedy_logprobs");

    const std::vector<float> logits = Floats(tensors_, absl::StrCat("logits.", n));
    ASSERT_FALSE(logits.empty());
    const double logit_error = LargestError(logits, end->logits) / LargestMagnitude(logits);
    EXPECT_LE(logit_error, kTensorTolerance);
    errors.logits = WorstError(errors.logits, logit_error);
    if (model->config().kind != ModelKind::kVanilla) {
      const std::vector<float> context = Floats(tensors_, absl::StrCat("context.", n));
      ASSERT_FALSE(context.empty());
      const double context_error =
          LargestError(context, end->prompt_contexts) / LargestMagnitude(context);
      EXPECT_LE(context_error, kTensorTolerance);
      errors.context = WorstError(errors.context, context_error);

      absl::StatusOr<Generated> start = model->Generate(Alignment::kStart, prompt, 64, greedy);
      ASSERT_TRUE(start.ok()) << start.status();
      EXPECT_EQ(start->tokens, expected["greedy_start"].get<std::vector<int32_t>>());
      check_logprobs(start->logprobs, "greedy_start_logprobs");
      absl::StatusOr<Generated> none = model->Generate(Alignment::kNone, prompt, 64, greedy);
      ASSERT_TRUE(none.ok()) << none.status();
      EXPECT_EQ(none->tokens, expected["greedy_none"].get<std::vector<int32_t>>());
    }

    absl::StatusOr<std::vector<float>> continuation =
        model->Score(Alignment::kEnd, prompt, expected["continuation"].get<std::vector<int32_t>>());
    ASSERT_TRUE(continuation.ok()) << continuation.status();
    check_logprobs(*continuation, "continuation_logprobs");

    // A text scored by itself: all but its first token.
    const absl::Span<const int32_t> text(prompt);
    absl::StatusOr<std::vector<float>> scores =
        model->Score(Alignment::kStart, text.first(1), text.subspan(1));
    ASSERT_TRUE(scores.ok()) << scores.status();
    std::vector<float> text_expected;
    for (const nlohmann::json& value : expected["text_logprobs"]) {
      if (!value.is_null()) text_expected.push_back(value.get<float>());
    }
    EXPECT_EQ(text_expected.size() + 1, prompt.size());
    const double text_error = LargestError(text_expected, *scores);
    EXPECT_LE(text_error, kLogprobTolerance) << "text_logprobs";
    errors.logprobs = WorstError(errors.logprobs, text_error);
  }
  std::printf(
      "[ GOLDEN   ] %s %s: context %.2g, logits %.2g of the largest magnitude, "
      "log-probabilities %.2g\n",
      GetParam().c_str(), std::string(ArithmeticName(kTestedF32)).c_str(), errors.context,
      errors.logits, errors.logprobs);
}

TEST_P(Golden, F32ComputesWhatTheReferenceComputes) { ExpectTheReferencesNumbers(); }

// Logits within a tolerance, and how many greedy tokens agree.
void Golden::ExpectNear(Arithmetic arithmetic, double tolerance) {
  const std::unique_ptr<TestModel> model = Load(arithmetic);
  ASSERT_NE(model, nullptr);
  SamplingParameters greedy;
  greedy.temperature = 0;
  const int64_t vocab = model->config().vocab_size;
  double worst = 0;
  int equal = 0;
  int compared = 0;
  for (size_t n = 0; n < cases_.size(); ++n) {
    SCOPED_TRACE(absl::StrCat("case ", n));
    const auto prompt = cases_[n]["prompt"].get<std::vector<int32_t>>();
    const auto tokens = cases_[n]["greedy"].get<std::vector<int32_t>>();
    const int32_t logit_blocks = model->config().block_length == 1 ? 8 : 2;
    absl::StatusOr<Generated> actual =
        model->Generate(Alignment::kEnd, prompt, 64, greedy, logit_blocks);
    ASSERT_TRUE(actual.ok()) << actual.status();
    const std::vector<float> logits = Floats(tensors_, absl::StrCat("logits.", n));
    ASSERT_EQ(logits.size(), actual->logits.size());
    // Logits are comparable as long as the tokens before them are the same.
    for (size_t i = 0; i * vocab < logits.size(); ++i) {
      const auto expected_row = absl::MakeConstSpan(logits).subspan(i * vocab, vocab);
      const auto actual_row = absl::MakeConstSpan(actual->logits).subspan(i * vocab, vocab);
      const double error = LargestError(expected_row, actual_row) / LargestMagnitude(logits);
      EXPECT_LE(error, tolerance) << "token " << i;
      worst = WorstError(worst, error);
      if (actual->tokens[i] != tokens[i]) break;
    }
    size_t same = 0;
    while (same < tokens.size() && actual->tokens[same] == tokens[same]) ++same;
    equal += static_cast<int>(same);
    compared += static_cast<int>(tokens.size());
  }
  std::printf(
      "[ GOLDEN   ] %s %s: logits %.2g of the largest magnitude; %d of %d greedy tokens "
      "before the first that differs\n",
      GetParam().c_str(), std::string(ArithmeticName(arithmetic)).c_str(), worst, equal, compared);
}

TEST_P(Golden, Bf16StaysNear) { ExpectNear(kTestedBf16, kBf16Tolerance); }

#ifdef BLOCKSERVE_TEST_CUDA
using GoldenOfOwnProducts = Golden;
TEST_P(GoldenOfOwnProducts, StayNear) { ExpectNear(Arithmetic::kCudaBf16Own, kBf16Tolerance); }

// With EngineOptions::early_launch.
class GoldenOfEarlyLaunch : public Golden {
 protected:
  GoldenOfEarlyLaunch() { early_launch_ = true; }
};
TEST_P(GoldenOfEarlyLaunch, F32ComputesWhatTheReferenceComputes) { ExpectTheReferencesNumbers(); }
TEST_P(GoldenOfEarlyLaunch, Bf16StaysNear) { ExpectNear(kTestedBf16, kBf16Tolerance); }
TEST_P(GoldenOfEarlyLaunch, OwnProductsStayNear) {
  ExpectNear(Arithmetic::kCudaBf16Own, kBf16Tolerance);
}
#ifdef BLOCKSERVE_CUDA_EMULATED
INSTANTIATE_TEST_SUITE_P(Folders, GoldenOfEarlyLaunch, testing::Values("concat_l4"));
// Tensor cores take their emulation minutes.
INSTANTIATE_TEST_SUITE_P(Folders, GoldenOfOwnProducts,
                         testing::Values("concat_l4", "concat_l2_sharded"));
#else
INSTANTIATE_TEST_SUITE_P(Folders, GoldenOfEarlyLaunch,
                         testing::Values("concat_l4", "widths_differ_l8", "sequential_residual",
                                         "head48_bf16", "vanilla"));
INSTANTIATE_TEST_SUITE_P(Folders, GoldenOfOwnProducts,
                         testing::Values("concat_l4", "concat_l2_sharded", "widths_differ_l8",
                                         "summation", "sequential_residual", "vanilla"));
#endif
#else
TEST_P(Golden, Bf16DotStaysNear) {
  const std::string why = WhyNotHere(Arithmetic::kBf16Dot);
  if (!why.empty()) GTEST_SKIP() << why;
  ExpectNear(Arithmetic::kBf16Dot, kBf16DotTolerance);
}

TEST_P(Golden, Int8StaysNear) { ExpectNear(Arithmetic::kInt8, kInt8Tolerance); }
#endif

INSTANTIATE_TEST_SUITE_P(Folders, Golden,
                         testing::Values("concat_l4", "concat_l2_sharded", "widths_differ_l8",
                                         "projection_layer_f16", "summation", "sequential_residual",
                                         "sum_embedder", "head48_bf16", "vanilla"),
                         [](const testing::TestParamInfo<std::string>& info) {
                           return info.param;
                         });

}  // namespace
}  // namespace blockserve
