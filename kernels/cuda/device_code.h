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
// 16 bytes of device memory at a multiple of 16, in one access: nvcc takes some assignments apart.
__device__ inline void StoreWords(void* p, uint4 words) { __stwb(static_cast<uint4*>(p), words); }
// 2^x as the device computes it, within 2^-22; 0 where the result would be subnormal. What __expf
// does about those takes it three instructions more.
__device__ inline float QuickExp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x as the device computes it, within one unit in the last place; 0 where that would be
// subnormal.
__device__ inline float QuickReciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 16 bytes to shared memory, without waiting: they are there, for this thread, after WaitForCopies.
// Not `present`: zeros, and nothing is read.
__device__ inline void CopyAsync16(void* shared, const void* global, bool present) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to),
               "l"(__cvta_generic_to_global(global)), "r"(present ? 16 : 0)
               : "memory");
}
// Makes one group of the copies since the last one.
__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all groups of this thread but the last kLeft.
template <int kLeft>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// Four matrices of 8 x 8 16-bit elements from shared memory, by the whole warp: lane l passes the
// row l % 8 of matrix l / 8, 16 bytes, and gets of each matrix the elements (l / 4, 2 (l % 4)) and
// (l / 4, 2 (l % 4) + 1), or those of the transposed one.
template <bool kTransposed>
__device__ inline void LoadMatrices(uint32_t* out, const void* row) {
  const uint32_t from = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(from)
                 : "memory");
  }
}

// d (16 x 8, float) += a (16 x 16) b (16 x 8), bfloat16, by the whole warp. With g = lane / 4 and
// t = lane % 4 a lane holds
//   d: (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1)
//   a: pairs of columns at (g, 2 t), (g + 8, 2 t), (g, 2 t + 8), (g + 8, 2 t + 8)
//   b: pairs of rows at (2 t, g), (2 t + 8, g)
__device__ inline void MultiplyAdd(float* d, const uint32_t* a, const uint32_t* b) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Every thread of every kernel of ours calls it once, before it touches memory that other work of
// the stream may write or read: mostly in its first statement. Before it only weights may be read,
// which are there before the stream's first kernel and are never written.
//
// On a stream of KernelLaunch::kEarly kernels are launched with "programmatic stream
// serialization", in a graph as programmatic edges. The blocks of such a kernel may begin as soon
// as every block of the kernel before it has said launch_dependents, or has ended. `wait` returns
// when the kernel before it has ended, whatever that one said, and what it wrote is seen by this
// one. Elsewhere both instructions do nothing.
//
// Why everything is in order, for kernels A, B, C … that follow one another in a stream:
// - C waits for B alone. B's last thread ends after B's wait, and so after A: by induction C comes
//   after all that was before it. That is why a kernel that reads nothing of the one before waits
//   too: past a kernel that does not, the next one would run beside an older writer. The emulation
//   ends the process where a thread ends without having waited.
// - The same holds for what C overwrites: A and B have read it when C's wait returns.
// - launch_dependents comes after the wait: when C's first block begins, A has ended. So at most
//   one kernel of a stream waits on the multiprocessors, and all blocks of the one that it waits
//   for are on them already: nobody waits for a block that finds no room.
// - What is launched without the attribute, as cuBLASLt's kernels are by us, begins after all of
//   the kernel before it: a full edge. It says no launch_dependents: our next kernel begins when
//   its blocks have ended, and waits for what they wrote. Should the library launch a kernel of its
//   own with the attribute, that one's wait is the library's affair, and the induction holds.
// - Copies, filling with zeros, events (so other streams, and the host), the end and the beginning
//   of a graph are ordered as ever: programmatic edges lie between two kernels that follow one
//   another in one stream or in one graph. Two streams share nothing but weights.
// - The compiler moves no access above the wait, because of its "memory". Loads through the
//   read-only path (__ldg, const __restrict__) are outside of that promise: kernels have none.
__device__ inline void WaitForEarlierWork() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Runs `kernel` on a grid of one-dimensional blocks. The emulation defines the same function.
template <typename... Parameters, typename... Arguments>
absl::Status LaunchKernel(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                          int64_t shared_bytes, StreamHandle stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &early;
  config.numAttrs = stream.early_launch ? 1 : 0;
  return CudaStatus(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), name);
}

}  // namespace blockserve::cuda

#endif
#endif  // BLOCKSERVE_KERNELS_CUDA_DEVICE_CODE_H_
