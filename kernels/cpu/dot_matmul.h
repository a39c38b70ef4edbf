// Matrix products by instructions that add several products at once; the contract is in
// cpu_kernels.h. Highway 1.0.3 has none of them: they are written with intrinsics.
#ifndef BLOCKSERVE_KERNELS_CPU_DOT_MATMUL_H_
#define BLOCKSERVE_KERNELS_CPU_DOT_MATMUL_H_

#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

// AVX512-BF16, for kAvx512 alone; nullptr where the machine lacks it.
decltype(CpuKernels::matmul) Bf16DotMatmulKernel(KernelTarget target);
// AVX512-VNNI for kAvx512 where the machine has it, else AVX2; for kNeon the dot products of
// Armv8.2 where the machine has them; else plain loops: the same integers.
decltype(CpuKernels::matmul) Int8MatmulKernel(KernelTarget target);
// What that kernel reads rows as.
Int8Rows Int8RowsOf(KernelTarget target);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_DOT_MATMUL_H_
