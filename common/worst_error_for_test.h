// Errors as tests collect them.
#ifndef BLOCKSERVE_COMMON_WORST_ERROR_FOR_TEST_H_
#define BLOCKSERVE_COMMON_WORST_ERROR_FOR_TEST_H_

#include <cmath>

namespace blockserve {

// The larger of two, and NaN once there was one: std::max, and a comparison with what was the worst
// so far, forget it, so that a result that is no number would pass.
inline double WorstError(double a, double b) { return std::isnan(a) || a >= b ? a : b; }

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_WORST_ERROR_FOR_TEST_H_
