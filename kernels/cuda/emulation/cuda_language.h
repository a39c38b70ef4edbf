// CUDA's language in plain C++, as far as the kernels of kernels/cuda use it.
#ifndef BLOCKSERVE_KERNELS_CUDA_EMULATION_CUDA_LANGUAGE_H_
#define BLOCKSERVE_KERNELS_CUDA_EMULATION_CUDA_LANGUAGE_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "kernels/cuda/emulation/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct dim3 {
  uint32_t x, y, z;
  explicit dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

#define threadIdx                         \
  (::blockserve::cuda::emulation::Index3{ \
      ::blockserve::cuda::emulation::CurrentThread().thread_index, 0, 0})
#define blockIdx (::blockserve::cuda::emulation::CurrentThread().block_index)
#define blockDim                          \
  (::blockserve::cuda::emulation::Index3{ \
      ::blockserve::cuda::emulation::CurrentThread().block_threads, 1, 1})
#define gridDim (::blockserve::cuda::emulation::CurrentGrid().grid)

inline void __syncthreads(int line = __builtin_LINE()) {
  blockserve::cuda::emulation::SyncBlock(line);
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, int line = __builtin_LINE()) {
  if (mask != blockserve::cuda::emulation::kWholeWarp) std::abort();  // none of ours
  blockserve::cuda::emulation::SyncWarp(line);
}

namespace blockserve::cuda::emulation {

template <typename T>
T ExchangeValue(T value, uint32_t source, int line) {
  constexpr int kWords = (sizeof(T) + 7) / 8;
  static_assert(kWords <= kExchangeWords);
  uint64_t words[kWords] = {};
  std::memcpy(words, &value, sizeof(T));
  const auto* all = Exchange(words, kWords, line);
  std::memcpy(&value, all[source % kWarpThreads], sizeof(T));
  return value;
}

}  // namespace blockserve::cuda::emulation

template <typename T>
T __shfl_sync(uint32_t /*mask*/, T value, int source, int /*width*/ = 32,
              int line = __builtin_LINE()) {
  return blockserve::cuda::emulation::ExchangeValue(value, source, line);
}
template <typename T>
T __shfl_xor_sync(uint32_t /*mask*/, T value, int bits, int /*width*/ = 32,
                  int line = __builtin_LINE()) {
  const uint32_t lane = blockserve::cuda::emulation::CurrentThread().lane();
  return blockserve::cuda::emulation::ExchangeValue(value, lane ^ bits, line);
}
// A lane below `delta` gets its own value back.
template <typename T>
T __shfl_up_sync(uint32_t /*mask*/, T value, uint32_t delta, int /*width*/ = 32,
                 int line = __builtin_LINE()) {
  const uint32_t lane = blockserve::cuda::emulation::CurrentThread().lane();
  return blockserve::cuda::emulation::ExchangeValue(value, lane < delta ? lane : lane - delta,
                                                    line);
}
inline uint32_t __ballot_sync(uint32_t /*mask*/, bool value, int line = __builtin_LINE()) {
  return blockserve::cuda::emulation::Ballot(value, line);
}

// Threads take turns: nothing is needed to be atomic.
template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}
template <typename T>
T atomicOr(T* at, T value) {
  const T before = *at;
  *at = before | value;
  return before;
}
template <typename T>
T atomicMin(T* at, T value) {
  const T before = *at;
  if (value < before) *at = value;
  return before;
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline int64_t __double_as_longlong(double x) { return std::bit_cast<int64_t>(x); }
inline double __longlong_as_double(int64_t x) { return std::bit_cast<double>(x); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
}
inline int __ffs(uint32_t x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }
inline int __clz(uint32_t x) { return std::countl_zero(x); }
inline int __popc(uint32_t x) { return std::popcount(x); }

namespace blockserve::cuda {

// The value of the lane that differs in these bits, of any type.
template <typename T>
__device__ inline T ExchangeXor(T value, int bits, int line = __builtin_LINE()) {
  return emulation::ExchangeValue(value, emulation::CurrentThread().lane() ^ bits, line);
}
__device__ inline void WaitForEarlierWork(int line = __builtin_LINE()) {
  emulation::WaitForEarlierWork(line);
}
// Of the device's own functions the emulation has only the accuracy.
__device__ inline float QuickExp2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
__device__ inline float QuickReciprocal(float x) {
  const float y = 1.0f / x;
  return std::abs(y) < 0x1p-126f ? 0.0f : y;
}
__device__ inline void* BlockMemory() { return emulation::SharedMemory(); }
__device__ inline uint16_t Bf16Bits(float value) { return Bf16FromFloat(value); }
// What the device does to an address that is not a multiple: it faults.
__device__ inline void CheckAligned(const void* p, uintptr_t bytes) {
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0) {
    std::fprintf(stderr, "CUDA emulation: kernel %s: misaligned access of %d bytes\n",
                 emulation::CurrentGrid().name, static_cast<int>(bytes));
    std::abort();
  }
}

__device__ inline void StoreWords(void* p, uint4 words) {
  CheckAligned(p, 16);
  *static_cast<uint4*>(p) = words;
}

__device__ inline void CopyAsync16(void* shared, const void* global, bool present) {
  CheckAligned(shared, 16);
  CheckAligned(global, 16);
  emulation::CopyLater(shared, present ? global : nullptr, 16);
}
__device__ inline void CommitCopies() { emulation::CommitCopies(); }
template <int kLeft>
__device__ inline void WaitForCopies() {
  emulation::WaitForCopies(kLeft);
}

template <bool kTransposed>
__device__ inline void LoadMatrices(uint32_t* out, const void* row, int line = __builtin_LINE()) {
  CheckAligned(row, 16);
  const uint64_t word = reinterpret_cast<uint64_t>(row);
  const auto* rows = emulation::Exchange(&word, 1, line);
  const uint32_t major = emulation::CurrentThread().lane() / 4;
  const uint32_t minor = emulation::CurrentThread().lane() % 4 * 2;
  for (uint32_t j = 0; j < 4; ++j) {
    const auto element = [&](uint32_t r, uint32_t c) {
      return static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(rows[j * 8 + r][0])[c]);
    };
    out[j] = kTransposed ? element(minor, major) | element(minor + 1, major) << 16
                         : element(major, minor) | element(major, minor + 1) << 16;
  }
}

// The device's order of summation is its own: of its bits this has only the accuracy.
__device__ inline void MultiplyAdd(float* d, const uint32_t* a, const uint32_t* b,
                                   int line = __builtin_LINE()) {
  uint32_t registers[6];
  std::memcpy(registers, a, 4 * sizeof(uint32_t));
  std::memcpy(registers + 4, b, 2 * sizeof(uint32_t));
  uint64_t words[3];
  std::memcpy(words, registers, sizeof(words));
  const auto* all = emulation::Exchange(words, 3, line);
  const auto element = [&](uint32_t lane, uint32_t index, uint32_t half) {
    uint32_t bits[6];
    std::memcpy(bits, all[lane], sizeof(bits));
    return FloatFromBf16(static_cast<uint16_t>(bits[index] >> (16 * half)));
  };
  const uint32_t group = emulation::CurrentThread().lane() / 4;
  const uint32_t pair = emulation::CurrentThread().lane() % 4;
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t column = 2 * pair + j % 2;
    for (uint32_t k = 0; k < 16; ++k) {
      const uint32_t holder = k % 8 / 2;
      d[j] = std::fma(element(group * 4 + holder, j / 2 + k / 8 * 2, k % 2),
                      element(column * 4 + holder, 4 + k / 8, k % 2), d[j]);
    }
  }
}

template <typename... Parameters, typename... Arguments>
absl::Status LaunchKernel(const char* name, void (*kernel)(Parameters...), dim3 grid, int threads,
                          int64_t shared_bytes, StreamHandle stream, Arguments&&... arguments) {
  emulation::GridShape shape;
  shape.name = name;
  shape.grid = {grid.x, grid.y, grid.z};
  shape.threads = threads;
  shape.shared_bytes = shared_bytes;
  if (!shape.CanBeLaunched()) {
    return absl::InternalError(absl::StrCat(name, ": a launch of ", grid.x, " x ", grid.y, " x ",
                                            grid.z, " blocks of ", threads, " threads and ",
                                            shared_bytes, " shared bytes"));
  }
  absl::Status loaded = emulation::LoadKernel(stream, reinterpret_cast<const void*>(kernel), name);
  if (!loaded.ok()) return loaded;
  std::tuple<std::decay_t<Parameters>...> copies(arguments...);
  return emulation::Enqueue(stream, [shape, kernel, copies] {
    emulation::RunGrid(shape, [&] { std::apply(kernel, copies); });
  });
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_EMULATION_CUDA_LANGUAGE_H_
