// Every kernel on every instruction set that the machine has: against the reference, with
// tolerances from norms, and bit for bit against the others.
#include "kernels/cpu/cpu_kernels.h"

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
#include "common/worst_error_for_test.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference.h"

namespace blockserve {
namespace {

constexpr double kEpsilon = 0x1p-24;  // half a unit in the last place of 1

std::vector<float> Normal(std::mt19937& random, size_t count, float scale = 1.0f) {
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random);
  return values;
}

// `rows` of `width` values in rows of `stride`, zero in the padding.
std::vector<float> Padded(absl::Span<const float> values, int64_t rows, int64_t width) {
  const int64_t stride = PadToPanel(width);
  std::vector<float> padded(rows * stride);
  for (int64_t r = 0; r < rows; ++r) {
    std::copy_n(values.begin() + r * width, width, padded.begin() + r * stride);
  }
  return padded;
}

bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class EveryTarget : public testing::TestWithParam<KernelTarget> {
 protected:
  const CpuKernels& kernels() const { return GetCpuKernels(GetParam()); }
  // What the others are compared with: always there, and nothing but scalar code.
  const CpuKernels& portable() const { return GetCpuKernels(SupportedKernelTargets().back()); }
};

PackedMatrix Pack(absl::Span<const float> w, absl::Span<const float> bias, int64_t n, int64_t k,
                  WeightFormat format) {
  ThreadPool pool(1);
  ThreadPool::Turn turn(pool);
  MatrixSource source;
  source.data = reinterpret_cast<const uint8_t*>(w.data());
  if (!bias.empty()) source.bias = reinterpret_cast<const uint8_t*>(bias.data());
  absl::StatusOr<PackedMatrix> packed = PackedMatrix::Pack(source, n, k, format, pool);
  EXPECT_TRUE(packed.ok()) << packed.status();
  return *std::move(packed);
}
PackedMatrix Pack(absl::Span<const float> w, absl::Span<const float> bias, int64_t n, int64_t k,
                  bool bf16) {
  return Pack(w, bias, n, k, bf16 ? WeightFormat::kBf16 : WeightFormat::kF32);
}

std::vector<float> RunMatmul(const CpuKernels& kernels, const PackedMatrix& weights,
                             const std::vector<float>& x, int64_t rows, Epilogue epilogue,
                             const std::vector<float>& residual = {}) {
  std::vector<float> y(rows * PadToPanel(weights.n()), -7.0f);
  if (!residual.empty()) y = residual;  // in place, as the engines do
  MatmulArgs args;
  args.x = x.data();
  args.x_stride = PadToPanel(weights.k());
  args.rows = rows;
  args.weights = &weights;
  args.epilogue = epilogue;
  args.residual = residual.empty() ? nullptr : y.data();
  args.y = y.data();
  args.y_stride = PadToPanel(weights.n());
  kernels.matmul(args, 0, weights.num_panels());
  return y;
}

TEST_P(EveryTarget, MatmulIsWithinTheErrorBoundOfItsSums) {
  std::mt19937 random(1);
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
           {16, 1}, {1, 16}, {48, 33}, {100, 48}, {130, 96}, {64, 257}}) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 12, 13, 20}) {
      SCOPED_TRACE(absl::StrCat(rows, " x ", k, " -> ", n));
      const std::vector<float> x = Normal(random, rows * k);
      const std::vector<float> w = Normal(random, n * k);
      const std::vector<float> bias = Normal(random, n);
      const std::vector<float> y = RunMatmul(kernels(), Pack(w, bias, n, k, false),
                                             Padded(x, rows, k), rows, Epilogue::kNone);
      const std::vector<double> expected = reference::Matmul(x, w, bias, rows, n, k);
      const std::vector<double> bound = reference::MatmulErrorBound(x, w, bias, rows, n, k);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t o = 0; o < PadToPanel(n); ++o) {
          const float actual = y[r * PadToPanel(n) + o];
          if (o >= n) {
            EXPECT_EQ(actual, 0.0f) << "padding";
          } else {
            EXPECT_NEAR(actual, expected[r * n + o], bound[r * n + o]);
          }
        }
      }
    }
  }
}

TEST_P(EveryTarget, Bf16MatmulIsTheF32MatmulOfTheRoundedWeights) {
  std::mt19937 random(2);
  for (const auto& [n, k] :
       std::vector<std::pair<int64_t, int64_t>>{{48, 33}, {100, 48}, {17, 1}, {33, 130}}) {
    for (const int64_t rows : {1, 3, 6, 7}) {
      const std::vector<float> x = Padded(Normal(random, rows * k), rows, k);
      const std::vector<float> w = Normal(random, n * k);
      const std::vector<float> bias = Normal(random, n);
      std::vector<float> rounded = w;
      for (float& value : rounded) value = RoundToBf16(value);
      EXPECT_TRUE(SameBits(
          RunMatmul(kernels(), Pack(w, bias, n, k, true), x, rows, Epilogue::kNone),
          RunMatmul(kernels(), Pack(rounded, bias, n, k, false), x, rows, Epilogue::kNone)));
    }
  }
}

TEST_P(EveryTarget, MatmulRowsDoNotDependOnTheBatchOrTheTarget) {
  std::mt19937 random(3);
  const int64_t n = 210;
  const int64_t k = 75;
  const int64_t most = 40;
  const std::vector<float> x = Padded(Normal(random, most * k), most, k);
  const std::vector<float> w = Normal(random, n * k);
  const std::vector<float> bias = Normal(random, n);
  const std::vector<float> residual = Padded(Normal(random, most * n), most, n);
  for (const bool bf16 : {false, true}) {
    const PackedMatrix weights = Pack(w, bias, n, k, bf16);
    for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kGelu, Epilogue::kAddResidual}) {
      const auto run = [&](const CpuKernels& kernels, int64_t rows) {
        return RunMatmul(
            kernels, weights, x, rows, epilogue,
            epilogue == Epilogue::kAddResidual
                ? std::vector<float>(residual.begin(), residual.begin() + rows * PadToPanel(n))
                : std::vector<float>());
      };
      const std::vector<float> all = run(portable(), most);
      for (int64_t rows = 1; rows <= most; ++rows) {
        const std::vector<float> some = run(kernels(), rows);
        EXPECT_TRUE(SameBits(some, absl::MakeConstSpan(all).first(some.size())))
            << rows << " rows, bf16 " << bf16 << ", epilogue " << static_cast<int>(epilogue);
      }
    }
  }
}

TEST_P(EveryTarget, EpiloguesAddResidualsAndTheExactGelu) {
  std::mt19937 random(4);
  const int64_t n = 40;
  const int64_t k = 24;
  const int64_t rows = 5;
  const std::vector<float> x = Padded(Normal(random, rows * k), rows, k);
  const PackedMatrix weights = Pack(Normal(random, n * k), Normal(random, n), n, k, false);
  const std::vector<float> plain = RunMatmul(kernels(), weights, x, rows, Epilogue::kNone);
  const std::vector<float> gelu = RunMatmul(kernels(), weights, x, rows, Epilogue::kGelu);
  const std::vector<float> residual = Padded(Normal(random, rows * n), rows, n);
  const std::vector<float> added =
      RunMatmul(kernels(), weights, x, rows, Epilogue::kAddResidual, residual);
  for (size_t i = 0; i < plain.size(); ++i) {
    // erf is within 1 unit of 1.0 and the products are rounded thrice.
    EXPECT_NEAR(gelu[i], reference::Gelu(plain[i]), 6 * kEpsilon * std::abs(plain[i]));
    EXPECT_EQ(added[i], residual[i] + plain[i]);
  }
}

TEST_P(EveryTarget, PackedConvolutionIsTheSumOverItsTaps) {
  std::mt19937 random(5);
  const int64_t n = 24;
  const int64_t width = 10;
  const int64_t taps = 3;
  const std::vector<float> w = Normal(random, n * width * taps);  // [n, width, taps]
  const std::vector<float> bias = Normal(random, n);
  const std::vector<float> x = Normal(random, taps * width);
  MatrixSource source;
  source.data = reinterpret_cast<const uint8_t*>(w.data());
  source.kernel_size = taps;
  source.bias = reinterpret_cast<const uint8_t*>(bias.data());
  ThreadPool pool(2);
  ThreadPool::Turn turn(pool);
  absl::StatusOr<PackedMatrix> packed =
      PackedMatrix::Pack(source, n, taps * width, WeightFormat::kF32, pool);
  ASSERT_TRUE(packed.ok());
  const std::vector<float> y =
      RunMatmul(kernels(), *packed, Padded(x, 1, taps * width), 1, Epilogue::kNone);
  for (int64_t o = 0; o < n; ++o) {
    double sum = bias[o];
    double magnitude = std::abs(bias[o]);
    for (int64_t j = 0; j < taps; ++j) {
      for (int64_t e = 0; e < width; ++e) {
        const double product =
            static_cast<double>(w[(o * width + e) * taps + j]) * x[j * width + e];
        sum += product;
        magnitude += std::abs(product);
      }
    }
    EXPECT_NEAR(y[o], sum, 32 * kEpsilon * magnitude);
  }
}

TEST_P(EveryTarget, LayerNormMatchesTheReferenceAndThePortableBits) {
  std::mt19937 random(6);
  for (const int64_t width : {1, 5, 16, 24, 48, 100, 768}) {
    const int64_t rows = 3;
    std::vector<float> x = Normal(random, rows * width, 3.0f);
    for (float& value : x) value += 5.0f;
    const std::vector<float> weight = Normal(random, width);
    const std::vector<float> bias = Normal(random, width);
    const std::vector<float> padded = Padded(x, rows, width);
    const std::vector<float> padded_weight = Padded(weight, 1, width);
    const std::vector<float> padded_bias = Padded(bias, 1, width);
    const auto run = [&](const CpuKernels& kernels) {
      std::vector<float> y(2 * padded.size(), -7.0f);
      LayerNormArgs args;
      args.x = padded.data();
      args.x_stride = PadToPanel(width);
      args.width = width;
      args.epsilon = 1e-5f;
      args.outputs[0] = {padded_weight.data(), padded_bias.data(), y.data(), args.x_stride};
      args.outputs[1] = {padded_bias.data(), padded_weight.data(), y.data() + padded.size(),
                         args.x_stride};
      kernels.layer_norm(args, 0, rows);
      return y;
    };
    const std::vector<float> y = run(kernels());
    EXPECT_TRUE(SameBits(y, run(portable()))) << width;
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = absl::MakeConstSpan(x).subspan(r * width, width);
      const std::vector<double> first = reference::LayerNorm(row, weight, bias, 1e-5f);
      const std::vector<double> second = reference::LayerNorm(row, bias, weight, 1e-5f);
      for (int64_t i = 0; i < width; ++i) {
        // Values of magnitude 10 lose a few units when the mean is taken off.
        const double tolerance = 64 * kEpsilon * (1 + std::abs(first[i]) + std::abs(second[i]));
        EXPECT_NEAR(y[r * PadToPanel(width) + i], first[i], tolerance) << width;
        EXPECT_NEAR(y[padded.size() + r * PadToPanel(width) + i], second[i], tolerance);
      }
      for (int64_t i = width; i < PadToPanel(width); ++i) {
        EXPECT_EQ(y[r * PadToPanel(width) + i], 0.0f);
      }
    }
  }
}

// A sequence written block by block into pages of some size, then attended to.
struct AttentionRun {
  int32_t num_heads;
  int32_t head_size;
  int32_t rotary_dims;
  int32_t page_blocks;
  bool bf16;
  decltype(CpuKernels::attention) CpuKernels::*attention = &CpuKernels::attention;

  // Rows [0, positions) of `qkv` [positions, 3 * heads * size padded] in one batch of each of
  // `sizes`.
  std::vector<float> operator()(const CpuKernels& kernels, const std::vector<float>& qkv,
                                int64_t positions, absl::Span<const int64_t> sizes) const {
    KvLayout layout;
    layout.num_heads = num_heads;
    layout.head_size = head_size;
    layout.page_blocks = page_blocks;
    layout.bf16 = bf16;
    const int64_t num_pages = (positions + page_blocks - 1) / page_blocks;
    AlignedBuffer kv(num_pages * layout.page_bytes());
    // Pages in reverse order, and filled with NaN: what was not written must not be seen.
    std::memset(kv.data(), 0xff, kv.size_bytes());
    if (head_size % 2 != 0) std::memset(kv.data(), 0, kv.size_bytes());
    std::vector<int32_t> pages(num_pages);
    for (int64_t i = 0; i < num_pages; ++i) pages[i] = static_cast<int32_t>(num_pages - 1 - i);
    std::vector<float> cos(positions * rotary_dims / 2);
    std::vector<float> sin(positions * rotary_dims / 2);
    for (int64_t p = 0; p < positions; ++p) {
      for (int32_t i = 0; i < rotary_dims / 2; ++i) {
        const double angle = static_cast<double>(p) * std::pow(10000.0, -2.0 * i / rotary_dims);
        cos[p * rotary_dims / 2 + i] = static_cast<float>(std::cos(angle));
        sin[p * rotary_dims / 2 + i] = static_cast<float>(std::sin(angle));
      }
    }
    const int64_t qkv_stride = PadToPanel(int64_t{3} * num_heads * head_size);
    const int64_t out_stride = PadToPanel(int64_t{num_heads} * head_size);
    std::vector<float> out(positions * out_stride);
    std::vector<float> scratch(AttentionScratch(layout, positions));
    int64_t first = 0;
    for (size_t step = 0; first < positions; ++step) {
      const int64_t count = std::min(sizes[step % sizes.size()], positions - first);
      std::vector<SequenceRow> rows;
      for (int64_t i = 0; i < count; ++i) rows.push_back({pages.data(), first + i});
      std::vector<float> q(count * num_heads * layout.head_stride(), -7.0f);
      SplitQkvArgs split;
      split.qkv = qkv.data() + first * qkv_stride;
      split.qkv_stride = qkv_stride;
      split.sequence_rows = rows.data();
      split.layout = &layout;
      split.kv = kv.data();
      split.rotary_dims = rotary_dims;
      split.cos = cos.data();
      split.sin = sin.data();
      split.q_scale = 1.0f / std::sqrt(static_cast<float>(head_size));
      split.q = q.data();
      kernels.split_qkv(split, 0, count);
      AttentionArgs args;
      args.q = q.data();
      args.sequence_rows = rows.data();
      args.layout = &layout;
      args.kv = kv.data();
      args.out = out.data() + first * out_stride;
      args.out_stride = out_stride;
      for (int32_t head = 0; head < num_heads; ++head) {
        (kernels.*attention)(args, 0, count, head, scratch.data());
      }
      first += count;
    }
    return out;
  }
};

// The largest difference between the outputs of attention and the reference's. `dot`: queries are
// rounded to bf16 as the keys and values are.
double AttentionError(const CpuKernels& kernels, int32_t size, bool bf16, bool dot,
                      std::mt19937& random) {
  const int32_t heads = 3;
  const int32_t dims = size / 4 * 2;
  const int64_t positions = 71;
  const int64_t stride = PadToPanel(int64_t{3} * heads * size);
  const std::vector<float> qkv =
      Padded(Normal(random, positions * 3 * heads * size), positions, int64_t{3} * heads * size);
  AttentionRun run{heads, size, dims, 32, bf16};
  if (dot) run.attention = &CpuKernels::bf16dot_attention;
  const std::vector<float> out = run(kernels, qkv, positions, {positions});
  const auto rounded = [](bool round, double value) {
    return round ? static_cast<double>(RoundToBf16(static_cast<float>(value))) : value;
  };
  double worst = 0;
  for (int32_t head = 0; head < heads; ++head) {
    std::vector<double> keys;
    std::vector<double> values;
    for (int64_t p = 0; p < positions; ++p) {
      const float* row = qkv.data() + p * stride + int64_t{3} * head * size;
      std::vector<double> q = reference::Rotate({row, static_cast<size_t>(dims)}, p, 10000.0);
      std::vector<double> k =
          reference::Rotate({row + size, static_cast<size_t>(dims)}, p, 10000.0);
      q.insert(q.end(), row + dims, row + size);
      k.insert(k.end(), row + size + dims, row + 2 * size);
      for (double& value : q) value = rounded(dot, value);
      for (const double value : k) keys.push_back(rounded(bf16, value));
      for (int32_t i = 0; i < size; ++i) values.push_back(rounded(bf16, row[2 * size + i]));
      const std::vector<double> expected = reference::Attention(q, keys, values);
      for (int32_t i = 0; i < size; ++i) {
        const float actual = out[p * PadToPanel(int64_t{heads} * size) + head * size + i];
        worst = WorstError(worst, std::abs(actual - expected[i]));
      }
    }
  }
  return worst;
}

TEST_P(EveryTarget, AttentionMatchesTheReference) {
  std::mt19937 random(7);
  for (const int32_t size : {16, 32, 48, 64, 128, 20, 7}) {
    // Weights are within a few units of one another, values have magnitude 4. A key that falls on
    // the other side of a bf16 tie moves a score by 2^-8 of a product.
    EXPECT_LE(AttentionError(kernels(), size, false, false, random), 4e-6) << size;
    EXPECT_LE(AttentionError(kernels(), size, true, false, random), 2e-2) << size;
    if (kernels().bf16dot_attention == nullptr) continue;
    // Weights are rounded by up to 2^-9, and so are queries times their scale.
    EXPECT_LE(AttentionError(kernels(), size, true, true, random), 4e-2) << size;
  }
}

TEST_P(EveryTarget, Bf16DotAttentionBitsDoNotDependOnPagesOrChunks) {
  if (kernels().bf16dot_attention == nullptr) GTEST_SKIP() << "no AVX512-BF16";
  std::mt19937 random(9);
  for (const int32_t size : {16, 48, 64, 128, 7}) {
    const int32_t heads = 2;
    const int64_t positions = 203;
    const std::vector<float> qkv =
        Padded(Normal(random, positions * 3 * heads * size), positions, int64_t{3} * heads * size);
    const auto run = [&](int32_t page_blocks, std::vector<int64_t> sizes) {
      AttentionRun attention{heads,       size, size / 4 * 2,
                             page_blocks, true, &CpuKernels::bf16dot_attention};
      return attention(kernels(), qkv, positions, sizes);
    };
    const std::vector<float> expected = run(16, {positions});
    EXPECT_TRUE(SameBits(expected, run(16, {1}))) << size;
    EXPECT_TRUE(SameBits(expected, run(6, {7, 1, 30}))) << size;
    EXPECT_TRUE(SameBits(expected, run(128, {13}))) << size;
    EXPECT_TRUE(SameBits(expected, run(2, {64, 3}))) << size;
    EXPECT_TRUE(SameBits(expected, run(205, {50}))) << size;  // odd, but one page
  }
}

TEST_P(EveryTarget, AttentionBitsDoNotDependOnPagesChunksOrTarget) {
  std::mt19937 random(8);
  for (const int32_t size : {16, 48, 64, 7}) {
    for (const bool bf16 : {false, true}) {
      SCOPED_TRACE(absl::StrCat("head size ", size, ", bf16 ", bf16));
      const int32_t heads = 2;
      const int64_t positions = 90;
      const std::vector<float> qkv = Padded(Normal(random, positions * 3 * heads * size), positions,
                                            int64_t{3} * heads * size);
      const auto run = [&](const CpuKernels& kernels, int32_t page_blocks,
                           std::vector<int64_t> sizes) {
        return AttentionRun{heads, size, size / 4 * 2, page_blocks, bf16}(kernels, qkv, positions,
                                                                          sizes);
      };
      const std::vector<float> expected = run(portable(), 16, {positions});
      EXPECT_TRUE(SameBits(expected, run(kernels(), 16, {positions})));
      EXPECT_TRUE(SameBits(expected, run(kernels(), 16, {1})));
      EXPECT_TRUE(SameBits(expected, run(kernels(), 5, {7, 1, 30})));
      EXPECT_TRUE(SameBits(expected, run(kernels(), 128, {13})));
      EXPECT_TRUE(SameBits(expected, run(kernels(), 17, {64, 2})));
      EXPECT_TRUE(SameBits(expected, run(kernels(), 1, {10})));
    }
  }
}

TEST_P(EveryTarget, ExponentialAndErrorFunctionAreWithinUnits) {
  std::vector<float> x;
  for (float value = -87.0f; value <= 20.0f; value += 0.00371f) x.push_back(value);
  x.resize(x.size() / 16 * 16);
  std::vector<float> e = x;
  kernels().exp_in_place(e.data(), static_cast<int64_t>(e.size()));
  std::vector<float> portable_e = x;
  portable().exp_in_place(portable_e.data(), static_cast<int64_t>(portable_e.size()));
  EXPECT_TRUE(SameBits(e, portable_e));
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    EXPECT_NEAR(e[i] / exact, 1.0, 2.5 * kEpsilon) << x[i];
  }

  x.clear();
  for (float value = -6.0f; value <= 6.0f; value += 0.000613f) x.push_back(value);
  x.resize(x.size() / 16 * 16);
  std::vector<float> f = x;
  kernels().erf_in_place(f.data(), static_cast<int64_t>(f.size()));
  std::vector<float> portable_f = x;
  portable().erf_in_place(portable_f.data(), static_cast<int64_t>(portable_f.size()));
  EXPECT_TRUE(SameBits(f, portable_f));
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::erf(static_cast<double>(x[i]));
    EXPECT_NEAR(f[i], exact, 2.5 * kEpsilon * std::abs(exact)) << x[i];
  }

  std::vector<float> edges(16, 0.0f);
  edges[1] = -std::numeric_limits<float>::infinity();
  edges[2] = -1000.0f;
  edges[3] = std::numeric_limits<float>::quiet_NaN();
  kernels().exp_in_place(edges.data(), 16);
  EXPECT_EQ(edges[0], 1.0f);
  EXPECT_EQ(edges[1], 0.0f);
  EXPECT_EQ(edges[2], 0.0f);
  EXPECT_TRUE(std::isnan(edges[3]));
}

TEST_P(EveryTarget, LogitStatisticsOfAnyLength) {
  std::mt19937 random(9);
  for (const int64_t n : {1, 15, 16, 17, 512, 4095, 4096, 4097, 50304}) {
    const std::vector<float> logits = Padded(Normal(random, n, 4.0f), 1, n);
    const LogitStatistics statistics = StatisticsOf(kernels(), logits.data(), n);
    const LogitStatistics expected = StatisticsOf(portable(), logits.data(), n);
    EXPECT_TRUE(statistics.finite);
    EXPECT_EQ(statistics.max, *std::max_element(logits.begin(), logits.begin() + n));
    EXPECT_EQ(statistics.sum_exp, expected.sum_exp);
    const auto row = absl::MakeConstSpan(logits).first(n);
    EXPECT_NEAR(statistics.max + std::log(statistics.sum_exp), reference::LogSumExp(row), 2e-6);
    EXPECT_EQ(kernels().max_value(logits.data(), n), statistics.max);
    EXPECT_EQ(kernels().first_index_of(logits.data(), n, statistics.max),
              std::max_element(logits.begin(), logits.begin() + n) - logits.begin());
    EXPECT_EQ(kernels().first_index_of(logits.data(), n, 1e30f), n);

    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
          std::numeric_limits<float>::quiet_NaN()}) {
      for (const int64_t at : {int64_t{0}, n / 2, n - 1}) {
        std::vector<float> broken = logits;
        broken[at] = bad;
        EXPECT_FALSE(StatisticsOf(kernels(), broken.data(), n).finite) << bad << " at " << at;
      }
    }
  }
}

TEST_P(EveryTarget, TheFirstOfEqualLargestValuesIsFound) {
  std::vector<float> values(64, 0.0f);
  values[37] = values[38] = values[61] = 2.0f;
  EXPECT_EQ(kernels().first_index_of(values.data(), 64, kernels().max_value(values.data(), 64)),
            37);
  values[3] = -0.0f;
  EXPECT_EQ(kernels().first_index_of(values.data(), 64, 0.0f), 0);
}

TEST_P(EveryTarget, SoftmaxWeights) {
  std::mt19937 random(10);
  const int64_t n = 1000;
  const std::vector<float> logits = Padded(Normal(random, n, 4.0f), 1, n);
  const float max = kernels().max_value(logits.data(), n);
  std::vector<float> weights(logits.size());
  std::vector<float> expected(logits.size());
  kernels().softmax_weights(logits.data(), n, max, 0.7f, weights.data());
  portable().softmax_weights(logits.data(), n, max, 0.7f, expected.data());
  EXPECT_TRUE(SameBits(weights, expected));
  for (int64_t i = 0; i < n; ++i) {
    // The exponent is rounded twice, which counts by its magnitude.
    const double exponent = (static_cast<double>(logits[i]) - max) / 0.7f;
    const double exact = std::exp(exponent);
    EXPECT_NEAR(weights[i], exact, (4 - 3 * exponent) * kEpsilon * exact + 1e-37);
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, EveryTarget, testing::ValuesIn(SupportedKernelTargets()),
                         [](const testing::TestParamInfo<KernelTarget>& info) {
                           return std::string(KernelTargetName(info.param));
                         });

}  // namespace
}  // namespace blockserve
