// Matrix products by AMX, whose instructions multiply tiles of 16 rows with tiles of 16 outputs;
// the contract is in cpu_kernels.h.
#ifndef BLOCKSERVE_KERNELS_CPU_AMX_MATMUL_H_
#define BLOCKSERVE_KERNELS_CPU_AMX_MATMUL_H_

#include <cstdint>

#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

// Operand of the instruction LDTILECFG: the shapes of tiles.
struct alignas(64) AmxTileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};  // at most 64; of the first 8 alone
  uint8_t rows[16] = {};        // at most 16
};

// Whether the machine has AMX for 8-bit integers and bfloat16, and the operating system lets this
// process use it: Linux does since 5.16, for those that ask. The first call asks.
bool AmxIsThere();

// The same integers as Int8MatmulKernel, of rows of Int8Rows::kUint8; and products of bfloat16
// pairs in an order of their own. nullptr where AMX is not compiled. To be called where
// AmxIsThere() alone.
decltype(CpuKernels::matmul) AmxInt8MatmulKernel();
decltype(CpuKernels::matmul) AmxBf16DotMatmulKernel();

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_AMX_MATMUL_H_
