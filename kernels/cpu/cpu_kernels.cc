#include "kernels/cpu/cpu_kernels.h"

#include <algorithm>
#include <array>
#include <vector>

#include "kernels/cpu/highway_targets.h"
//
#include "hwy/targets.h"
#include "kernels/cpu/amx_matmul.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/dot_matmul.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/quantize.h"
#include "kernels/cpu/row_kernels.h"

namespace blockserve {
namespace {

CpuKernels Table(KernelTarget target) {
  CpuKernels table;
  table.target = target;
  table.matmul = MatmulKernel(target);
  table.bf16dot_matmul = Bf16DotMatmulKernel(target);
  table.int8_matmul = Int8MatmulKernel(target);
  table.int8_rows = Int8RowsOf(target);
  table.quantize = QuantizeKernel(target);
  table.finish_dots = FinishDotsKernel(target);
  table.layer_norm = LayerNormKernel(target);
  table.split_qkv = SplitQkvKernel(target);
  table.attention = AttentionKernel(target);
  table.bf16dot_attention = Bf16DotAttentionKernel(target);
  table.segment_statistics = SegmentStatisticsKernel(target);
  table.join_segments = JoinSegmentsKernel(target);
  table.max_value = MaxValueKernel(target);
  table.first_index_of = FirstIndexOfKernel(target);
  table.softmax_weights = SoftmaxWeightsKernel(target);
  table.exp_in_place = ExpInPlaceKernel(target);
  table.erf_in_place = ErfInPlaceKernel(target);
  return table;
}

// Those of AVX-512, with other products of integers and of bfloat16 pairs.
CpuKernels AmxTable() {
  CpuKernels table = Table(KernelTarget::kAvx512);
  table.target = KernelTarget::kAmx;
  table.int8_matmul = AmxInt8MatmulKernel();
  table.bf16dot_matmul = AmxBf16DotMatmulKernel();
  return table;
}

}  // namespace

const char* KernelTargetName(KernelTarget target) {
  switch (target) {
    case KernelTarget::kPortable:
      return "portable";
    case KernelTarget::kAvx2:
      return "avx2";
    case KernelTarget::kAvx512:
      return "avx512";
    case KernelTarget::kAmx:
      return "amx";
    case KernelTarget::kNeon:
      return "neon";
  }
  return "unknown";
}

std::vector<KernelTarget> SupportedKernelTargets() {
  const int64_t machine = static_cast<int64_t>(hwy::SupportedTargets());
  std::vector<KernelTarget> targets;
  const auto add = [&](KernelTarget target, bool machine_has) {
    if (machine_has && MatmulKernel(target) != nullptr) targets.push_back(target);
  };
  add(KernelTarget::kAvx512, machine & HWY_AVX3);
  // Its table is that of AVX-512, whose VNNI every processor with AMX has.
  if (!targets.empty() && Int8RowsOf(KernelTarget::kAvx512) == Int8Rows::kUint8 && AmxIsThere()) {
    targets.insert(targets.begin(), KernelTarget::kAmx);
  }
  add(KernelTarget::kAvx2, machine & HWY_AVX2);
  add(KernelTarget::kNeon, true);
  add(KernelTarget::kPortable, true);
  return targets;
}

const CpuKernels& GetCpuKernels(KernelTarget target) {
  static const std::array<CpuKernels, 5> tables = {
      Table(KernelTarget::kPortable), Table(KernelTarget::kAvx2), Table(KernelTarget::kAvx512),
      AmxTable(), Table(KernelTarget::kNeon)};
  return tables[static_cast<size_t>(target)];
}

LogitStatistics StatisticsOf(const CpuKernels& kernels, const float* logits, int64_t n) {
  std::vector<SegmentStatistics> segments;
  for (int64_t i = 0; i < n; i += kLogitSegment) {
    segments.push_back(kernels.segment_statistics(logits + i, std::min(kLogitSegment, n - i)));
  }
  return kernels.join_segments(segments.data(), static_cast<int64_t>(segments.size()));
}

}  // namespace blockserve
