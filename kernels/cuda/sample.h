// One token from each row of logits, on the device, as docs/sampling.md defines it: equal logits
// give the token that the CPU engine draws, bit for bit the same weights and masses. The vocabulary
// is never sorted: ids are selected by radix on the order of the logits, by rank (top-k) or by mass
// (top-p), in whole numbers whose sums have no order; among the best in shared memory, where what
// is kept has room there.
//
// Log-probabilities are raw, over the whole vocabulary. Their sum of exponentials is taken in
// another order than the CPU's (each of SampleThreads adds every SampleThreads-th group of four, a
// tree joins them, in float32), so they agree to rounding, not to the bit.
#ifndef BLOCKSERVE_KERNELS_CUDA_SAMPLE_H_
#define BLOCKSERVE_KERNELS_CUDA_SAMPLE_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"

namespace blockserve::cuda {

// Threads of the block that samples one row.
inline constexpr int32_t kSampleThreads = 512;
inline constexpr int32_t SampleThreads(int32_t vocab_size) {
  return vocab_size > 2048 ? kSampleThreads : 128;
}
inline constexpr int32_t kMaxSampleTop = 128;  // best ids that a row can ask for

struct SampleBias {
  int32_t token = 0;
  float bias = 0;
};
// How often a token occurred before this block's forced tokens.
struct SampleCount {
  int32_t token = 0;
  int32_t in_prompt = 0;
  int32_t in_output = 0;
};

// What one row asks for; the same for all steps of a block. Ranges are [begin, end) of the arrays
// of SampleArgs. Values as ValidateTokenRow (model/engine.h) lets them through.
struct SampleRow {
  uint64_t seed = 0;
  int64_t position = 0;  // text position of the token at index `forced`
  int64_t min_tokens_position = 0;
  uint32_t choice = 0;
  int32_t limit = 0;   // tokens in the block when it is done; 0: no row
  int32_t forced = 0;  // the block's first tokens, given in SampleArgs::tokens
  int32_t forced_in_prompt = 0;
  int32_t vocab_limit = 0;   // ids >= this cannot be drawn; 0: the whole vocabulary
  int32_t top_logprobs = 0;  // best ids reported beside each token, <= kMaxSampleTop
  int32_t score_forced = 0;  // 1: report log-probabilities of the forced tokens too
  float temperature = 1;     // 0: greedy
  int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  int32_t bias_begin = 0, bias_end = 0;
  int32_t counts_begin = 0, counts_end = 0;
  int32_t stops_begin = 0, stops_end = 0;
  // Of `saved`: room for as many floats as the row has biases, counts, stop ids and L.
  int32_t saved_begin = 0;
};

enum class SampleStatus : int32_t {
  kRunning = 0,
  kDone = 1,         // `limit` tokens
  kStopped = 2,      // the last token is a stop id
  kNotFinite = 3,    // logits of the token at index `length` of the block
  kNothingLeft = 4,  // no id is left to draw for the token at index `length`
};
// Where a row stands: zeroed before a block's first step.
struct SampleState {
  SampleStatus status = SampleStatus::kRunning;
  int32_t length = 0;  // tokens of the block so far, forced ones included
};

// The step of token `index` of the block, for every row that is running. Rows whose token is forced
// take it; a row that is not running, or no row, gets the token 0.
struct SampleArgs {
  int64_t rows = 0;
  int32_t vocab_size = 0;
  // [rows, logits_stride], at a multiple of 16 bytes; changed while the kernel runs, restored after
  float* logits = nullptr;
  int64_t logits_stride = 0;  // a multiple of four
  int32_t index = 0;
  int32_t block_length = 0;                // L
  const SampleRow* sample_rows = nullptr;  // [rows], this and all below on the device
  // Of a row: entries of the same id follow one another, biases in the order in which they are
  // added. So an entry need not look at all the others to know whether it is its id's first.
  const SampleBias* biases = nullptr;
  const SampleCount* counts = nullptr;  // each id once
  const int32_t* stops = nullptr;
  float* saved = nullptr;         // scratch
  SampleState* states = nullptr;  // [rows]
  // [rows, L]: forced tokens are there before the first step, index < forced; the token of this
  // step is written.
  int32_t* tokens = nullptr;
  float* logprobs = nullptr;  // [rows, L]: of `tokens`, where reported
  // [rows, L, top_stride]: the row's top_logprobs best ids, best first, then anything. May be
  // nullptr where no row asks.
  int32_t* top_tokens = nullptr;
  float* top_logprobs = nullptr;
  int32_t top_stride = 0;
};
absl::Status Sample(const SampleArgs& args, StreamHandle stream);

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_SAMPLE_H_
