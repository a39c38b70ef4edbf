// A block of threads a row of logits. docs/sampling.md defines what is computed; the sections named
// below are its.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_block.h"
#include "kernels/cuda/sample_candidates.h"
#include "kernels/cuda/sample_select.h"
#include "kernels/philox.h"

namespace blockserve::cuda {
namespace {

// --- Section 1

struct Statistics {
  Largest largest;
  double log_sum;  // of exp(logit - largest)
  bool finite;
};

// What a thread has seen. Its exponentials need not have the CPU's bits.
struct PartialSum {
  float largest = -Infinity();
  int32_t group = 0;    // of those that came with `largest` the first
  float sum = 0.0f;     // of exp(logit - largest)
  float finite = 0.0f;  // NaN where a logit is not
};

// Takes groups of four, `group` the first of them. The largest, and what its id is, is looked for
// once for all of them.
template <int kGroups>
__device__ void TakeLogits(const float (&x)[kGroups][4], int32_t group, PartialSum& part) {
  float largest = part.largest;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    largest = fmaxf(largest, fmaxf(fmaxf(x[j][0], x[j][1]), fmaxf(x[j][2], x[j][3])));
  }
  if (largest > part.largest) part.group = group;
  float sum = part.sum * QuickExp(part.largest - largest);
  part.largest = largest;
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    float weights[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) weights[c] = QuickExp(x[j][c] - largest);
    sum += (weights[0] + weights[1]) + (weights[2] + weights[3]);
  }
  part.sum = sum;
}

// Groups of four: thread t has the groups t, t + threads, …
__device__ Statistics TakeStatistics(const float* logits, int32_t n, SampleShared& shared) {
  constexpr int kAtOnce = 4;
  PartialSum part;
  const int32_t groups = n / 4;
  // Whatever is not finite times zero is NaN.
  const auto look_at = [&](float x) { part.finite = __fmaf_rn(x, 0.0f, part.finite); };
  int32_t group = threadIdx.x;
  for (; group + (kAtOnce - 1) * Threads() < groups; group += kAtOnce * Threads()) {
    float x[kAtOnce][4];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) Load4(logits + 4 * (group + j * Threads()), x[j]);
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
#pragma unroll
      for (int c = 0; c < 4; ++c) look_at(x[j][c]);
    }
    TakeLogits(x, group, part);
  }
  for (; group < groups; group += Threads()) {
    float x[1][4];
    Load4(logits + 4 * group, x[0]);
#pragma unroll
    for (int c = 0; c < 4; ++c) look_at(x[0][c]);
    TakeLogits(x, group, part);
  }
  if (group == groups && n % 4 != 0) {
    float x[1][4];
    for (int c = 0; c < 4; ++c) {
      x[0][c] = -Infinity();
      if (c < n % 4) look_at(x[0][c] = logits[4 * groups + c]);
    }
    TakeLogits(x, group, part);
  }

  Statistics statistics;
  statistics.largest.value =
      BlockJoin(part.largest, shared.floats, [](float a, float b) { return fmaxf(a, b); });
  const float sum = part.sum * QuickExp(part.largest - statistics.largest.value);
  const float total = BlockJoin(part.finite == 0.0f ? sum : part.finite, shared.floats,
                                [](float a, float b) { return a + b; });
  statistics.finite = total == total;
  // One thread, mostly, looks which of its logits that was.
  int32_t id = n;
  if (part.largest == statistics.largest.value) {
#pragma unroll 1
    for (int i = 0; i < 4 * kAtOnce && id == n; ++i) {
      const int32_t at = 4 * (part.group + i / 4 * Threads()) + i % 4;
      if (at < n && logits[at] == part.largest) id = at;
    }
  }
  statistics.largest.id =
      BlockJoin(id, shared.ints, [](int32_t a, int32_t b) { return a < b ? a : b; });
  statistics.log_sum = statistics.finite ? ExactLogOf(static_cast<double>(total)) : 0.0;
  return statistics;
}

__device__ float RawLogprob(const Statistics& statistics, float logit) {
  return static_cast<float>(
      (static_cast<double>(logit) - static_cast<double>(statistics.largest.value)) -
      statistics.log_sum);
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

  // Whether an entry is the first of its id, which is below n. Those of a list follow one another;
  // the block's own tokens are few.
  __device__ bool IsFirst(const SampleBias* biases, int32_t i) const {
    return biases[i].token < n && (i == 0 || biases[i - 1].token != biases[i].token);
  }
  __device__ bool IsFirst(const int32_t* stops, int32_t i) const {
    return stops[i] < n && (i == 0 || stops[i - 1] != stops[i]);
  }
  __device__ bool IsFirstOfBlock(int32_t i) const {
    if (tokens[i] >= n) return false;
    for (int32_t j = 0; j < i; ++j) {
      if (tokens[j] == tokens[i]) return false;
    }
    return true;
  }

  __device__ void Apply(bool ban_stop_ids, SampleShared& shared) const {
    const SampleBias* biases = args.biases + row.bias_begin;
    const int32_t num_biases = row.bias_end - row.bias_begin;
    for (int32_t i = threadIdx.x; i < num_biases; i += Threads()) {
      if (!IsFirst(biases, i)) continue;
      float x = saved_biases()[i] = logits[biases[i].token];
      for (int32_t j = i; j < num_biases && biases[j].token == biases[i].token; ++j) {
        x += biases[j].bias;
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
        if (shared.flagged[i] != 0 || !IsFirstOfBlock(i)) continue;
        saved_tokens()[i] = logits[tokens[i]];
        Penalize(tokens[i], 0, 0);
      }
      __syncthreads();
    }
    if (ban_stop_ids) {
      const int32_t* stops = args.stops + row.stops_begin;
      for (int32_t i = threadIdx.x; i < row.stops_end - row.stops_begin; i += Threads()) {
        if (!IsFirst(stops, i)) continue;
        saved_stops()[i] = logits[stops[i]];
        logits[stops[i]] = -Infinity();
      }
      __syncthreads();
    }
  }

  // The phases backwards.
  __device__ void Undo(bool ban_stop_ids, SampleShared& shared) const {
    __syncthreads();
    if (ban_stop_ids) {
      const int32_t* stops = args.stops + row.stops_begin;
      for (int32_t i = threadIdx.x; i < row.stops_end - row.stops_begin; i += Threads()) {
        if (IsFirst(stops, i)) logits[stops[i]] = saved_stops()[i];
      }
      __syncthreads();
    }
    if (HasPenalties()) {
      for (int32_t i = threadIdx.x; i < args.index; i += Threads()) {
        if (shared.flagged[i] == 0 && IsFirstOfBlock(i)) {
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
      if (IsFirst(biases, i)) logits[biases[i].token] = saved_biases()[i];
    }
    __syncthreads();
  }
};

// --- Section 4

// exp((value - max) / temperature), for many values. The quotient is rounded as a division rounds
// it: from a guess that is within 1.5 units of its last place, a step makes one that is next to it,
// and the next step, with the rounded reciprocal, the rounded quotient (Markstein). Temperatures
// are brought near 1, so that nothing on the way is beyond what a float holds, except where the
// weight is 0 or 1 anyway.
class Weights {
 public:
  __device__ Weights(float max, float temperature) : max_(max) {
    int32_t exponent = static_cast<int32_t>(__float_as_uint(temperature) >> 23);
    exponent = exponent < 1 ? 1 : (exponent > 253 ? 253 : exponent);
    scale_ = __uint_as_float(static_cast<uint32_t>(254 - exponent) << 23);
    divisor_ = temperature * scale_;
    reciprocal_ = __fdiv_rn(1.0f, divisor_);
  }
  __device__ float Of(float value) const {
    const float difference = (value - max_) * scale_;
    const float guess = difference * reciprocal_;
    const float next = Improved(guess, difference);
    const float weight = Exp(Improved(next, difference));
    return guess < -88.0f ? 0.0f : weight;
  }

 private:
  __device__ float Improved(float quotient, float difference) const {
    return __fmaf_rn(__fmaf_rn(-divisor_, quotient, difference), reciprocal_, quotient);
  }

  float max_;
  float scale_;  // a power of two
  float divisor_;
  float reciprocal_;
};

__device__ Mass NeededMass(float top_p, Mass total) {
  const Mass needed =
      static_cast<Mass>(ceil(static_cast<double>(top_p) * static_cast<double>(total)));
  return needed < 1 ? 1 : (needed > total ? total : needed);
}

// Top-k, top-p and what follows, where everything that is kept has room in shared memory; else -1.
__device__ int32_t DrawFromCandidates(const float* values, int32_t n, float largest,
                                      const Weights& weights, const SampleRow& row, Mass random,
                                      SampleShared& shared) {
  const bool top_k = row.top_k > 0 && row.top_k < n;
  const auto mass_of = [&](float value) { return MassOf(weights.Of(value)); };
  Mass total = 0;
  if (!GatherCandidates(values, n, Distances(largest, row.temperature),
                        top_k ? static_cast<uint32_t>(row.top_k) : 0, mass_of, total, shared)) {
    return -1;
  }
  Beginning kept;
  const auto mass = [&](int32_t i) { return shared.candidate_masses[i]; };
  const auto kept_mass = [&](int32_t i) -> Mass {
    return kept.Has(shared.candidate_keys[i], shared.candidate_ids[i]) ? mass(i) : 0;
  };
  const uint32_t largest_key = OrderKey(largest);
  if (top_k) {
    const auto one = [](int32_t /*i*/) -> Mass { return 1; };
    kept = SelectFromCandidates(n, kept, largest_key, row.top_k, one, shared);
    total = SumCandidates(kept_mass, shared);
  }
  if (row.top_p < 1.0f) {
    const Mass needed = NeededMass(row.top_p, total);
    if (!top_k && SumCandidates(kept_mass, shared) < needed) return -1;
    kept = SelectFromCandidates(n, kept, largest_key, needed, mass, shared);
  }
  const auto drawn_mass = [&](int32_t i) -> Mass {
    const float value = ValueOfKey(shared.candidate_keys[i]);
    return row.min_p <= 0.0f || weights.Of(value) >= row.min_p ? kept_mass(i) : 0;
  };
  total = SumCandidates(drawn_mass, shared);
  return FindCandidateId(n, __umul64hi(random, total) + 1, drawn_mass, shared);
}

// -1 when no id is left.
__device__ int32_t Draw(const float* values, int32_t n, const Largest& largest,
                        const SampleRow& row, int64_t position, SampleShared& shared) {
  const float max = largest.value;
  if (!IsFinite(max)) return -1;
  if (row.temperature == 0.0f) return largest.id;

  const float temperature = row.temperature;
  const Weights weights(max, temperature);
  const Mass random = DrawBits(row.seed, row.choice, static_cast<uint64_t>(position));
  const bool top_k = row.top_k > 0 && row.top_k < n;
  if (top_k ? row.top_k <= kMaxCandidates : row.top_p < 1.0f) {
    const int32_t id = DrawFromCandidates(values, n, max, weights, row, random, shared);
    if (id >= 0) return id;
  }
  const auto mass_of = [&](int32_t /*id*/, float value) -> Mass {
    return MassOf(weights.Of(value));
  };
  Beginning kept;
  if (top_k) {
    const auto one = [](int32_t /*id*/, float /*value*/) -> Mass { return 1; };
    const Mass wanted = row.top_k;
    kept = Select(values, n, kept, max, temperature, wanted, one, shared);
  }
  if (row.top_p < 1.0f) {
    Mass mine = 0;
    const BeginningOfValues best(kept);
    ForEachLogit(values, n, [&](int32_t id, float value) {
      const Mass mass = mass_of(id, value);
      mine += best.Has(value, id) ? mass : 0;
    });
    const Mass total = BlockSum(mine, shared);
    const Mass needed = NeededMass(row.top_p, total);
    kept = Select(values, n, kept, max, temperature, needed, mass_of, shared);
  }
  const BeginningOfValues drawn(kept);
  const float least = row.min_p;
  const auto drawn_mass = [&](int32_t id, float value) -> Mass {
    const float weight = weights.Of(value);
    return MassOf(drawn.Has(value, id) && weight >= least ? weight : 0.0f);
  };
  const Pieces pieces(values, 0, n);
  const Mass total = pieces.Sum(drawn_mass, shared);
  return FindId(pieces, __umul64hi(random, total), drawn_mass, shared);
}

// --- The best ids, of raw logits

__device__ void WriteTop(const SampleArgs& args, int64_t r, const float* logits, int32_t count,
                         const Statistics& statistics, SampleShared& shared) {
  const int32_t n = args.vocab_size;
  const auto one = [](int32_t /*id*/, float /*value*/) -> Mass { return 1; };
  const Beginning best =
      Select(logits, n, Beginning(), statistics.largest.value, 1.0f, count, one, shared);
  if (threadIdx.x == 0) shared.top_count = 0;
  __syncthreads();
  // In any order, then by rank.
  ForEachLogit(logits, n, [&](int32_t id, float value) {
    if (!best.Has(OrderKey(value), id)) return;
    const int32_t at = atomicAdd(&shared.top_count, 1);
    shared.top_ids[at] = id;
    shared.top_values[at] = value;
  });
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
  WaitForEarlierWork();
  auto& shared = *static_cast<SampleShared*>(BlockMemory());
  const int64_t r = blockIdx.x;
  const SampleRow& row = args.sample_rows[r];  // read where it is used: registers are few
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
    // Ids that cannot be drawn seldom have the largest logit.
    const Largest largest =
        edited || statistics.largest.id >= n ? FindLargest(logits, n, shared) : statistics.largest;
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
                      SampleThreads(args.vocab_size), sizeof(SampleShared), stream, args);
}

}  // namespace blockserve::cuda
