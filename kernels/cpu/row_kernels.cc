#include "kernels/cpu/row_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_kernels.cc"
#include "kernels/cpu/highway_targets.h"
// Highway's order: foreach_target before highway.
#include "hwy/foreach_target.h"
#include "kernels/cpu/vec16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace blockserve {
namespace HWY_NAMESPACE {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Group i of a row of n elements, with `fill` after the end.
HWY_INLINE V16 LoadGroup(const float* p, int64_t i, int64_t n, float fill) {
  return i + kPanelWidth <= n ? Load16(p + i) : LoadTail(p + i, n - i, fill);
}

HWY_INLINE void NormalizeRow(const LayerNormArgs& args, int64_t r) {
  const float* x = args.x + r * args.x_stride;
  const int64_t width = args.width;
  V16 sum = Set16(0.0f);
  for (int64_t i = 0; i < width; i += kPanelWidth) sum = Add(sum, LoadGroup(x, i, width, 0.0f));
  const float mean = ReduceSum(sum) / static_cast<float>(width);
  const V16 mean16 = Set16(mean);
  V16 squares = Set16(0.0f);
  for (int64_t i = 0; i < width; i += kPanelWidth) {
    // The tail is filled with the mean: it adds nothing.
    const V16 d = Sub(LoadGroup(x, i, width, mean), mean16);
    squares = Fma(d, d, squares);
  }
  const float variance = ReduceSum(squares) / static_cast<float>(width);
  const V16 scale = Set16(1.0f / std::sqrt(variance + args.epsilon));
  for (const LayerNormArgs::Output& output : args.outputs) {
    if (output.y == nullptr) continue;
    float* y = output.y + r * output.y_stride;
    for (int64_t i = 0; i < width; i += kPanelWidth) {
      // Weight and bias are zero in the padding, and so is y.
      const V16 normal = Mul(Sub(LoadGroup(x, i, width, mean), mean16), scale);
      Store16(Fma(normal, Load16(output.weight + i), Load16(output.bias + i)), y + i);
    }
  }
}

}  // namespace

void LayerNorm(const LayerNormArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t r = row_begin; r < row_end; ++r) NormalizeRow(args, r);
}

SegmentStatistics StatisticsOfSegment(const float* logits, int64_t n) {
  // x * 0 is NaN for an infinite or NaN x and stays so in the sum.
  V16 max = Set16(-kInfinity);
  V16 probe = Set16(0.0f);
  const V16 zero = Set16(0.0f);
  const int64_t whole = n / kPanelWidth * kPanelWidth;
  for (int64_t i = 0; i < whole; i += kPanelWidth) {
    const V16 x = Load16(logits + i);
    max = Max(max, x);
    probe = Fma(x, zero, probe);
  }
  if (whole < n) {
    max = Max(max, LoadTail(logits + whole, n - whole, -kInfinity));
    probe = Fma(LoadTail(logits + whole, n - whole, 0.0f), zero, probe);
  }
  SegmentStatistics statistics;
  statistics.max = ReduceMax(max);
  statistics.finite = ReduceSum(probe) == 0.0f;
  if (!statistics.finite) return statistics;

  const V16 largest = Set16(statistics.max);
  V16 sum = Set16(0.0f);
  for (int64_t i = 0; i < whole; i += kPanelWidth) {
    sum = Add(sum, Exp(Sub(Load16(logits + i), largest)));
  }
  if (whole < n) {
    sum = Add(sum, Exp(Sub(LoadTail(logits + whole, n - whole, -kInfinity), largest)));
  }
  statistics.sum_exp = ReduceSum(sum);
  return statistics;
}

LogitStatistics Join(const SegmentStatistics* segments, int64_t count) {
  LogitStatistics statistics;
  statistics.max = -kInfinity;
  statistics.finite = true;
  for (int64_t i = 0; i < count; ++i) {
    statistics.finite = statistics.finite && segments[i].finite;
    statistics.max = std::max(statistics.max, segments[i].max);
  }
  if (!statistics.finite) return statistics;
  alignas(64) float scale[kPanelWidth];
  for (int64_t begin = 0; begin < count; begin += kPanelWidth) {
    const int64_t end = std::min(count, begin + kPanelWidth);
    for (int64_t i = begin; i < begin + kPanelWidth; ++i) {
      scale[i - begin] = i < end ? segments[i].max - statistics.max : -kInfinity;
    }
    Store16(Exp(Load16(scale)), scale);
    for (int64_t i = begin; i < end; ++i) {
      statistics.sum_exp +=
          static_cast<double>(segments[i].sum_exp) * static_cast<double>(scale[i - begin]);
    }
  }
  return statistics;
}

float MaxValue(const float* values, int64_t n) {
  V16 max = Set16(-kInfinity);
  for (int64_t i = 0; i < n; i += kPanelWidth) max = Max(max, LoadGroup(values, i, n, -kInfinity));
  return ReduceMax(max);
}

int64_t FirstIndexOf(const float* values, int64_t n, float value) {
  const DF d;
  const VF wanted = hn::Set(d, value);
  int64_t i = 0;
  for (; i + kPartLanes <= n; i += kPartLanes) {
    if (!hn::AllFalse(d, hn::Eq(hn::LoadU(d, values + i), wanted))) break;
  }
  for (; i < n; ++i) {
    if (values[i] == value) return i;
  }
  return n;
}

void SoftmaxWeights(const float* logits, int64_t n, float max, float temperature, float* weights) {
  const V16 largest = Set16(max);
  const V16 divisor = Set16(temperature);
  for (int64_t i = 0; i < n; i += kPanelWidth) {
    Store16(Exp(Div(Sub(Load16(logits + i), largest), divisor)), weights + i);
  }
}

void ExpInPlace(float* values, int64_t n) {
  for (int64_t i = 0; i < n; i += kPanelWidth) Store16(Exp(Load16(values + i)), values + i);
}

void ErfInPlace(float* values, int64_t n) {
  for (int64_t i = 0; i < n; i += kPanelWidth) Store16(Erf(Load16(values + i)), values + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace blockserve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace blockserve {

decltype(CpuKernels::layer_norm) LayerNormKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, LayerNorm);
}
decltype(CpuKernels::segment_statistics) SegmentStatisticsKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, StatisticsOfSegment);
}
decltype(CpuKernels::join_segments) JoinSegmentsKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, Join);
}
decltype(CpuKernels::max_value) MaxValueKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, MaxValue);
}
decltype(CpuKernels::first_index_of) FirstIndexOfKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, FirstIndexOf);
}
decltype(CpuKernels::softmax_weights) SoftmaxWeightsKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, SoftmaxWeights);
}
decltype(CpuKernels::exp_in_place) ExpInPlaceKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, ExpInPlace);
}
decltype(CpuKernels::erf_in_place) ErfInPlaceKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, ErfInPlace);
}

}  // namespace blockserve
#endif  // HWY_ONCE
