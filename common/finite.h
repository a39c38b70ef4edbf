// Whether numbers that came from elsewhere are numbers.
#ifndef BLOCKSERVE_COMMON_FINITE_H_
#define BLOCKSERVE_COMMON_FINITE_H_

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "absl/types/span.h"

namespace blockserve {

// None is an infinity or a NaN: these alone have an exponent of ones, which one more carries over
// into the sign's place. Two at a time and without branches, since rows are nearly always finite.
inline bool AllFinite(absl::Span<const float> values) {
  constexpr uint64_t kExponents = 0x7f8000007f800000u;
  constexpr uint64_t kOnes = 0x0080000000800000u;
  constexpr uint64_t kSigns = 0x8000000080000000u;
  constexpr size_t kGroup = 8;
  const float* from = values.data();
  size_t left = values.size();
  uint64_t found[kGroup / 2] = {};
  for (; left >= kGroup; left -= kGroup, from += kGroup) {
    uint64_t pairs[kGroup / 2];
    std::memcpy(pairs, from, sizeof(pairs));
    for (size_t i = 0; i < kGroup / 2; ++i) found[i] |= (pairs[i] & kExponents) + kOnes;
  }
  uint64_t rest[kGroup / 2] = {};
  if (left > 0) std::memcpy(rest, from, left * sizeof(float));
  uint64_t any = 0;
  for (size_t i = 0; i < kGroup / 2; ++i) any |= found[i] | ((rest[i] & kExponents) + kOnes);
  return (any & kSigns) == 0;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_FINITE_H_
