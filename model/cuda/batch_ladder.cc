#include "model/cuda/batch_ladder.h"

#include <algorithm>

namespace blockserve {
namespace {

constexpr int32_t kTile = 64;

}  // namespace

BatchLadder::BatchLadder(int32_t max_rows) {
  for (int32_t size = 1; size < max_rows;) {
    sizes_.push_back(size);
    size = size < kTile ? 2 * size : size + std::max(kTile, size / 8 / kTile * kTile);
  }
  sizes_.push_back(max_rows);
}

int32_t BatchLadder::StepFor(int32_t rows) const {
  return static_cast<int32_t>(std::lower_bound(sizes_.begin(), sizes_.end(), rows) -
                              sizes_.begin());
}

}  // namespace blockserve
