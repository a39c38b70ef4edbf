// The batch sizes for which the CUDA engines capture a graph.
#ifndef BLOCKSERVE_MODEL_CUDA_BATCH_LADDER_H_
#define BLOCKSERVE_MODEL_CUDA_BATCH_LADDER_H_

#include <cstdint>
#include <vector>

namespace blockserve {

// Powers of two up to 64, the row tile of the products; then multiples of 64, at most an eighth
// (and at least 64) apart; `max_rows` (>= 1) is the last one. A batch runs in the smallest size
// that holds it, the rest being rows that are none.
class BatchLadder {
 public:
  BatchLadder() = default;
  explicit BatchLadder(int32_t max_rows);

  const std::vector<int32_t>& sizes() const { return sizes_; }  // ascending
  int32_t max_rows() const { return sizes_.back(); }
  // Index into sizes() of the smallest size of at least `rows`, which is 1 to max_rows().
  int32_t StepFor(int32_t rows) const;

 private:
  std::vector<int32_t> sizes_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_BATCH_LADDER_H_
