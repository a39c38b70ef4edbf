// Random numbers for ids, seeds and incarnations: nothing that a result may depend on.
#ifndef BLOCKSERVE_COMMON_RANDOM_BITS_H_
#define BLOCKSERVE_COMMON_RANDOM_BITS_H_

#include <cstdint>

#include "absl/random/random.h"

namespace blockserve {

// Thread-safe. Not std::random_device: where the processor is virtual, each of those asks the host,
// which takes as long as all else that a refused request costs.
inline uint64_t RandomBits() {
  thread_local absl::BitGen generator;
  return generator();
}

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_RANDOM_BITS_H_
