// A row of the token tier that owns what it refers to.
#ifndef BLOCKSERVE_TOKEN_SERVICE_DECODE_ROW_H_
#define BLOCKSERVE_TOKEN_SERVICE_DECODE_ROW_H_

#include <cstdint>
#include <vector>

#include "model/engine.h"
#include "model/sampling.h"

namespace blockserve {

// The fields are those of TokenRow.
struct DecodeRow {
  std::vector<float> context;   // [D]
  std::vector<int32_t> forced;  // at most L
  int32_t forced_in_prompt = 0;
  int32_t limit = 0;
  int64_t position = 0;
  uint64_t seed = 0;
  uint32_t choice = 0;
  SamplingParameters sampling;
  std::vector<int32_t> stop_ids;
  int64_t min_tokens_position = 0;
  std::vector<LogitBias> logit_bias;
  std::vector<TokenCount> counts;
  int32_t vocab_limit = 0;
  int32_t top_logprobs = 0;
  bool score_forced = false;
  bool logprobs = false;  // whether the answer tells log-probabilities at all

  // Refers to this row, which must stay where it is.
  TokenRow View() const {
    TokenRow view;
    view.context = context;
    view.forced = forced;
    view.forced_in_prompt = forced_in_prompt;
    view.limit = limit;
    view.position = position;
    view.seed = seed;
    view.choice = choice;
    view.sampling = &sampling;
    view.stop_ids = stop_ids;
    view.min_tokens_position = min_tokens_position;
    view.logit_bias = logit_bias;
    view.counts = counts;
    view.vocab_limit = vocab_limit;
    view.top_logprobs = top_logprobs;
    view.score_forced = score_forced;
    return view;
  }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_DECODE_ROW_H_
