// What the .cu files are written in: CUDA's language, or its emulation where the compiler is not
// nvcc, and the few words that differ between the two.
#ifndef BLOCKSERVE_KERNELS_CUDA_DEVICE_CODE_H_
#define BLOCKSERVE_KERNELS_CUDA_DEVICE_CODE_H_

#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"

#if !defined(__CUDACC__)

#include "kernels/cuda/emulation/cuda_language.h"

#else

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "kernels/cuda/cuda_status.h"

namespace blockserve::cuda {

// The value of the lane that differs in these bits, of any type.
template <typename T>
__device__ inline T ExchangeXor(T value, int bits) {
  static_assert(sizeof(T) % 4 == 0);
  uint32_t words[sizeof(T) / 4];
  memcpy(words, &value, sizeof(T));
  for (uint32_t& word : words) word = __shfl_xor_sync(0xffffffffu, word, bits);
  memcpy(&value, words, sizeof(T));
  return value;
}
// Dynamic shared memory of the block, aligned to 16 bytes.
__device__ inline void* BlockMemory() {
  extern __shared__ uint4 blockserve_block_memory[];
  return blockserve_block_memory;
}
__device__ inline uint16_t Bf16Bits(float value) {
  return __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ inline void CheckAligned(const void*, uintptr_t) {}

// Runs `kernel` on a grid of one-dimensional blocks. The emulation defines the same function.
template <typename... Parameters, typename... Arguments>
absl::Status LaunchKernel(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                          int64_t shared_bytes, StreamHandle stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  return CudaStatus(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

}  // namespace blockserve::cuda

#endif
#endif  // BLOCKSERVE_KERNELS_CUDA_DEVICE_CODE_H_
