// The best ids of a row in shared memory, where selecting and drawing among them costs little: what
// top-k and top-p keep is mostly a few hundred ids of a vocabulary. For the .cu file that holds
// Sample. Whatever the order of the threads, results are the same.
#ifndef BLOCKSERVE_KERNELS_CUDA_SAMPLE_CANDIDATES_H_
#define BLOCKSERVE_KERNELS_CUDA_SAMPLE_CANDIDATES_H_

#include "kernels/cuda/sample_select.h"

namespace blockserve::cuda {

// How far values lie below the largest, in bins of a sixteenth of the temperature; of 1, where the
// temperature is less. A better value has no higher bin.
class Distances {
 public:
  __device__ Distances(float largest, float temperature)
      : largest_(largest), scale_(16.0f / (temperature > 1.0f ? temperature : 1.0f)) {}
  // kBins or more for what is too far, or no number.
  __device__ uint32_t BinOf(float value) const {
    // In the last places of a float from 2^23 on are whole numbers.
    return __float_as_uint(__fmaf_rn(largest_ - value, scale_, 0x1p23f)) - 0x4b000000u;
  }

 private:
  float largest_;
  float scale_;
};

// How many bins to take, by the ids in each (shared.low_bins): the fewest with `least` ids, or,
// where that is 0, the most whose ids have room. 0: there are none, or there is no room.
__device__ inline uint32_t ChooseBins(uint32_t least, SampleShared& shared) {
  constexpr int kBinsPerLane = kBins / kWarp;
  if (threadIdx.x < kWarp) {
    const uint32_t* counts = shared.low_bins + threadIdx.x * kBinsPerLane;
    uint32_t sum = 0;
    for (int j = 0; j < kBinsPerLane; ++j) sum += counts[j];
    uint32_t before = WarpSumUpTo(sum) - sum;
    uint32_t bins = 0;
    uint32_t ids = 0;
    for (int j = 0; j < kBinsPerLane; ++j) {
      const uint32_t count = counts[j];
      if (least > 0 ? before < least : before + count <= kMaxCandidates) {
        ++bins;
        ids += count;
      }
      before += count;
    }
    bins = WarpSum(bins);
    ids = WarpSum(ids);
    const bool fit = ids > 0 && ids >= least && ids <= kMaxCandidates;
    if (threadIdx.x == 0) shared.found = fit ? static_cast<int32_t>(bins) : 0;
  }
  __syncthreads();
  return static_cast<uint32_t>(shared.found);
}

// Makes candidates of a beginning of the order: of at least `least` ids, or, where that is 0, of as
// many as there is room for, and then adds up the masses of all ids in `total`. False where it
// cannot: what the candidates are is not defined then.
template <typename MassOfValue>
__device__ bool GatherCandidates(const float* values, int32_t n, const Distances& distances,
                                 uint32_t least, const MassOfValue& mass_of, Mass& total,
                                 SampleShared& shared) {
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += Threads()) shared.low_bins[i] = 0;
  if (threadIdx.x == 0) shared.num_candidates = 0;
  __syncthreads();
  ForEachLogit(values, n, [&](int32_t /*id*/, float value) {
    const uint32_t bin = distances.BinOf(value);
    if (bin < kBins) atomicAdd(&shared.low_bins[bin], 1u);
  });
  __syncthreads();
  const uint32_t bins = ChooseBins(least, shared);
  if (bins == 0) return false;
  const auto add = [&](int32_t id, float value, Mass mass) {
    const int32_t at = atomicAdd(&shared.num_candidates, 1);
    shared.candidate_keys[at] = OrderKey(value);
    shared.candidate_ids[at] = id;
    shared.candidate_masses[at] = mass;
  };
  if (least > 0) {
    ForEachLogit(values, n, [&](int32_t id, float value) {
      if (distances.BinOf(value) < bins) add(id, value, mass_of(value));
    });
    __syncthreads();
  } else {
    Mass mine = 0;
    ForEachLogit(values, n, [&](int32_t id, float value) {
      const Mass mass = mass_of(value);
      if (value > -Infinity()) mine += mass;  // not what is no number
      if (distances.BinOf(value) < bins) add(id, value, mass);
    });
    total = BlockSum(mine, shared);
  }
  return true;
}

// The sum of share(i) over the candidates.
template <typename Share>
__device__ Mass SumCandidates(const Share& share, SampleShared& shared) {
  Mass mine = 0;
  for (int32_t i = threadIdx.x; i < shared.num_candidates; i += Threads()) mine += share(i);
  return BlockSum(mine, shared);
}

// The candidate with the lowest of ids below n at which the running sum of share(i), by ascending
// id, reaches `wanted`.
template <typename Share>
__device__ int32_t FindCandidateId(int32_t n, Mass wanted, const Share& share,
                                   SampleShared& shared) {
  const auto key = [&](int32_t i) {
    return static_cast<uint32_t>(n - 1 - shared.candidate_ids[i]);
  };
  Mass of_equals;
  // One key more than there are ids, which may be one.
  const uint32_t found =
      SelectCandidate(0, static_cast<uint32_t>(n) + 1, key, share, wanted, of_equals, shared);
  return n - 1 - static_cast<int32_t>(found);
}

// The shortest beginning of the order, of the candidates that `within` has, whose shares add up to
// `wanted`; the shares of all of them do. share(i) is the same for candidates of one value.
template <typename Share>
__device__ Beginning SelectFromCandidates(int32_t n, const Beginning& within, uint32_t largest_key,
                                          Mass wanted, const Share& share, SampleShared& shared) {
  const auto key_of = [&](int32_t i) { return shared.candidate_keys[i]; };
  const auto share_of = [&](int32_t i) -> Mass {
    return within.Has(shared.candidate_keys[i], shared.candidate_ids[i]) ? share(i) : 0;
  };
  Mass of_equals;
  const uint32_t key =
      SelectCandidate(0, largest_key + 1, key_of, share_of, wanted, of_equals, shared);
  Beginning beginning{key, 0x7fffffff};
  if (wanted < of_equals) {
    const auto of_equal = [&](int32_t i) -> Mass {
      return shared.candidate_keys[i] == key ? share_of(i) : 0;
    };
    beginning.last = FindCandidateId(n, wanted, of_equal, shared);
  } else if (within.key == key) {
    beginning.last = within.last;
  }
  return beginning;
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_SAMPLE_CANDIDATES_H_
