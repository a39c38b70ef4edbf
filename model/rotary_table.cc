#include "model/rotary_table.h"

#include <algorithm>

#include "kernels/exact_math.h"

namespace blockserve {
namespace {

// Tables grow by whole pieces, so that decoding does not allocate at every position.
constexpr int64_t kPiece = 1024;

}  // namespace

RotaryTable::RotaryTable(int32_t dims, double base) : dims_(dims) {
  const double log_base = ExactLog(base);
  for (int32_t i = 0; i < dims; i += 2) {
    const float exponent = static_cast<float>(i) / static_cast<float>(dims);
    const float power = static_cast<float>(ExactExp(static_cast<double>(exponent) * log_base));
    inverse_frequencies_.push_back(1.0f / power);
  }
}

void RotaryTable::Reserve(int64_t positions) {
  if (positions <= positions_) return;
  positions = std::max(2 * positions_, (positions + kPiece - 1) / kPiece * kPiece);
  const int64_t half = dims_ / 2;
  cos_.resize(positions * half);
  sin_.resize(positions * half);
  for (int64_t position = positions_; position < positions; ++position) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * inverse_frequencies_[i];
      double sine;
      double cosine;
      ExactSinCos(static_cast<double>(angle), &sine, &cosine);
      cos_[position * half + i] = static_cast<float>(cosine);
      sin_[position * half + i] = static_cast<float>(sine);
    }
  }
  positions_ = positions;
}

}  // namespace blockserve
