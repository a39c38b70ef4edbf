// The time left to a request, as items of the tiers carry it.
#ifndef BLOCKSERVE_GATEWAY_REMAINING_H_
#define BLOCKSERVE_GATEWAY_REMAINING_H_

#include <algorithm>
#include <cstdint>
#include <limits>

#include "absl/time/time.h"

namespace blockserve {

// At least 1 (0 would say that there is no deadline).
inline uint32_t RemainingMs(absl::Time deadline, absl::Time now) {
  const int64_t ms = absl::ToInt64Milliseconds(deadline - now);
  return static_cast<uint32_t>(std::clamp<int64_t>(ms, 1, std::numeric_limits<uint32_t>::max()));
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_REMAINING_H_
