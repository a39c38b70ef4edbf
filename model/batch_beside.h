// When an engine that computes beside the host is given a second batch: of both compute tiers.
#ifndef BLOCKSERVE_MODEL_BATCH_BESIDE_H_
#define BLOCKSERVE_MODEL_BATCH_BESIDE_H_

#include <algorithm>
#include <cstdint>

namespace blockserve {

// Whether `waiting` rows (blocks of a block decoder) are to be given to it beside the `newest` ones
// that are under way: what is worth the reading of the weights, and about as large, so that the two
// stay so.
inline bool IsWorthABatchBeside(int64_t waiting, int64_t newest) {
  return waiting >= std::max<int64_t>(64, newest / 2);
}

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_BATCH_BESIDE_H_
