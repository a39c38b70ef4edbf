// Whether numbers that came from elsewhere are numbers.
#ifndef BLOCKSERVE_COMMON_FINITE_H_
#define BLOCKSERVE_COMMON_FINITE_H_

#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/types/span.h"

namespace blockserve {

// None is an infinity or a NaN. Rows are nearly always finite: in groups of a fixed size, without a
// branch for each value, of which compilers make vector code.
inline bool AllFinite(absl::Span<const float> values) {
  constexpr size_t kGroup = 16;
  constexpr uint32_t kExponent = 0x7f800000u;
  const auto not_finite = [&values](size_t i) -> uint32_t {
    return (std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent ? 1 : 0;
  };
  uint32_t found = 0;
  size_t i = 0;
  for (; i + kGroup <= values.size(); i += kGroup) {
    for (size_t j = 0; j < kGroup; ++j) found |= not_finite(i + j);
  }
  for (; i < values.size(); ++i) found |= not_finite(i);
  return found == 0;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_FINITE_H_
