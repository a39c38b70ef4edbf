// Selection of the best ids of a row, by count or by mass (docs/sampling.md, section 4), and of an
// id by its place in the running sum. For the .cu file that holds Sample. Whatever the order of the
// threads, results are the same: shares are whole numbers.
#ifndef BLOCKSERVE_KERNELS_CUDA_SAMPLE_SELECT_H_
#define BLOCKSERVE_KERNELS_CUDA_SAMPLE_SELECT_H_

#include "kernels/cuda/sample_block.h"

namespace blockserve::cuda {

// --- The order by logit descending, then id ascending

// Whole numbers in the order of the values; -0 is 0.
__device__ inline uint32_t OrderKey(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float ValueOfKey(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// A beginning of the order: what lies before `key`, and of its equals the ids up to `last`.
struct Beginning {
  uint32_t key = 0;
  int32_t last = 0x7fffffff;
  __device__ bool Has(uint32_t other, int32_t id) const {
    return (other > key) | ((other == key) & (id <= last));
  }
};

// The same for values of which none is NaN: fewer instructions than their keys take.
struct BeginningOfValues {
  float least;
  int32_t last;
  __device__ explicit BeginningOfValues(const Beginning& beginning)
      : least(beginning.key == 0 ? -Infinity() : ValueOfKey(beginning.key)), last(beginning.last) {}
  __device__ bool Has(float value, int32_t id) const {
    // No branch: in a warp some lane takes it anyway.
    return (value > least) | ((value == least) & (id <= last));
  }
};

// Ids [begin, end), `begin` a multiple of 32, in one piece a warp: whole groups of lanes.
struct Pieces {
  const float* values;
  int32_t begin;
  int32_t end;
  int32_t size;

  __device__ Pieces(const float* values, int32_t begin, int32_t end)
      : values(values),
        begin(begin),
        end(end),
        size((end - begin + Threads() - 1) / Threads() * kWarp) {}

  // Leaves the sum of share(id, value) over each piece in shared.masses; returns that over all. A
  // lane takes groups of four, and asks for several before it looks at the first; behind the last
  // id a group is read to its end.
  template <typename Share>
  __device__ Mass Sum(const Share& share, SampleShared& shared) const {
    const int32_t first = begin + static_cast<int32_t>(threadIdx.x) / kWarp * size;
    const int32_t last = first + size < end ? first + size : end;
    constexpr int kAtOnce = 4;
    constexpr int32_t kStep = 4 * kWarp;
    Mass sum = 0;
    int32_t i = first + static_cast<int32_t>(threadIdx.x) % kWarp * 4;
    for (; i + (kAtOnce - 1) * kStep + 3 < last; i += kAtOnce * kStep) {
      float x[kAtOnce][4];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) Load4(values + i + j * kStep, x[j]);
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sum += share(i + j * kStep + c, x[j][c]);
      }
    }
#pragma unroll 1
    for (; i < last; i += kStep) {
      float x[4];
      Load4(values + i, x);
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        if (i + c < last) sum += share(i + c, x[c]);
      }
    }
    return BlockSum(sum, shared);
  }

  // The piece, by the sums that Sum left, at which the running sum exceeds `target`, from which
  // what comes before is taken off.
  __device__ Pieces Find(Mass& target, const SampleShared& shared) const {
    int chosen = 0;
    while (chosen < Warps() - 1 && shared.masses[chosen] <= target) {
      target -= shared.masses[chosen++];
    }
    const int32_t first = begin + chosen * size;
    return Pieces(values, first, first + size < end ? first + size : end);
  }
};

// The first id, in ascending order, at which the running sum of share(id, value) exceeds `target`;
// the sum of all does. The sums of `pieces` are in shared.masses: the piece is found, every warp
// takes a piece of that, and one warp walks the last.
template <typename Share>
__device__ int32_t FindId(const Pieces& pieces, Mass target, const Share& share,
                          SampleShared& shared) {
  const Pieces inner = pieces.Find(target, shared);
  inner.Sum(share, shared);
  const Pieces last = inner.Find(target, shared);
  const int lane = threadIdx.x % kWarp;
  if (threadIdx.x < kWarp) {
    for (int32_t first = last.begin; first < last.end; first += kWarp) {
      const int32_t id = first + lane;
      const Mass sum = WarpSumUpTo(id < last.end ? share(id, last.values[id]) : Mass{0});
      const uint32_t beyond = __ballot_sync(kAllLanes, sum > target);
      if (beyond != 0) {
        if (lane == 0) shared.found = first + __ffs(beyond) - 1;
        break;
      }
      target -= __shfl_sync(kAllLanes, sum, kWarp - 1);
    }
  }
  __syncthreads();
  return shared.found;
}

// --- Selection of a beginning of the order
//
// The last key of the beginning is what is looked for. Passes over the logits narrow the keys among
// which it is, until few ids have them: those go to shared memory, where digits of eight bits of
// the key are told one after another.

// Keys [lowest, end), of which one is the last of the beginning.
struct KeyRange {
  uint32_t lowest;
  uint32_t end;
  Mass before;    // the shares of the keys from `end` on
  int32_t count;  // the ids in the range, or more
};

// The part of the range, between two of the cuts (descending; the range's end is before them, its
// lowest after), in which the last key is.
template <typename Share>
__device__ KeyRange Narrow(const float* values, int32_t n, const Beginning& within,
                           const KeyRange& range, const uint32_t* cuts, Mass wanted,
                           const Share& share, SampleShared& shared) {
  CutSums sums = {};
  ForEachLogit(values, n, [&](int32_t id, float value) {
    const uint32_t key = OrderKey(value);
    if (key < cuts[kCuts - 1] || key >= range.end || !within.Has(key, id)) return;
    const Mass mass = share(id, value);
#pragma unroll
    for (int j = 0; j < kCuts; ++j) {
      if (key < cuts[j]) continue;
      sums.masses[j] += mass;
      ++sums.counts[j];
    }
  });
  sums = BlockJoin(sums, shared.cut_sums, [](const CutSums& a, const CutSums& b) {
    CutSums joined;
    for (int j = 0; j < kCuts; ++j) {
      joined.masses[j] = a.masses[j] + b.masses[j];
      joined.counts[j] = a.counts[j] + b.counts[j];
    }
    return joined;
  });
  // The sums rise from cut to cut. Without a way out of the loop all of it stays in registers.
  KeyRange part = {cuts[0], range.end, range.before, sums.counts[0]};
#pragma unroll
  for (int j = 0; j < kCuts; ++j) {
    const Mass upto = range.before + sums.masses[j];
    if (upto >= wanted) continue;
    const bool is_last = j + 1 == kCuts;
    part.end = cuts[j];
    part.before = upto;
    part.lowest = is_last ? range.lowest : cuts[j + 1];
    part.count = (is_last ? range.count : sums.counts[j + 1]) - sums.counts[j];
  }
  return part;
}

// Cuts at thirds of the range: of its values, which lie closer than keys do where the range has
// zero in it, or, every other time and where values are not finite, of its keys, which end.
__device__ inline void CutInThirds(const KeyRange& range, bool by_value, uint32_t* cuts) {
  const float low = ValueOfKey(range.lowest);
  const float high = ValueOfKey(range.end - 1);
  by_value = by_value && IsFinite(low) && IsFinite(high - low);
#pragma unroll
  for (int j = 0; j < kCuts; ++j) {
    const int part = kCuts - 1 - j;
    uint32_t key =
        range.lowest + static_cast<uint32_t>(uint64_t{range.end - range.lowest} * part / kCuts);
    if (by_value && part > 0) {
      key = OrderKey(low + (high - low) * (static_cast<float>(part) / kCuts));
      key = key < range.lowest ? range.lowest : key;
      key = key < range.end ? key : range.end - 1;
    }
    cuts[j] = key;
  }
}

// The last key of the shortest beginning, by descending key(i), whose share(i) add up to `wanted`,
// which those of all candidates do: keys are in [lowest, end), of which there are two or more.
// Leaves in `wanted` what is wanted of its equals, and in `of_equals` what they have.
template <typename Key, typename Share>
__device__ uint32_t SelectCandidate(uint32_t lowest, uint32_t end, const Key& key,
                                    const Share& share, Mass& wanted, Mass& of_equals,
                                    SampleShared& shared) {
  constexpr int kBinsPerLane = kBins / kWarp;
  const int lane = threadIdx.x % kWarp;
  const auto mass_of_bin = [&](int bin) {
    return (static_cast<Mass>(shared.high_bins[bin]) << kLowMassBits) + shared.low_bins[bin];
  };
  // Keys from the lowest on, moved up so that the first digit has as many values as can be.
  const int spare_bits = __clz(end - lowest - 1);
  uint32_t found = 0;
  uint32_t known = 0;  // bits of `found` that are
  for (int shift = 24; shift > spare_bits - 8; shift -= 8) {
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += Threads()) {
      shared.low_bins[i] = 0;
      shared.high_bins[i] = 0;
    }
    __syncthreads();
    for (int32_t i = threadIdx.x; i < shared.num_candidates; i += Threads()) {
      const uint32_t moved = (key(i) - lowest) << spare_bits;
      if (((moved ^ found) & known) != 0) continue;
      const Mass mass = share(i);
      const uint32_t bin = moved >> shift & 0xffu;
      const uint32_t high = static_cast<uint32_t>(mass >> kLowMassBits);
      atomicAdd(&shared.low_bins[bin],
                static_cast<uint32_t>(mass) & ((uint32_t{1} << kLowMassBits) - 1));
      if (high > 0) atomicAdd(&shared.high_bins[bin], high);
    }
    __syncthreads();
    if (threadIdx.x < kWarp) {
      // Lane l has the bins 255 - 8 l down to 248 - 8 l.
      Mass sum = 0;
      for (int j = 0; j < kBinsPerLane; ++j)
        sum += mass_of_bin(kBins - 1 - lane * kBinsPerLane - j);
      const Mass upto = WarpSumUpTo(sum);
      const uint32_t enough = __ballot_sync(kAllLanes, upto >= wanted);
      if (lane == __ffs(enough) - 1) {
        Mass left = wanted - (upto - sum);
        int bin = kBins - 1 - lane * kBinsPerLane;
        while (left > mass_of_bin(bin)) left -= mass_of_bin(bin--);
        shared.found = bin;
        shared.found_mass = left;
      }
    }
    __syncthreads();
    wanted = shared.found_mass;
    of_equals = mass_of_bin(shared.found);
    found |= static_cast<uint32_t>(shared.found) << shift;
    known |= 0xffu << shift;
  }
  return lowest + (found >> spare_bits);
}

// The shortest beginning of the order, of the ids below n that `within` has, whose shares add up to
// `wanted`; the shares of all of them do. Share: (id, value) -> Mass, equal for equal values, at
// most kMassUnits. Looked at first are values within 4, 8 and 16 times `temperature` of the
// largest.
template <typename Share>
__device__ Beginning Select(const float* values, int32_t n, const Beginning& within, float largest,
                            float temperature, Mass wanted, const Share& share,
                            SampleShared& shared) {
  KeyRange range = {0, OrderKey(largest) + 1, 0, n};
  for (int pass = 0;; ++pass) {
    uint32_t cuts[kCuts];
    if (pass == 0) {
      for (int j = 0; j < kCuts; ++j) {
        cuts[j] = OrderKey(largest - static_cast<float>(4 << j) * temperature);
      }
    } else {
      CutInThirds(range, pass % 2 == 1, cuts);
    }
    range = Narrow(values, n, within, range, cuts, wanted, share, shared);
    if (range.count <= kMaxCandidates || range.end - range.lowest == 1) break;
  }
  wanted -= range.before;
  uint32_t key = range.lowest;
  Mass of_equals = range.count * share(-1, ValueOfKey(key));
  if (range.end - range.lowest > 1) {
    if (threadIdx.x == 0) shared.num_candidates = 0;
    __syncthreads();
    ForEachLogit(values, n, [&](int32_t id, float value) {
      const uint32_t other = OrderKey(value);
      if (other < range.lowest || other >= range.end || !within.Has(other, id)) return;
      const int32_t at = atomicAdd(&shared.num_candidates, 1);
      shared.candidate_keys[at] = other;
      shared.candidate_masses[at] = share(id, value);
    });
    key = SelectCandidate(
        range.lowest, range.end, [&](int32_t i) { return shared.candidate_keys[i]; },
        [&](int32_t i) { return shared.candidate_masses[i]; }, wanted, of_equals, shared);
  }
  // How many of the equals: all, mostly.
  const Mass each = share(-1, ValueOfKey(key));
  const Mass count = (wanted + each - 1) / each;
  Beginning beginning{key, 0x7fffffff};
  if (count * each < of_equals) {
    const auto equal = [&](int32_t id, float value) -> Mass {
      return OrderKey(value) == key && within.Has(key, id) ? 1 : 0;
    };
    const Pieces pieces(values, 0, n);
    pieces.Sum(equal, shared);
    beginning.last = FindId(pieces, count - 1, equal, shared);
  } else if (within.key == key) {
    beginning.last = within.last;
  }
  return beginning;
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_SAMPLE_SELECT_H_
