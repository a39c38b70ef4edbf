// Parameters of sampling, as a row of the token decoder carries them. docs/sampling.md defines every
// step; model/sampler.h computes it.
#ifndef BLOCKSERVE_MODEL_SAMPLING_H_
#define BLOCKSERVE_MODEL_SAMPLING_H_

#include <cstdint>

namespace blockserve {

struct SamplingParameters {
  float temperature = 1.0f;  // 0: greedy
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // (0, 1]; 1: off
  float min_p = 0.0f;        // [0, 1]; 0: off
  float repetition_penalty = 1.0f;  // > 0; over prompt and output
  float presence_penalty = 0.0f;    // over the output
  float frequency_penalty = 0.0f;   // over the output
};

struct LogitBias {
  int32_t token = 0;
  float bias = 0;
};

// How often a token occurred before this block's forced tokens.
struct TokenCount {
  int32_t token = 0;
  int32_t in_prompt = 0;
  int32_t in_output = 0;
};

inline bool HasPenalties(const SamplingParameters& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_SAMPLING_H_
