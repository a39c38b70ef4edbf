// Cosines and sines of the rotary position embedding.
#ifndef BLOCKSERVE_MODEL_ROTARY_TABLE_H_
#define BLOCKSERVE_MODEL_ROTARY_TABLE_H_

#include <cstdint>
#include <vector>

namespace blockserve {

// Angles are rounded as the reference implementation rounds them: inverse frequencies
// base^(-2i/dims) and their products with the position in float32. Their cosines and sines come
// from our own double arithmetic: the same bits on every machine.
class RotaryTable {
 public:
  RotaryTable() = default;
  RotaryTable(int32_t dims, double base);

  // Makes rows for positions below `positions`. Pointers from before are invalid afterwards.
  void Reserve(int64_t positions);

  int32_t dims() const { return dims_; }
  const float* cos() const { return cos_.data(); }  // [positions, dims / 2]
  const float* sin() const { return sin_.data(); }

 private:
  int32_t dims_ = 0;
  int64_t positions_ = 0;
  std::vector<float> inverse_frequencies_;  // [dims / 2]
  std::vector<float> cos_;
  std::vector<float> sin_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_ROTARY_TABLE_H_
