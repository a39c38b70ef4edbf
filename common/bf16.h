// Conversions between float and the 16-bit formats of checkpoints and messages, in integer
// arithmetic: the same bits on every machine.
#ifndef BLOCKSERVE_COMMON_BF16_H_
#define BLOCKSERVE_COMMON_BF16_H_

#include <bit>
#include <cstdint>

namespace blockserve {

inline float FloatFromBf16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline uint16_t Bf16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool is_nan = static_cast<int32_t>(bits & 0x7fffffffu) > 0x7f800000;
  const uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  return static_cast<uint16_t>((is_nan ? bits | 0x400000u : rounded) >> 16);
}

inline float RoundToBf16(float value) { return FloatFromBf16(Bf16FromFloat(value)); }

// The same for `count` values.
void Bf16FromFloats(const float* from, int64_t count, uint16_t* to);
void FloatsFromBf16(const uint16_t* from, int64_t count, float* to);

// IEEE 754 binary16.
inline float FloatFromF16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1fu;
  const uint32_t mantissa = bits & 0x3ffu;
  if (exponent == 0x1fu) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112u) << 23 | mantissa << 13);
  // Subnormal: mantissa * 2^-24 is exact in float32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -magnitude : magnitude;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_BF16_H_
