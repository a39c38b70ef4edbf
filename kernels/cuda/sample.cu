// A block of threads a row of logits. docs/sampling.md defines what is computed; the sections named
// below are its.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/sample_block.h"
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
__device__ Statistics TakeStatistics(const float* logits, int32_t n, SampleShared& shared) {
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

__device__ float WeightOf(float value, float max, float temperature) {
  const float difference = value - max;
  // Division by 1 changes no bit.
  return Exp(temperature == 1.0f ? difference : __fdiv_rn(difference, temperature));
}
// -1 when no id is left.
__device__ int32_t Draw(const float* values, int32_t n, const Largest& largest,
                        const SampleRow& row, int64_t position, SampleShared& shared) {
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
    kept = Select(values, n, kept, max, temperature, wanted, one, shared);
  }
  if (row.top_p < 1.0f) {
    Mass mine = 0;
    ForEachLogit(values, n, [&](int32_t id, float value) {
      if (kept.Has(OrderKey(value), id)) mine += mass_of(id, value);
    });
    const Mass total = BlockSum(mine, shared);
    Mass needed =
        static_cast<Mass>(ceil(static_cast<double>(row.top_p) * static_cast<double>(total)));
    if (needed < 1) needed = 1;
    if (needed > total) needed = total;
    kept = Select(values, n, kept, max, temperature, needed, mass_of, shared);
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
                      SampleThreads(args.vocab_size), sizeof(SampleShared), stream, args);
}

}  // namespace blockserve::cuda
