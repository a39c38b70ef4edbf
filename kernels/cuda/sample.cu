// A block of threads a row of logits. docs/sampling.md defines what is computed; the sections named
// below are its.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/sample.h"
#include "kernels/philox.h"

namespace blockserve::cuda {
namespace {

constexpr int kMaxWarps = kSampleThreads / kWarp;
constexpr int kBins = 256;
constexpr int kBinsPerLane = kBins / kWarp;
// The best ids have 2^40.
constexpr float kMassUnits = 0x1p40f;
// Selection looks first at ids within so much of the largest logit, divided by the temperature;
// the last reach is everything.
constexpr int kReaches = 4;

using Mass = unsigned long long;  // what atomicAdd takes

// The largest of values and its lowest id.
struct Largest {
  float value;
  int32_t id;
};
// Of some logits.
struct PartialSum {
  Largest largest;
  float sum;  // of exp(logit - largest); 0 of none
  int32_t finite;
};

struct BlockShared {
  // Of the warps, while they are joined.
  Mass masses[kMaxWarps];
  PartialSum sums[kMaxWarps];
  Largest largest[kMaxWarps];
  int32_t ints[kMaxWarps];
  Mass bins[kBins];
  // From one thread to all.
  Mass found_mass;
  int32_t found;
  int32_t flagged[kMaxTokenPositions];  // tokens of the block that `counts` holds
  float top_values[kMaxSampleTop];
  int32_t top_ids[kMaxSampleTop];
  int32_t top_count;
};

__device__ int Threads() { return static_cast<int>(blockDim.x); }
__device__ int Warps() { return Threads() / kWarp; }

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

__device__ bool BlockAny(bool value, BlockShared& shared) {
  return BlockJoin(value ? 1 : 0, shared.ints, [](int a, int b) { return a | b; }) != 0;
}

// Leaves the warps' sums in shared.masses.
__device__ Mass BlockSum(Mass value, BlockShared& shared) {
  return BlockJoin(value, shared.masses, [](Mass a, Mass b) { return a + b; });
}

__device__ Largest LargerOf(const Largest& a, const Largest& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id) ? a : b;
}
__device__ Largest FindLargest(const float* values, int32_t n, BlockShared& shared) {
  Largest largest = {-Infinity(), n};
#pragma unroll 4
  for (int32_t i = threadIdx.x; i < n; i += Threads()) {
    if (values[i] > largest.value) largest = {values[i], i};
  }
  return BlockJoin(largest, shared.largest, LargerOf);
}

// --- Section 1

struct Statistics {
  Largest largest;
  double log_sum;  // of exp(logit - largest)
  bool finite;
};

// These exponentials need not have the CPU's bits: the device's own are quicker, within 2^-21, and
// only small ones are less exact.
__device__ PartialSum JoinSums(const PartialSum& a, const PartialSum& b) {
  PartialSum joined;
  joined.largest = LargerOf(a.largest, b.largest);
  joined.finite = a.finite & b.finite;
  joined.sum = 0.0f;
  if (a.sum > 0.0f) joined.sum += a.sum * __expf(a.largest.value - joined.largest.value);
  if (b.sum > 0.0f) joined.sum += b.sum * __expf(b.largest.value - joined.largest.value);
  return joined;
}

// Takes `count` logits from id `id` on, at most four.
__device__ void TakeLogits(const float* x, int count, int32_t id, PartialSum& part) {
  Largest largest = {-Infinity(), id};
  for (int j = 0; j < count; ++j) {
    if (!IsFinite(x[j])) part.finite = 0;
    if (x[j] > largest.value) largest = {x[j], id + j};
  }
  if (largest.value > part.largest.value) {
    part.sum *= __expf(part.largest.value - largest.value);
    part.largest = largest;
  }
  for (int j = 0; j < count; ++j) part.sum += __expf(x[j] - part.largest.value);
}

// Groups of four: thread t has the groups t, t + threads, …
__device__ Statistics TakeStatistics(const float* logits, int32_t n, BlockShared& shared) {
  PartialSum part = {{-Infinity(), n}, 0.0f, 1};
  const int32_t groups = n / 4;
#pragma unroll 4
  for (int32_t i = threadIdx.x; i < groups; i += Threads()) {
    float x[4];
    Load4(logits + 4 * i, x);
    TakeLogits(x, 4, 4 * i, part);
  }
  if (static_cast<int32_t>(threadIdx.x) == groups % Threads() && n % 4 != 0) {
    TakeLogits(logits + 4 * groups, n % 4, 4 * groups, part);
  }
  part = BlockJoin(part, shared.sums, JoinSums);
  return {part.largest, part.finite != 0 ? ExactLogOf(static_cast<double>(part.sum)) : 0.0,
          part.finite != 0};
}

__device__ float RawLogprob(const Statistics& statistics, float logit) {
  return static_cast<float>(
      (static_cast<double>(logit) - static_cast<double>(statistics.largest.value)) -
      statistics.log_sum);
}

// --- The order by logit descending, then id ascending

// Whole numbers in the order of the values; -0 is 0.
__device__ uint32_t OrderKey(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ float ValueOfKey(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

// A beginning of the order: what lies before `key`, and of its equals the ids up to `last`.
struct Beginning {
  uint32_t key = 0;
  int32_t last = 0x7fffffff;
  __device__ bool Has(uint32_t other, int32_t id) const {
    return other > key || (other == key && id <= last);
  }
};

// Ids [begin, end) in one piece a warp: whole groups of lanes.
struct Pieces {
  int32_t begin;
  int32_t end;
  int32_t size;

  __device__ Pieces(int32_t begin, int32_t end)
      : begin(begin), end(end), size((end - begin + Threads() - 1) / Threads() * kWarp) {}

  // Leaves the sum of share(id) over each piece in shared.masses; returns that over all.
  template <typename Share>
  __device__ Mass Sum(const Share& share, BlockShared& shared) const {
    const int32_t first = begin + static_cast<int32_t>(threadIdx.x) / kWarp * size;
    const int32_t last = first + size < end ? first + size : end;
    Mass sum = 0;
#pragma unroll 4
    for (int32_t i = first + threadIdx.x % kWarp; i < last; i += kWarp) sum += share(i);
    return BlockSum(sum, shared);
  }

  // The piece, by the sums that Sum left, at which the running sum exceeds `target`, from which
  // what comes before is taken off.
  __device__ Pieces Find(Mass& target, const BlockShared& shared) const {
    int chosen = 0;
    while (chosen < Warps() - 1 && shared.masses[chosen] <= target) {
      target -= shared.masses[chosen++];
    }
    const int32_t first = begin + chosen * size;
    return Pieces(first, first + size < end ? first + size : end);
  }
};

// The first id, in ascending order, at which the running sum of share(id) exceeds `target`; the sum
// of all does. The sums of `pieces` are in shared.masses: the piece is found, every warp takes a
// piece of that, and one warp walks the last.
template <typename Share>
__device__ int32_t FindId(const Pieces& pieces, Mass target, const Share& share,
                          BlockShared& shared) {
  const Pieces inner = pieces.Find(target, shared);
  inner.Sum(share, shared);
  const Pieces last = inner.Find(target, shared);
  const int lane = threadIdx.x % kWarp;
  if (threadIdx.x < kWarp) {
    for (int32_t first = last.begin; first < last.end; first += kWarp) {
      Mass sum = first + lane < last.end ? share(first + lane) : 0;
      for (int step = 1; step < kWarp; step *= 2) {
        const Mass other = __shfl_up_sync(kAllLanes, sum, step);
        if (lane >= step) sum += other;
      }
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

// The shortest beginning of the order, of the ids below n that `within` has, whose shares add up to
// `wanted`; the shares of all of them do. Share: (id, value) -> Mass, equal for equal values.
// Values below `lowest` are known to be outside. Digits of eight bits of the key, the highest
// first.
template <typename Share>
__device__ Beginning Select(const float* values, int32_t n, const Beginning& within, float lowest,
                            Mass wanted, const Share& share, BlockShared& shared) {
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  uint32_t key = 0;
  uint32_t known = 0;  // bits of `key` that are
  Mass of_equals = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();
    for (int i = threadIdx.x; i < kBins; i += Threads()) shared.bins[i] = 0;
    __syncthreads();
    for (int32_t i = threadIdx.x; i < n; i += Threads()) {
      const float value = values[i];
      if (value < lowest) continue;
      const uint32_t other = OrderKey(value);
      if (((other ^ key) & known) != 0 || !within.Has(other, i)) continue;
      const Mass mass = share(i, value);
      if (mass > 0) atomicAdd(&shared.bins[other >> shift & 0xffu], mass);
    }
    __syncthreads();
    if (warp == 0) {
      // Lane l has the bins 255 - 8 l down to 248 - 8 l.
      Mass sum = 0;
      for (int j = 0; j < kBinsPerLane; ++j)
        sum += shared.bins[kBins - 1 - lane * kBinsPerLane - j];
      Mass upto = sum;
      for (int step = 1; step < kWarp; step *= 2) {
        const Mass other = __shfl_up_sync(kAllLanes, upto, step);
        if (lane >= step) upto += other;
      }
      const uint32_t enough = __ballot_sync(kAllLanes, upto >= wanted);
      if (lane == __ffs(enough) - 1) {
        Mass left = wanted - (upto - sum);
        int bin = kBins - 1 - lane * kBinsPerLane;
        while (left > shared.bins[bin]) left -= shared.bins[bin--];
        shared.found = bin;
        shared.found_mass = left;
      }
    }
    __syncthreads();
    wanted = shared.found_mass;
    of_equals = shared.bins[shared.found];
    key |= static_cast<uint32_t>(shared.found) << shift;
    known |= 0xffu << shift;
  }
  // How many of the equals: all, mostly.
  const Mass each = share(-1, ValueOfKey(key));
  const Mass count = (wanted + each - 1) / each;
  Beginning beginning{key, 0x7fffffff};
  if (count * each < of_equals) {
    const auto equal = [&](int32_t i) -> Mass {
      return OrderKey(values[i]) == key && within.Has(key, i) ? 1 : 0;
    };
    const Pieces pieces(0, n);
    pieces.Sum(equal, shared);
    beginning.last = FindId(pieces, count - 1, equal, shared);
  } else if (within.key == key) {
    beginning.last = within.last;
  }
  return beginning;
}

// --- Section 2: adjusted logits, in place. What an edit overwrites is saved and restored at the
// end, so that edits of one phase touch different ids: the first entry of an id takes all of them.

struct Edits {
  const SampleArgs& args;
  const SampleRow& row;
  float* logits;
  int32_t n;
  const int32_t* tokens;  // of the block, args.index of them are known

  __device__ float* saved_biases() const { return args.saved + row.saved_begin; }
  __device__ float* saved_counts() const {
    return saved_biases() + (row.bias_end - row.bias_begin);
  }
  __device__ float* saved_tokens() const {
    return saved_counts() + (row.counts_end - row.counts_begin);
  }
  __device__ float* saved_stops() const { return saved_tokens() + args.block_length; }

  __device__ bool HasPenalties() const {
    return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
           row.frequency_penalty != 0.0f;
  }
  __device__ bool Any(bool ban_stop_ids) const {
    return row.bias_end > row.bias_begin || HasPenalties() ||
           (ban_stop_ids && row.stops_end > row.stops_begin);
  }
  __device__ int32_t Occurrences(int32_t token, int32_t begin, int32_t end) const {
    int32_t count = 0;
    for (int32_t i = begin; i < end; ++i) count += tokens[i] == token ? 1 : 0;
    return count;
  }
  __device__ void Penalize(int32_t token, int32_t in_prompt, int32_t in_output) const {
    in_prompt += Occurrences(token, 0, row.forced_in_prompt);
    in_output += Occurrences(token, row.forced_in_prompt, args.index);
    float x = logits[token];
    if ((in_prompt > 0 || in_output > 0) && row.repetition_penalty != 1.0f) {
      x = x > 0.0f ? __fdiv_rn(x, row.repetition_penalty) : x * row.repetition_penalty;
    }
    if (in_output > 0) {
      x = x - row.presence_penalty;
      x = x - row.frequency_penalty * static_cast<float>(in_output);
    }
    logits[token] = x;
  }

  // Whether entry i of a list is the first of its id, which is below n.
  template <typename TokenAt>
  __device__ bool IsFirst(int32_t i, const TokenAt& token_at) const {
    const int32_t token = token_at(i);
    if (token >= n) return false;
    for (int32_t j = 0; j < i; ++j) {
      if (token_at(j) == token) return false;
    }
    return true;
  }

  __device__ void Apply(bool ban_stop_ids, BlockShared& shared) const {
    const SampleBias* biases = args.biases + row.bias_begin;
    const int32_t num_biases = row.bias_end - row.bias_begin;
    for (int32_t i = threadIdx.x; i < num_biases; i += Threads()) {
      if (!IsFirst(i, [&](int32_t j) { return biases[j].token; })) continue;
      float x = saved_biases()[i] = logits[biases[i].token];
      for (int32_t j = i; j < num_biases; ++j) {
        if (biases[j].token == biases[i].token) x += biases[j].bias;
      }
      logits[biases[i].token] = x;
    }
    __syncthreads();
    if (HasPenalties()) {
      const SampleCount* counts = args.counts + row.counts_begin;
      const int32_t num_counts = row.counts_end - row.counts_begin;
      for (int32_t i = threadIdx.x; i < args.index; i += Threads()) shared.flagged[i] = 0;
      __syncthreads();
      for (int32_t i = threadIdx.x; i < num_counts; i += Threads()) {
        const int32_t token = counts[i].token;
        for (int32_t j = 0; j < args.index; ++j) {
          if (tokens[j] == token) atomicOr(&shared.flagged[j], 1);
        }
        if (token >= n) continue;
        saved_counts()[i] = logits[token];
        Penalize(token, counts[i].in_prompt, counts[i].in_output);
      }
      __syncthreads();
      for (int32_t i = threadIdx.x; i < args.index; i += Threads()) {
        if (shared.flagged[i] != 0 || !IsFirst(i, [&](int32_t j) { return tokens[j]; })) continue;
        saved_tokens()[i] = logits[tokens[i]];
        Penalize(tokens[i], 0, 0);
      }
      __syncthreads();
    }
    if (ban_stop_ids) {
      const int32_t* stops = args.stops + row.stops_begin;
      for (int32_t i = threadIdx.x; i < row.stops_end - row.stops_begin; i += Threads()) {
        if (!IsFirst(i, [&](int32_t j) { return stops[j]; })) continue;
        saved_stops()[i] = logits[stops[i]];
        logits[stops[i]] = -Infinity();
      }
      __syncthreads();
    }
  }

  // The phases backwards.
  __device__ void Undo(bool ban_stop_ids, BlockShared& shared) const {
    __syncthreads();
    if (ban_stop_ids) {
      const int32_t* stops = args.stops + row.stops_begin;
      for (int32_t i = threadIdx.x; i < row.stops_end - row.stops_begin; i += Threads()) {
        if (IsFirst(i, [&](int32_t j) { return stops[j]; })) logits[stops[i]] = saved_stops()[i];
      }
      __syncthreads();
    }
    if (HasPenalties()) {
      for (int32_t i = threadIdx.x; i < args.index; i += Threads()) {
        if (shared.flagged[i] == 0 && IsFirst(i, [&](int32_t j) { return tokens[j]; })) {
          logits[tokens[i]] = saved_tokens()[i];
        }
      }
      __syncthreads();
      const SampleCount* counts = args.counts + row.counts_begin;
      for (int32_t i = threadIdx.x; i < row.counts_end - row.counts_begin; i += Threads()) {
        if (counts[i].token < n) logits[counts[i].token] = saved_counts()[i];
      }
      __syncthreads();
    }
    const SampleBias* biases = args.biases + row.bias_begin;
    for (int32_t i = threadIdx.x; i < row.bias_end - row.bias_begin; i += Threads()) {
      if (IsFirst(i, [&](int32_t j) { return biases[j].token; })) {
        logits[biases[i].token] = saved_biases()[i];
      }
    }
    __syncthreads();
  }
};

// --- Section 4

__device__ float WeightOf(float value, float max, float temperature) {
  const float difference = value - max;
  // Division by 1 changes no bit.
  return Exp(temperature == 1.0f ? difference : __fdiv_rn(difference, temperature));
}
__device__ Mass MassOf(float weight) { return static_cast<Mass>(weight * kMassUnits); }

// The first of the reaches that holds `wanted` shares, as the lowest value within it.
template <typename Share>
__device__ float Reach(const float* values, int32_t n, float max, float temperature, Mass wanted,
                       const Share& share, BlockShared& shared) {
  float lowest[kReaches - 1];
  Mass sums[kReaches - 1];
  for (int j = 0; j < kReaches - 1; ++j) {
    lowest[j] = max - static_cast<float>(4 << j) * temperature;
    sums[j] = 0;
  }
  for (int32_t i = threadIdx.x; i < n; i += Threads()) {
    const float value = values[i];
    if (value < lowest[kReaches - 2]) continue;
    const Mass mass = share(i, value);
    for (int j = 0; j < kReaches - 1; ++j) sums[j] += value >= lowest[j] ? mass : 0;
  }
  for (int j = 0; j < kReaches - 1; ++j) {
    if (BlockSum(sums[j], shared) >= wanted) return lowest[j];
  }
  return -Infinity();
}

// -1 when no id is left.
__device__ int32_t Draw(const float* values, int32_t n, const Largest& largest,
                        const SampleRow& row, int64_t position, BlockShared& shared) {
  const float max = largest.value;
  if (!IsFinite(max)) return -1;
  if (row.temperature == 0.0f) return largest.id;

  const float temperature = row.temperature;
  const auto mass_of = [&](int32_t /*id*/, float value) -> Mass {
    return MassOf(WeightOf(value, max, temperature));
  };
  Beginning kept;
  if (row.top_k > 0 && row.top_k < n) {
    const auto one = [](int32_t /*id*/, float /*value*/) -> Mass { return 1; };
    const Mass wanted = row.top_k;
    const float lowest = Reach(values, n, max, temperature, wanted, one, shared);
    kept = Select(values, n, kept, lowest, wanted, one, shared);
  }
  if (row.top_p < 1.0f) {
    Mass mine = 0;
    for (int32_t i = threadIdx.x; i < n; i += Threads()) {
      if (kept.Has(OrderKey(values[i]), i)) mine += mass_of(i, values[i]);
    }
    const Mass total = BlockSum(mine, shared);
    Mass needed =
        static_cast<Mass>(ceil(static_cast<double>(row.top_p) * static_cast<double>(total)));
    if (needed < 1) needed = 1;
    if (needed > total) needed = total;
    const auto mass_within = [&](int32_t id, float value) -> Mass {
      return kept.Has(OrderKey(value), id) ? mass_of(id, value) : 0;
    };
    const float lowest = Reach(values, n, max, temperature, needed, mass_within, shared);
    kept = Select(values, n, kept, lowest, needed, mass_of, shared);
  }
  const auto drawn_mass = [&](int32_t i) -> Mass {
    const float value = values[i];
    if (!kept.Has(OrderKey(value), i)) return 0;
    const float weight = WeightOf(value, max, temperature);
    return weight >= row.min_p ? MassOf(weight) : 0;
  };
  const Pieces pieces(0, n);
  const Mass total = pieces.Sum(drawn_mass, shared);
  const Mass bits = DrawBits(row.seed, row.choice, static_cast<uint64_t>(position));
  return FindId(pieces, __umul64hi(bits, total), drawn_mass, shared);
}

// --- The best ids, of raw logits

__device__ void WriteTop(const SampleArgs& args, int64_t r, const float* logits, int32_t count,
                         const Statistics& statistics, BlockShared& shared) {
  const int32_t n = args.vocab_size;
  const auto one = [](int32_t /*id*/, float /*value*/) -> Mass { return 1; };
  const float lowest = Reach(logits, n, statistics.largest.value, 1.0f, count, one, shared);
  const Beginning best = Select(logits, n, Beginning(), lowest, count, one, shared);
  if (threadIdx.x == 0) shared.top_count = 0;
  __syncthreads();
  // In any order, then by rank.
  for (int32_t i = threadIdx.x; i < n; i += Threads()) {
    if (!best.Has(OrderKey(logits[i]), i)) continue;
    const int32_t at = atomicAdd(&shared.top_count, 1);
    shared.top_ids[at] = i;
    shared.top_values[at] = logits[i];
  }
  __syncthreads();
  for (int32_t i = threadIdx.x; i < count; i += Threads()) {
    const float value = shared.top_values[i];
    const int32_t id = shared.top_ids[i];
    int32_t rank = 0;
    for (int32_t j = 0; j < count; ++j) {
      const float other = shared.top_values[j];
      rank += other > value || (other == value && shared.top_ids[j] < id) ? 1 : 0;
    }
    const int64_t at = (r * args.block_length + args.index) * args.top_stride + rank;
    args.top_tokens[at] = id;
    args.top_logprobs[at] = RawLogprob(statistics, value);
  }
}

__global__ void __launch_bounds__(kSampleThreads, 2) SampleKernel(SampleArgs args) {
  auto& shared = *static_cast<BlockShared*>(BlockMemory());
  const int64_t r = blockIdx.x;
  const SampleRow row = args.sample_rows[r];
  const SampleState state = args.states[r];
  int32_t* tokens = args.tokens + r * args.block_length;
  float* logits = args.logits + r * args.logits_stride;
  const bool forced = args.index < row.forced;
  __syncthreads();  // the state has been read before anyone changes it

  const auto finish = [&](SampleStatus status, int32_t token, int32_t length) {
    if (threadIdx.x != 0) return;
    tokens[args.index] = token;
    args.states[r] = {status, length};
  };
  const auto status_after = [&](int32_t length) {
    return length >= row.limit ? SampleStatus::kDone : SampleStatus::kRunning;
  };
  if (args.index >= row.limit || state.status != SampleStatus::kRunning) {
    if (threadIdx.x == 0) tokens[args.index] = 0;
    return;
  }
  if (forced && row.score_forced == 0) {
    finish(status_after(args.index + 1), tokens[args.index], args.index + 1);
    return;
  }

  const Statistics statistics = TakeStatistics(logits, args.vocab_size, shared);
  if (!statistics.finite) {
    finish(SampleStatus::kNotFinite, 0, args.index);
    return;
  }
  if (row.top_logprobs > 0) {
    WriteTop(args, r, logits, row.top_logprobs, statistics, shared);
  }
  int32_t token = tokens[args.index];
  bool stopped = false;
  if (!forced) {
    const int32_t n = row.vocab_limit > 0 ? row.vocab_limit : args.vocab_size;
    const int64_t position = row.position + (args.index - row.forced);
    const bool ban_stop_ids = position < row.min_tokens_position;
    const Edits edits{args, row, logits, n, tokens};
    const bool edited = edits.Any(ban_stop_ids);
    if (edited) edits.Apply(ban_stop_ids, shared);
    const Largest largest =
        edited || n < args.vocab_size ? FindLargest(logits, n, shared) : statistics.largest;
    token = Draw(logits, n, largest, row, position, shared);
    if (edited) edits.Undo(ban_stop_ids, shared);
    if (token < 0) {
      finish(SampleStatus::kNothingLeft, 0, args.index);
      return;
    }
    bool is_stop = false;
    for (int32_t i = row.stops_begin + threadIdx.x; i < row.stops_end; i += Threads()) {
      is_stop = is_stop || args.stops[i] == token;
    }
    stopped = BlockAny(is_stop, shared);
  }
  if (threadIdx.x == 0) {
    args.logprobs[r * args.block_length + args.index] = RawLogprob(statistics, logits[token]);
  }
  finish(stopped ? SampleStatus::kStopped : status_after(args.index + 1), token, args.index + 1);
}

}  // namespace

absl::Status Sample(const SampleArgs& args, StreamHandle stream) {
  if (args.rows < 0 || args.rows > 0x7fffffff || args.vocab_size < 1 ||
      args.logits_stride < args.vocab_size || args.logits_stride % 4 != 0 ||
      args.block_length < 1 || args.block_length > kMaxTokenPositions || args.index < 0 ||
      args.index >= args.block_length) {
    return absl::InvalidArgumentError(
        absl::StrCat("Sample: ", args.rows, " rows of ", args.vocab_size, " logits, stride ",
                     args.logits_stride, ", token ", args.index, " of ", args.block_length));
  }
  if (args.rows == 0) return absl::OkStatus();
  return LaunchKernel("Sample", SampleKernel, dim3(static_cast<uint32_t>(args.rows)),
                      SampleThreads(args.vocab_size), sizeof(BlockShared), stream, args);
}

}  // namespace blockserve::cuda
