// Layer norm, statistics of logits and elementary functions of each instruction set; the contract
// is in cpu_kernels.h.
#ifndef BLOCKSERVE_KERNELS_CPU_ROW_KERNELS_H_
#define BLOCKSERVE_KERNELS_CPU_ROW_KERNELS_H_

#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

decltype(CpuKernels::layer_norm) LayerNormKernel(KernelTarget target);
decltype(CpuKernels::segment_statistics) SegmentStatisticsKernel(KernelTarget target);
decltype(CpuKernels::join_segments) JoinSegmentsKernel(KernelTarget target);
decltype(CpuKernels::max_value) MaxValueKernel(KernelTarget target);
decltype(CpuKernels::first_index_of) FirstIndexOfKernel(KernelTarget target);
decltype(CpuKernels::softmax_weights) SoftmaxWeightsKernel(KernelTarget target);
decltype(CpuKernels::exp_in_place) ExpInPlaceKernel(KernelTarget target);
decltype(CpuKernels::erf_in_place) ErfInPlaceKernel(KernelTarget target);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_ROW_KERNELS_H_
