// The block of threads that samples a row: its shared memory, how its threads join what they have,
// and how they go through the logits. For the .cu file that holds Sample.
#ifndef BLOCKSERVE_KERNELS_CUDA_SAMPLE_BLOCK_H_
#define BLOCKSERVE_KERNELS_CUDA_SAMPLE_BLOCK_H_

#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/sample.h"

namespace blockserve::cuda {

inline constexpr int kMaxWarps = kSampleThreads / kWarp;

// Shares of ids are added as whole numbers, which have no order: the best ids have 2^40. The type
// is what atomicAdd takes.
using Mass = unsigned long long;
inline constexpr float kMassUnits = 0x1p40f;
__device__ inline Mass MassOf(float weight) { return static_cast<Mass>(weight * kMassUnits); }

// The largest of values and its lowest id.
struct Largest {
  float value;
  int32_t id;
};
// Selection (sample_select.h). Ids are told apart by so many keys at once.
inline constexpr int kCuts = 3;
// What has at least the keys of the cuts, in descending order.
struct CutSums {
  Mass masses[kCuts];
  int32_t counts[kCuts];
};
// As many ids as are looked at in shared memory.
inline constexpr int kMaxCandidates = 2048;
inline constexpr int kBins = 256;
// Masses of candidates are added in two halves of 32 bits, which shared memory adds by itself; 64
// it does not.
inline constexpr int kLowMassBits = 20;
static_assert(kMaxCandidates * ((uint64_t{1} << kLowMassBits) - 1) < uint64_t{1} << 32);
static_assert(kMaxCandidates * (uint64_t{1} << (40 - kLowMassBits)) < uint64_t{1} << 32);

struct SampleShared {
  // Of the warps, while they are joined.
  Mass masses[kMaxWarps];
  CutSums cut_sums[kMaxWarps];
  float floats[kMaxWarps];
  Largest largest[kMaxWarps];
  int32_t ints[kMaxWarps];
  // In any order.
  Mass candidate_masses[kMaxCandidates];
  uint32_t candidate_keys[kMaxCandidates];
  int32_t candidate_ids[kMaxCandidates];
  int32_t num_candidates;
  uint32_t low_bins[kBins];
  uint32_t high_bins[kBins];
  // From one thread to all.
  Mass found_mass;
  int32_t found;
  int32_t flagged[kMaxTokenPositions];  // tokens of the block that `counts` holds
  float top_values[kMaxSampleTop];
  int32_t top_ids[kMaxSampleTop];
  int32_t top_count;
};

__device__ inline int Threads() { return static_cast<int>(blockDim.x); }
__device__ inline int Warps() { return Threads() / kWarp; }

// --- Joining the threads' values, by the tree of the warp and then the warps in ascending order.
// Every thread gets the result. Each begins with a barrier, so that what was read of the arrays
// before is not overwritten.

template <typename T, typename Join>
__device__ T BlockJoin(T value, T* of_warps, const Join& join) {
  for (int half = kWarp / 2; half > 0; half /= 2) value = join(value, ExchangeXor(value, half));
  __syncthreads();
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = of_warps[0];
  for (int i = 1; i < Warps(); ++i) value = join(value, of_warps[i]);
  return value;
}

__device__ inline bool BlockAny(bool value, SampleShared& shared) {
  return BlockJoin(value ? 1 : 0, shared.ints, [](int a, int b) { return a | b; }) != 0;
}

// Leaves the warps' sums in shared.masses.
__device__ inline Mass BlockSum(Mass value, SampleShared& shared) {
  return BlockJoin(value, shared.masses, [](Mass a, Mass b) { return a + b; });
}

__device__ inline Largest LargerOf(const Largest& a, const Largest& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id) ? a : b;
}
// Calls take(id, logit) for every logit, in ascending order of a thread's ids: groups of four, of
// which several are asked for before the first is looked at.
template <typename Take>
__device__ void ForEachLogit(const float* logits, int32_t n, const Take& take) {
  constexpr int kAtOnce = 4;
  const int32_t groups = n / 4;
  for (int32_t first = threadIdx.x; first < groups; first += kAtOnce * Threads()) {
    float x[kAtOnce][4];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int32_t group = first + j * Threads();
      if (group < groups) Load4(logits + int64_t{4} * group, x[j]);
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int32_t group = first + j * Threads();
      if (group >= groups) break;
#pragma unroll
      for (int c = 0; c < 4; ++c) take(4 * group + c, x[j][c]);
    }
  }
  const int32_t rest = 4 * groups + static_cast<int32_t>(threadIdx.x);
  if (rest < n) take(rest, logits[rest]);
}

__device__ inline Largest FindLargest(const float* values, int32_t n, SampleShared& shared) {
  Largest largest = {-Infinity(), n};
  ForEachLogit(values, n, [&](int32_t id, float value) {
    if (value > largest.value) largest = {value, id};
  });
  return BlockJoin(largest, shared.largest, LargerOf);
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_SAMPLE_BLOCK_H_
