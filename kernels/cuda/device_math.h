// Elementary functions and element access for the .cu files. Functions give the bits of their CPU
// counterparts (kernels/cpu/vec16-inl.h, kernels/exact_math.cc), whatever the device and the
// version of CUDA: weights drawn from equal logits are equal.
#ifndef BLOCKSERVE_KERNELS_CUDA_DEVICE_MATH_H_
#define BLOCKSERVE_KERNELS_CUDA_DEVICE_MATH_H_

#include <cstdint>

#include "kernels/cuda/device_code.h"

namespace blockserve::cuda {

inline constexpr uint32_t kAllLanes = 0xffffffffu;
inline constexpr int kWarp = 32;

__device__ inline float Infinity() { return __uint_as_float(0x7f800000u); }
__device__ inline bool IsFinite(float x) {
  return (__float_as_uint(x) & 0x7fffffffu) < 0x7f800000u;
}

// A bfloat16 in memory.
struct Bf16 {
  uint16_t bits;
};
__device__ inline float ToFloat(float x) { return x; }
__device__ inline float ToFloat(Bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
template <typename T>
__device__ inline T FromFloat(float x);
template <>
__device__ inline float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ inline Bf16 FromFloat<Bf16>(float x) {
  return {Bf16Bits(x)};
}

__device__ inline void UnpackBf16(uint32_t pair, float* out) {
  out[0] = __uint_as_float(pair << 16);
  out[1] = __uint_as_float(pair & 0xffff0000u);
}
__device__ inline uint32_t PackBf16(float low, float high) {
  return static_cast<uint32_t>(Bf16Bits(low)) | static_cast<uint32_t>(Bf16Bits(high)) << 16;
}

// Two elements at a multiple of 8 bytes; four at a multiple of 16, or 8 for bfloat16; eight at a
// multiple of 16.
__device__ inline void Store2(float* p, const float* v) {
  CheckAligned(p, 8);
  *reinterpret_cast<uint2*>(p) = uint2{__float_as_uint(v[0]), __float_as_uint(v[1])};
}
__device__ inline void Load4(const float* p, float* out) {
  CheckAligned(p, 16);
  const float4 v = *reinterpret_cast<const float4*>(p);
  out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
}
__device__ inline void Store4(float* p, const float* v) {
  CheckAligned(p, 16);
  *reinterpret_cast<float4*>(p) = float4{v[0], v[1], v[2], v[3]};
}
__device__ inline void Store4(Bf16* p, const float* v) {
  CheckAligned(p, 8);
  *reinterpret_cast<uint2*>(p) = uint2{PackBf16(v[0], v[1]), PackBf16(v[2], v[3])};
}
__device__ inline void Load8(const float* p, float* out) {
  Load4(p, out);
  Load4(p + 4, out + 4);
}
__device__ inline void Load8(const Bf16* p, float* out) {
  CheckAligned(p, 16);
  const uint4 v = *reinterpret_cast<const uint4*>(p);
  UnpackBf16(v.x, out);
  UnpackBf16(v.y, out + 2);
  UnpackBf16(v.z, out + 4);
  UnpackBf16(v.w, out + 6);
}
__device__ inline void Store8(float* p, const float* v) {
  Store4(p, v);
  Store4(p + 4, v + 4);
}
__device__ inline void Store8(Bf16* p, const float* v) {
  CheckAligned(p, 16);
  *reinterpret_cast<uint4*>(p) =
      uint4{PackBf16(v[0], v[1]), PackBf16(v[2], v[3]), PackBf16(v[4], v[5]), PackBf16(v[6], v[7])};
}

// exp(x) for x <= 88 within 1 ulp; 0 below -87.3, minus infinity included.
__device__ inline float Exp(float x) {
  const float round = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = __fmaf_rn(x, 0x1.715476p+0f, round);
  const float n = shifted - round;
  float f = __fmaf_rn(n, -0x1.62e4p-1f, x);
  f = __fmaf_rn(n, -0x1.7f7d1cp-20f, f);
  float r = 0.00140350813f;
  r = __fmaf_rn(r, f, 0.00837228354f);
  r = __fmaf_rn(r, f, 0.041665554f);
  r = __fmaf_rn(r, f, 0.166664883f);
  r = __fmaf_rn(r, f, 0.5f);
  r = __fmaf_rn(r, f, 1.0f);
  r = __fmaf_rn(r, f, 1.0f);
  const uint32_t exponent = (__float_as_uint(shifted) << 23) + 0x3f800000u;
  r = r * __uint_as_float(exponent);
  return x < -87.3f ? 0.0f : r;
}

// exp(x) by the device's own function: two instructions, its error 2^-21 and what rounding makes of
// a large x. For what need not have the CPU's bits.
__device__ inline float QuickExp(float x) { return QuickExp2(x * 0x1.715476p+0f); }

// erf(x) within 1 ulp.
__device__ inline float Erf(float x) {
  const uint32_t sign = __float_as_uint(x) & 0x80000000u;
  const float magnitude = __uint_as_float(__float_as_uint(x) & 0x7fffffffu);
  const float t = magnitude < 4.0f ? magnitude : 4.0f;
  const float s = t * t;
  const float u = t - 1.0f;

  float q = 9.96012204e-07f;
  q = __fmaf_rn(q, u, 0.00012946075f);
  q = __fmaf_rn(q, u, -0.00160155084f);
  q = __fmaf_rn(q, u, 0.00957207475f);
  q = __fmaf_rn(q, u, -0.0413090587f);
  q = __fmaf_rn(q, u, -0.843165636f);
  q = __fmaf_rn(q, u, -2.63896298f);
  q = __fmaf_rn(q, u, -1.84960556f);
  const float far = __uint_as_float((__float_as_uint(1.0f - Exp(q)) & 0x7fffffffu) | sign);

  float p = 7.80690389e-05f;
  p = __fmaf_rn(p, s, -0.00079978531f);
  p = __fmaf_rn(p, s, 0.0051871622f);
  p = __fmaf_rn(p, s, -0.0268533472f);
  p = __fmaf_rn(p, s, 0.112835787f);
  p = __fmaf_rn(p, s, -0.37612626f);
  p = __fmaf_rn(p, s, 0.128379166f);
  const float near = __fmaf_rn(p, x, x);

  return t < 1.0f ? near : far;
}

// The exact GELU, x / 2 (1 + erf(x / sqrt 2)).
__device__ inline float GeluOf(float x) {
  const float e = Erf(x * 0.70710678118654752f);
  return x * 0.5f * (1.0f + e);
}

// The exact GELU for results in bfloat16, which are rounded by up to 2^-9 of their value: within
// 2^-13 of it and 2^-23, by a third of GeluOf's instructions. The normal distribution function is
// 1 / (1 + exp(-x P(x^2))), with P fitted to its logit where |x| <= 6.
__device__ inline float GeluForBf16(float x) {
  const float square = x * x;
  const float s = square > 36.0f ? 36.0f : square;  // a NaN stays one
  float p = 9.4922548e-08f;                         // -log2(e) P
  p = __fmaf_rn(p, s, -5.42329917e-06f);
  p = __fmaf_rn(p, s, 0.000100846431f);
  p = __fmaf_rn(p, s, 0.000365689688f);
  p = __fmaf_rn(p, s, -0.105363429f);
  p = __fmaf_rn(p, s, -2.30191851f);
  return x * QuickReciprocal(1.0f + QuickExp2(x * p));
}

// Natural logarithm of a positive, finite, normal number.
__device__ inline double ExactLogOf(double x) {
  const int64_t bits = __double_as_longlong(x);
  int64_t exponent = (bits >> 52 & 0x7ff) - 1023;
  double m = __longlong_as_double((bits & 0xfffffffffffffll) | 0x3ff0000000000000ll);
  if (m > 0x1.6a09e667f3bcdp+0) {
    m *= 0.5;
    ++exponent;
  }
  const double s = (m - 1.0) / (m + 1.0);
  const double s2 = s * s;
  double tail = 0.0;
  for (int n = 25; n >= 3; n -= 2) tail = __fma_rn(tail, s2, 1.0 / n);
  const double e = static_cast<double>(exponent);
  const double log_m = __fma_rn(2.0 * s * s2, tail, 2.0 * s);
  return __fma_rn(e, 0x1.62e42fefa3800p-1, __fma_rn(e, 0x1.ef35793c76730p-45, log_m));
}

// Sums and maxima over the lanes of a warp: a tree of exchanges with lane ^ 16, 8, 4, 2, 1, which
// leaves the same bits in every lane. `width`, a power of two, keeps to groups of so many lanes.
template <typename T>
__device__ inline T WarpSum(T value, int width = kWarp) {
  for (int half = width / 2; half > 0; half /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, half);
  }
  return value;
}
// The sum of the values up to this lane's, for whole numbers: a float's would have another order.
template <typename T>
__device__ inline T WarpSumUpTo(T value) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = __shfl_up_sync(kAllLanes, value, step);
    if (lane >= step) value += before;
  }
  return value;
}
__device__ inline float WarpMax(float value, int width = kWarp) {
  for (int half = width / 2; half > 0; half /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, half);
    value = value > other ? value : other;
  }
  return value;
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_DEVICE_MATH_H_
