// Matrix products of integers and of bfloat16 pairs, on every instruction set that the machine has.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "common/thread_pool.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/reference.h"

namespace blockserve {
namespace {

std::vector<float> Normal(std::mt19937& random, size_t count) {
  std::normal_distribution<float> distribution;
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random);
  return values;
}

bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

PackedMatrix Pack(absl::Span<const float> w, absl::Span<const float> bias, int64_t n, int64_t k,
                  WeightFormat format) {
  ThreadPool pool(1);
  ThreadPool::Turn turn(pool);
  MatrixSource source;
  source.data = reinterpret_cast<const uint8_t*>(w.data());
  source.bias = reinterpret_cast<const uint8_t*>(bias.data());
  absl::StatusOr<PackedMatrix> packed = PackedMatrix::Pack(source, n, k, format, pool);
  EXPECT_TRUE(packed.ok()) << packed.status();
  return *std::move(packed);
}

// x [rows, k] times the weights; [rows, n], checking that the padding stays zero.
std::vector<float> Multiply(const CpuKernels& kernels, const PackedMatrix& weights,
                            absl::Span<const float> x, int64_t rows,
                            Epilogue epilogue = Epilogue::kNone,
                            absl::Span<const float> residual = {}) {
  const int64_t n = weights.n();
  const int64_t k = weights.k();
  const bool int8 = weights.format() == WeightFormat::kInt8;
  std::vector<float> padded(rows * PadToPanel(k));
  std::vector<float> y(rows * PadToPanel(n), residual.empty() ? -7.0f : 0.0f);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(x.begin() + r * k, k, padded.begin() + r * PadToPanel(k));
    if (!residual.empty()) std::copy_n(residual.begin() + r * n, n, y.begin() + r * PadToPanel(n));
  }
  std::vector<uint8_t> quantized(rows * PadToPanel(k) * 2);
  std::vector<float> scales(rows);
  QuantizeArgs quantize;
  quantize.x = padded.data();
  quantize.x_stride = PadToPanel(k);
  quantize.k = k;
  quantize.format = weights.format();
  quantize.int8_rows = kernels.int8_rows;
  quantize.quantized = quantized.data();
  quantize.quantized_stride = PadToPanel(k) * 2;
  quantize.scales = scales.data();
  kernels.quantize(quantize, 0, rows);
  MatmulArgs args;
  args.rows = rows;
  args.weights = &weights;
  args.epilogue = epilogue;
  args.residual = y.data();
  args.y = y.data();
  args.y_stride = PadToPanel(n);
  args.quantized = quantized.data();
  args.quantized_stride = quantize.quantized_stride;
  args.x_scales = scales.data();
  args.int8_rows = quantize.int8_rows;
  args.finish_dots = kernels.finish_dots;
  (int8 ? kernels.int8_matmul : kernels.bf16dot_matmul)(args, 0, weights.num_panels());
  std::vector<float> out(rows * n);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(y.begin() + r * PadToPanel(n), n, out.begin() + r * n);
    for (int64_t o = n; o < PadToPanel(n); ++o) EXPECT_EQ(y[r * PadToPanel(n) + o], 0.0f);
  }
  return out;
}

const std::vector<std::pair<int64_t, int64_t>> kShapes = {{16, 1},   {1, 16},   {48, 33},
                                                          {100, 48}, {130, 96}, {210, 259}};

class DotMatmul : public testing::TestWithParam<KernelTarget> {
 protected:
  const CpuKernels& kernels() const { return GetCpuKernels(GetParam()); }
  const CpuKernels& portable() const { return GetCpuKernels(SupportedKernelTargets().back()); }
};

TEST_P(DotMatmul, Int8IsTheProductOfTheQuantisedValues) {
  std::mt19937 random(1);
  for (const auto& [n, k] : kShapes) {
    for (const int64_t rows : {1, 2, 3, 5, 8, 13}) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", k, " -> ", n));
      const std::vector<float> x = Normal(random, rows * k);
      const std::vector<float> w = Normal(random, n * k);
      const std::vector<float> bias = Normal(random, n);
      const std::vector<float> y =
          Multiply(kernels(), Pack(w, bias, n, k, WeightFormat::kInt8), x, rows);
      const std::vector<double> expected = reference::Int8Matmul(x, w, bias, rows, n, k);
      for (size_t i = 0; i < y.size(); ++i) {
        // Sums of integers are exact: what is left is the rounding of scales, products and the sum.
        const double magnitude = std::abs(expected[i] - bias[i % n]) + std::abs(bias[i % n]);
        EXPECT_NEAR(y[i], expected[i], 0x1p-21 * magnitude);
      }
    }
  }
}

TEST_P(DotMatmul, Int8RowsDoNotDependOnTheBatchOrTheTarget) {
  std::mt19937 random(2);
  const int64_t n = 200;  // an odd number of panels
  const int64_t k = 75;
  const int64_t most = 40;
  const std::vector<float> x = Normal(random, most * k);
  const std::vector<float> residual = Normal(random, most * n);
  const PackedMatrix weights =
      Pack(Normal(random, n * k), Normal(random, n), n, k, WeightFormat::kInt8);
  for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kGelu, Epilogue::kAddResidual}) {
    const auto run = [&](const CpuKernels& kernels, int64_t rows) {
      return Multiply(kernels, weights, x, rows, epilogue,
                      epilogue == Epilogue::kAddResidual ? absl::MakeConstSpan(residual)
                                                         : absl::Span<const float>());
    };
    const std::vector<float> all = run(portable(), most);
    for (int64_t rows = 1; rows <= most; ++rows) {
      const std::vector<float> some = run(kernels(), rows);
      EXPECT_TRUE(SameBits(some, absl::MakeConstSpan(all).first(some.size()))) << rows << " rows";
    }
  }
}

// The extremes of both operands, over the longest sums of the released models and the longest that
// are taken: no saturation.
TEST_P(DotMatmul, Int8SumsOfTheLargestIntegersAreExact) {
  for (const int64_t k : {int64_t{8192}, kMaxInt8Inputs}) {
    for (const float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(k, sign);
      const std::vector<float> w(16 * k, 1.0f);
      const std::vector<float> bias(16);
      for (const float y : Multiply(kernels(), Pack(w, bias, 16, k, WeightFormat::kInt8), x, 1)) {
        EXPECT_NEAR(y, sign * k, 1e-6 * k);
      }
    }
  }
}

TEST(PackedMatrix, Int8OfSumsThatMayNotFitIsRefused) {
  const std::vector<float> w(kMaxInt8Inputs + 1, 1.0f);
  MatrixSource source;
  source.data = reinterpret_cast<const uint8_t*>(w.data());
  ThreadPool pool(1);
  const auto size = static_cast<int64_t>(w.size());
  const auto refused = PackedMatrix::Pack(source, 1, size, WeightFormat::kInt8, pool);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(PackedMatrix::Pack(source, 1, size, WeightFormat::kBf16, pool).ok());
}

TEST_P(DotMatmul, Int8RowsOfNonFiniteValuesHarmThemselvesAlone) {
  std::mt19937 random(3);
  const int64_t k = 40;
  std::vector<float> x = Normal(random, 3 * k);
  const PackedMatrix weights =
      Pack(Normal(random, 16 * k), Normal(random, 16), 16, k, WeightFormat::kInt8);
  const std::vector<float> good = Multiply(kernels(), weights, x, 3);
  x[k + 7] = std::numeric_limits<float>::infinity();
  x[2 * k + 39] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y = Multiply(kernels(), weights, x, 3);
  EXPECT_TRUE(SameBits(absl::MakeConstSpan(y).first(16), absl::MakeConstSpan(good).first(16)));
  for (int64_t i = 16; i < 48; ++i) EXPECT_TRUE(std::isnan(y[i]));
}

TEST_P(DotMatmul, Int8OfZerosIsTheBias) {
  const int64_t k = 20;
  const std::vector<float> bias(16, 0.5f);
  const std::vector<float> zeros(16 * k);
  const std::vector<float> ones(k, 1.0f);
  EXPECT_EQ(Multiply(kernels(), Pack(zeros, bias, 16, k, WeightFormat::kInt8), ones, 1), bias);
  const std::vector<float> w(16 * k, 1.0f);
  EXPECT_EQ(Multiply(kernels(), Pack(w, bias, 16, k, WeightFormat::kInt8),
                     absl::MakeConstSpan(zeros).first(k), 1),
            bias);
}

// Also the form that only a machine with AVX512-VNNI multiplies.
TEST_P(DotMatmul, EveryFormOfInt8RowsHoldsTheSameIntegers) {
  std::mt19937 random(7);
  const int64_t k = 64;
  const std::vector<float> x = Normal(random, k);
  const auto quantized = [&](Int8Rows form, auto element) {
    std::vector<decltype(element)> row(2 * k / sizeof(element));
    float scale = 0;
    QuantizeArgs args;
    args.x = x.data();
    args.x_stride = k;
    args.k = k;
    args.int8_rows = form;
    args.quantized = reinterpret_cast<uint8_t*>(row.data());
    args.quantized_stride = 2 * k;
    args.scales = &scale;
    kernels().quantize(args, 0, 1);
    EXPECT_EQ(scale,
              std::abs(*std::max_element(
                  x.begin(), x.end(), [](float a, float b) { return std::abs(a) < std::abs(b); })) /
                  127);
    return row;
  };
  const std::vector<int16_t> wide = quantized(Int8Rows::kInt16, int16_t{});
  const std::vector<int8_t> narrow = quantized(Int8Rows::kInt8, int8_t{});
  const std::vector<uint8_t> shifted = quantized(Int8Rows::kUint8, uint8_t{});
  for (int64_t i = 0; i < k; ++i) {
    EXPECT_EQ(narrow[i], wide[i]);
    EXPECT_EQ(shifted[i], wide[i] + 128);
  }

  const PackedMatrix weights =
      Pack(Normal(random, 16 * k), Normal(random, 16), 16, k, WeightFormat::kInt8);
  const auto finished = [&](Int8Rows form, bool with_offsets) {
    std::vector<int32_t> sums(16);
    for (int32_t o = 0; o < 16; ++o) {
      sums[o] = 1000 * o - 7000 + (with_offsets ? weights.offsets()[o] : 0);
    }
    alignas(64) float y[16];
    const float scale = 0.01f;
    MatmulArgs args;
    args.rows = 1;
    args.weights = &weights;
    args.y = y;
    args.y_stride = 16;
    args.x_scales = &scale;
    args.int8_rows = form;
    kernels().finish_dots(args, {0, 1, 0, 1, reinterpret_cast<const uint32_t*>(sums.data())});
    return std::vector<float>(y, y + 16);
  };
  EXPECT_EQ(finished(Int8Rows::kInt8, false), finished(Int8Rows::kInt16, false));
  EXPECT_EQ(finished(Int8Rows::kUint8, true), finished(Int8Rows::kInt16, false));
}

TEST_P(DotMatmul, Bf16DotIsNearTheProductOfTheRoundedValues) {
  if (kernels().bf16dot_matmul == nullptr) GTEST_SKIP() << "no AVX512-BF16 for this target";
  std::mt19937 random(4);
  for (const auto& [n, k] : kShapes) {
    for (const int64_t rows : {1, 2, 3, 5, 8, 13}) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", k, " -> ", n));
      std::vector<float> x = Normal(random, rows * k);
      std::vector<float> w = Normal(random, n * k);
      const std::vector<float> bias = Normal(random, n);
      const std::vector<float> y =
          Multiply(kernels(), Pack(w, bias, n, k, WeightFormat::kBf16Dot), x, rows);
      for (float& value : x) value = RoundToBf16(value);
      for (float& value : w) value = RoundToBf16(value);
      const std::vector<double> expected = reference::Matmul(x, w, bias, rows, n, k);
      const std::vector<double> bound = reference::MatmulErrorBound(x, w, bias, rows, n, k);
      // Two products and a sum are rounded in each step of two, and perhaps not fused.
      for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], 2 * bound[i]);
    }
  }
}

TEST_P(DotMatmul, Bf16DotRowsDoNotDependOnTheBatch) {
  if (kernels().bf16dot_matmul == nullptr) GTEST_SKIP() << "no AVX512-BF16 for this target";
  std::mt19937 random(5);
  const int64_t n = 200;  // an odd number of panels
  const int64_t k = 75;
  const int64_t most = 40;
  const std::vector<float> x = Normal(random, most * k);
  const PackedMatrix weights =
      Pack(Normal(random, n * k), Normal(random, n), n, k, WeightFormat::kBf16Dot);
  const std::vector<float> all = Multiply(kernels(), weights, x, most);
  for (int64_t rows = 1; rows < most; ++rows) {
    const std::vector<float> some = Multiply(kernels(), weights, x, rows);
    EXPECT_TRUE(SameBits(some, absl::MakeConstSpan(all).first(some.size()))) << rows << " rows";
  }
}

// What cpu_kernels.h's kBf16Dot is on every machine with AMX: groups of 32 inputs, in each a chain
// of the even ones and a chain of the odd ones from zero, their sum added to that of the groups
// before.
TEST(AmxMatmul, Bf16DotIsTheOrderOfTheInstruction) {
  if (SupportedKernelTargets().front() != KernelTarget::kAmx) {
    GTEST_SKIP() << "this machine has no AMX: its kernels were not run";
  }
  std::mt19937 random(8);
  const int64_t rows = 19;
  const int64_t n = 40;
  for (const int64_t k : {3, 32, 64, 75, 256}) {
    std::vector<float> x = Normal(random, rows * k);
    std::vector<float> w = Normal(random, n * k);
    const std::vector<float> bias(n);
    const std::vector<float> y = Multiply(GetCpuKernels(KernelTarget::kAmx),
                                          Pack(w, bias, n, k, WeightFormat::kBf16Dot), x, rows);
    for (float& value : x) value = RoundToBf16(value);
    for (float& value : w) value = RoundToBf16(value);
    std::vector<float> expected(rows * n);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t o = 0; o < n; ++o) {
        float& sum = expected[r * n + o];
        for (int64_t begin = 0; begin < k; begin += 32) {
          float chains[2] = {};
          for (int64_t i = begin; i < std::min(begin + 32, k); ++i) {
            chains[i % 2] = std::fma(x[r * k + i], w[o * k + i], chains[i % 2]);
          }
          sum += chains[0] + chains[1];
        }
      }
    }
    EXPECT_TRUE(SameBits(y, expected)) << k;
  }
}

TEST_P(DotMatmul, Bf16RoundingOfRowsIsNearestEven) {
  std::mt19937 random(6);
  std::vector<float> x = Normal(random, 64);
  x[0] = std::numeric_limits<float>::quiet_NaN();
  x[1] = -std::numeric_limits<float>::infinity();
  x[2] = 1.00390625f;                        // a tie, to even: down
  x[3] = 1.01171875f;                        // a tie, to even: up
  x[4] = std::numeric_limits<float>::max();  // to infinity
  std::vector<uint16_t> rounded(64);
  QuantizeArgs args;
  args.x = x.data();
  args.x_stride = 64;
  args.k = 64;
  args.format = WeightFormat::kBf16Dot;
  args.quantized = reinterpret_cast<uint8_t*>(rounded.data());
  args.quantized_stride = 128;
  kernels().quantize(args, 0, 1);
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(rounded[i], Bf16FromFloat(x[i])) << x[i];
}

INSTANTIATE_TEST_SUITE_P(Targets, DotMatmul, testing::ValuesIn(SupportedKernelTargets()),
                         [](const testing::TestParamInfo<KernelTarget>& info) {
                           return std::string(KernelTargetName(info.param));
                         });

}  // namespace
}  // namespace blockserve
