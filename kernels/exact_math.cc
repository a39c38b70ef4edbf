#include "kernels/exact_math.h"

#include <bit>
#include <cmath>
#include <cstdint>

namespace blockserve {
namespace {

// ln 2 and pi/2 as sums of doubles; the first parts have zeros at the end, so that their products
// with small integers are exact.
constexpr double kLn2High = 0x1.62e42fefa3800p-1;
constexpr double kLn2Low = 0x1.ef35793c76730p-45;
constexpr double kHalfPi1 = 0x1.921fb54400000p+0;
constexpr double kHalfPi2 = 0x1.0b4611a600000p-34;
constexpr double kHalfPi3 = 0x1.3198a2e037073p-69;

}  // namespace

double ExactLog(double x) {
  // x = m * 2^e with m in [sqrt(1/2), sqrt(2)).
  const uint64_t bits = std::bit_cast<uint64_t>(x);
  int64_t exponent = static_cast<int64_t>(bits >> 52 & 0x7ff) - 1023;
  double m = std::bit_cast<double>((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  if (m > 0x1.6a09e667f3bcdp+0) {
    m *= 0.5;
    ++exponent;
  }
  // log(m) = 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.1716.
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  double tail = 0.0;
  for (int n = 25; n >= 3; n -= 2) tail = std::fma(tail, s2, 1.0 / n);
  const double e = static_cast<double>(exponent);
  const double log_m = std::fma(2.0 * s * s2, tail, 2.0 * s);
  return std::fma(e, kLn2High, std::fma(e, kLn2Low, log_m));
}

double ExactExp(double x) {
  const double n = std::nearbyint(x * 0x1.71547652b82fep+0);
  const double r = std::fma(n, -kLn2Low, std::fma(n, -kLn2High, x));
  double sum = 1.0;
  for (int i = 16; i >= 1; --i) sum = std::fma(sum, r / i, 1.0);
  return std::ldexp(sum, static_cast<int>(n));
}

void ExactSinCos(double x, double* sin_x, double* cos_x) {
  const double n = std::nearbyint(x * 0x1.45f306dc9c883p-1);
  double r = std::fma(n, -kHalfPi1, x);
  r = std::fma(n, -kHalfPi2, r);
  r = std::fma(n, -kHalfPi3, r);
  const double r2 = r * r;
  double sin_r = 1.0;
  for (int i = 20; i >= 2; i -= 2) sin_r = std::fma(-r2 / (i * (i + 1)), sin_r, 1.0);
  sin_r *= r;
  double cos_r = 1.0;
  for (int i = 19; i >= 1; i -= 2) cos_r = std::fma(-r2 / (i * (i + 1)), cos_r, 1.0);
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      *sin_x = sin_r, *cos_x = cos_r;
      break;
    case 1:
      *sin_x = cos_r, *cos_x = -sin_r;
      break;
    case 2:
      *sin_x = -sin_r, *cos_x = -cos_r;
      break;
    default:
      *sin_x = -cos_r, *cos_x = sin_r;
      break;
  }
}

}  // namespace blockserve
