// One token from one row of logits, as docs/sampling.md defines it.
#ifndef BLOCKSERVE_MODEL_SAMPLER_H_
#define BLOCKSERVE_MODEL_SAMPLER_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/aligned_buffer.h"
#include "kernels/cpu/cpu_kernels.h"
#include "model/engine.h"

namespace blockserve {

// Longest lists of best ids that a draw takes in place of all logits.
inline constexpr int32_t kMaxBest = 128;

// Natural log-probability of a token over the whole vocabulary.
float RawLogprob(const LogitStatistics& statistics, float logit);

struct TokenLogit {
  float value = 0;
  int32_t token = 0;
};
// The order of "best": by logit descending, then id ascending.
inline bool IsBetter(const TokenLogit& a, const TokenLogit& b) {
  return a.value > b.value || (a.value == b.value && a.token < b.token);
}

// How many of the best ids below `limit`, by raw logit, are all that drawing at a position needs.
struct BestNeeded {
  int32_t count = 0;  // 0: the whole row of logits is needed
  int32_t limit = 0;
};

// The scratch of one thread. Nothing is kept from one draw to the next.
class Sampler {
 public:
  Sampler(const CpuKernels& kernels, int32_t vocab_size);
  // False when there was no memory for the scratch: nothing may be drawn then.
  bool has_memory() const { return adjusted_.data() != nullptr && weights_.data() != nullptr; }

  // Draws the token at `position` after `block_tokens` (forced ones included). `logits` [V padded
  // to 16], with finite statistics. Errors: INVALID_ARGUMENT when no id is left to draw.
  absl::StatusOr<int32_t> Draw(const float* logits, const LogitStatistics& statistics,
                               const TokenRow& row, absl::Span<const int32_t> block_tokens,
                               int64_t position);

  // What DrawFromBest needs to draw at `position`.
  BestNeeded NeededToDraw(const TokenRow& row, int64_t position) const;
  // The same token from the best ids alone, sorted by IsBetter: as many as NeededToDraw says, or
  // more.
  absl::StatusOr<int32_t> DrawFromBest(absl::Span<const TokenLogit> best, const TokenRow& row,
                                       int64_t position);

  // The `count` best ids, by logit descending, then id ascending.
  std::vector<TokenLogprob> Top(const float* logits, const LogitStatistics& statistics,
                                int32_t count);

 private:
  struct Candidate : TokenLogit {
    float weight = 0;
    uint64_t mass = 0;
  };

  int64_t NumIds(const TokenRow& row) const {
    return row.vocab_limit > 0 ? row.vocab_limit : vocab_size_;
  }
  // Draws among candidates_, whose order does not matter, the ids [0, n).
  absl::StatusOr<int32_t> DrawFromCandidates(const SamplingParameters& sampling, uint64_t bits,
                                             int64_t n);

  // Writes the adjusted logits of ids below `n` to adjusted_.
  void Adjust(const float* logits, const TokenRow& row, absl::Span<const int32_t> block_tokens,
              bool ban_stop_ids, int64_t n);
  void Penalize(const SamplingParameters& sampling, const TokenCount& count);
  // The ids that top-k and top-p keep, in candidates_.
  void Select(const float* values, int64_t n, float max, const SamplingParameters& sampling);
  // Cuts candidates_ to the shortest beginning, by value descending and id ascending, of at least
  // `needed` mass.
  void CutToMass(uint64_t needed);
  uint64_t TotalMass(int64_t n, float min_weight) const;

  const CpuKernels& kernels_;
  int32_t vocab_size_;
  AlignedBuffer adjusted_;  // [V padded to 16] float
  AlignedBuffer weights_;   // [V padded to 16] float
  std::vector<Candidate> candidates_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_SAMPLER_H_
