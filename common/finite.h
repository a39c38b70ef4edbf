// Whether numbers that came from elsewhere are numbers.
#ifndef BLOCKSERVE_COMMON_FINITE_H_
#define BLOCKSERVE_COMMON_FINITE_H_

#include <bit>
#include <cstdint>

#include "absl/types/span.h"

namespace blockserve {

// None is an infinity or a NaN. Looks at all of them, without a branch: compilers make vectors of
// that where they are asked to (blockserve_vectorize in cmake/), and rows are nearly always finite.
inline bool AllFinite(absl::Span<const float> values) {
  constexpr uint32_t kExponent = 0x7f800000u;
  uint32_t infinite = 0;
  for (const float value : values) {
    infinite |= (std::bit_cast<uint32_t>(value) & kExponent) == kExponent ? 1u : 0u;
  }
  return infinite == 0;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_FINITE_H_
