// Matrix products by instructions that add several products at once; the contract is in
// cpu_kernels.h. Highway 1.0.3 has none of them: they are written with intrinsics.
#ifndef BLOCKSERVE_KERNELS_CPU_DOT_MATMUL_H_
#define BLOCKSERVE_KERNELS_CPU_DOT_MATMUL_H_

#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

// AVX512-BF16, for kAvx512 alone; nullptr where the machine lacks it.
decltype(CpuKernels::matmul) Bf16DotMatmulKernel(KernelTarget target);
// AVX512-VNNI for kAvx512 where the machine has it, else AVX2, else plain loops: the same integers.
decltype(CpuKernels::matmul) Int8MatmulKernel(KernelTarget target);
// Whether that kernel reads rows as uint8 with 128 added, rather than as int16.
bool Int8RowsAreUnsigned(KernelTarget target);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_DOT_MATMUL_H_
