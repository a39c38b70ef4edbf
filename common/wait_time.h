// Waits by the standard library and Boost.Asio, which add them to the time that it is: an infinite
// one would be over at once.
#ifndef BLOCKSERVE_COMMON_WAIT_TIME_H_
#define BLOCKSERVE_COMMON_WAIT_TIME_H_

#include <algorithm>
#include <chrono>

#include "absl/time/time.h"

namespace blockserve {

inline std::chrono::nanoseconds WaitTime(absl::Duration wait) {
  constexpr absl::Duration kForEver = absl::Hours(100 * 365 * 24);
  return absl::ToChronoNanoseconds(std::min(wait, kForEver));
}

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_WAIT_TIME_H_
