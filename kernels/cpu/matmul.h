// The matrix product of each instruction set; the contract is in cpu_kernels.h.
#ifndef BLOCKSERVE_KERNELS_CPU_MATMUL_H_
#define BLOCKSERVE_KERNELS_CPU_MATMUL_H_

#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

decltype(CpuKernels::matmul) MatmulKernel(KernelTarget target);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_MATMUL_H_
