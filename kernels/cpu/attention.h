// The attention kernels of each instruction set; the contract is in cpu_kernels.h.
#ifndef BLOCKSERVE_KERNELS_CPU_ATTENTION_H_
#define BLOCKSERVE_KERNELS_CPU_ATTENTION_H_

#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

decltype(CpuKernels::split_qkv) SplitQkvKernel(KernelTarget target);
decltype(CpuKernels::attention) AttentionKernel(KernelTarget target);
// nullptr where the target or the machine lacks AVX512-BF16.
decltype(CpuKernels::attention) Bf16DotAttentionKernel(KernelTarget target);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_ATTENTION_H_
