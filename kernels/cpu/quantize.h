// What comes before and after a matrix product of integers or bfloat16 pairs, for each instruction
// set; the contract is in cpu_kernels.h.
#ifndef BLOCKSERVE_KERNELS_CPU_QUANTIZE_H_
#define BLOCKSERVE_KERNELS_CPU_QUANTIZE_H_

#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

decltype(CpuKernels::quantize) QuantizeKernel(KernelTarget target);
decltype(CpuKernels::finish_dots) FinishDotsKernel(KernelTarget target);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_QUANTIZE_H_
