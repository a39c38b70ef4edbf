// Sixteen virtual float lanes on whatever vectors the target has: one of AVX-512, two of AVX2,
// four of NEON, sixteen scalars. Included once for each target, as Highway's own headers.
#if defined(BLOCKSERVE_KERNELS_CPU_VEC16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef BLOCKSERVE_KERNELS_CPU_VEC16_INL_H_
#undef BLOCKSERVE_KERNELS_CPU_VEC16_INL_H_
#else
#define BLOCKSERVE_KERNELS_CPU_VEC16_INL_H_
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"

// Unrolls a loop over parts, rows or panels, so that all of it lives in registers. Not for scalars:
// there it would only make the sanitizer builds slow to compile.
#undef BLOCKSERVE_UNROLL
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#define BLOCKSERVE_UNROLL
#elif defined(__clang__)
#define BLOCKSERVE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BLOCKSERVE_UNROLL _Pragma("GCC unroll 16")
#endif

HWY_BEFORE_NAMESPACE();
namespace blockserve {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DU = hn::RebindToUnsigned<DF>;
using DU16 = hn::Rebind<uint16_t, DU>;
using VF = hn::Vec<DF>;
using VU = hn::Vec<DU>;

constexpr int kPartLanes = HWY_LANES(float);
constexpr int kParts = 16 / kPartLanes;

struct V16 {
  VF part[kParts];
};

// One rounding everywhere: Highway's own MulAdd rounds twice on targets without the instruction.
HWY_INLINE VF Fma(VF a, VF b, VF c) {
#if HWY_NATIVE_FMA
  return hn::MulAdd(a, b, c);
#else
  HWY_ALIGN float x[kPartLanes], y[kPartLanes], z[kPartLanes];
  const DF d;
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (int i = 0; i < kPartLanes; ++i) x[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(d, x);
#endif
}

HWY_INLINE V16 Set16(float value) {
  V16 r;
  BLOCKSERVE_UNROLL
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::Set(DF(), value);
  return r;
}

HWY_INLINE V16 Load16(const float* p) {
  V16 r;
  BLOCKSERVE_UNROLL
  for (int i = 0; i < kParts; ++i) r.part[i] = hn::LoadU(DF(), p + i * kPartLanes);
  return r;
}

HWY_INLINE void Store16(const V16& v, float* p) {
  BLOCKSERVE_UNROLL
  for (int i = 0; i < kParts; ++i) hn::StoreU(v.part[i], DF(), p + i * kPartLanes);
}

// Sixteen pairs of bf16: the low halves, or the high halves.
HWY_INLINE V16 LoadBf16Low(const uint32_t* p) {
  V16 r;
  BLOCKSERVE_UNROLL
  for (int i = 0; i < kParts; ++i) {
    r.part[i] = hn::BitCast(DF(), hn::ShiftLeft<16>(hn::LoadU(DU(), p + i * kPartLanes)));
  }
  return r;
}
HWY_INLINE V16 LoadBf16High(const uint32_t* p) {
  const VU mask = hn::Set(DU(), 0xffff0000u);
  V16 r;
  BLOCKSERVE_UNROLL
  for (int i = 0; i < kParts; ++i) {
    r.part[i] = hn::BitCast(DF(), hn::And(hn::LoadU(DU(), p + i * kPartLanes), mask));
  }
  return r;
}

#define BLOCKSERVE_BINARY(NAME, EXPRESSION)         \
  HWY_INLINE V16 NAME(const V16& a, const V16& b) { \
    V16 r;                                          \
    BLOCKSERVE_UNROLL                               \
    for (int i = 0; i < kParts; ++i) {              \
      const VF x = a.part[i];                       \
      const VF y = b.part[i];                       \
      r.part[i] = EXPRESSION;                       \
    }                                               \
    return r;                                       \
  }
BLOCKSERVE_BINARY(Add, hn::Add(x, y))
BLOCKSERVE_BINARY(Sub, hn::Sub(x, y))
BLOCKSERVE_BINARY(Mul, hn::Mul(x, y))
BLOCKSERVE_BINARY(Div, hn::Div(x, y))
BLOCKSERVE_BINARY(Max, hn::Max(x, y))
#undef BLOCKSERVE_BINARY

HWY_INLINE V16 Fma(const V16& a, const V16& b, const V16& c) {
  V16 r;
  BLOCKSERVE_UNROLL
  for (int i = 0; i < kParts; ++i) r.part[i] = Fma(a.part[i], b.part[i], c.part[i]);
  return r;
}

// The fixed tree at the end of a reduction: s[i] = combine(s[i], s[i + 8]), + 4, + 2, + 1.
template <int kLanes, class D, typename Combine>
HWY_INLINE float ReduceLanes(D, hn::Vec<D> v, const Combine& combine) {
#if HWY_TARGET != HWY_SCALAR  // which has no halves
  if constexpr (kLanes > 1) {
    const hn::Half<D> half;
    const auto joined = combine(hn::LowerHalf(half, v), hn::UpperHalf(half, v));
    return ReduceLanes<kLanes / 2>(half, joined, combine);
  }
#endif
  return hn::GetLane(v);
}
template <typename Combine>
HWY_INLINE float Reduce(V16 v, const Combine& combine) {
  BLOCKSERVE_UNROLL
  for (int half = kParts / 2; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) v.part[i] = combine(v.part[i], v.part[i + half]);
  }
  return ReduceLanes<kPartLanes>(DF(), v.part[0], combine);
}

HWY_INLINE float ReduceSum(const V16& v) {
  return Reduce(v, [](auto a, auto b) HWY_ATTR { return hn::Add(a, b); });
}

HWY_INLINE float ReduceMax(const V16& v) {
  return Reduce(v, [](auto a, auto b) HWY_ATTR { return hn::Max(a, b); });
}

// exp(x) for x <= 88, within 1 ulp; 0 below -87.3 (where results would be subnormal).
// x = n ln 2 + f with |f| <= ln(2) / 2; minimax polynomial for exp(f), fitted by
// tools/fit_elementary.py.
HWY_INLINE VF ExpPart(VF x) {
  const DF d;
  const DU du;
  const VF round = hn::Set(d, 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VF shifted = Fma(x, hn::Set(d, 0x1.715476p+0f), round);  // x / ln 2
  const VF n = hn::Sub(shifted, round);
  // ln 2 in two parts, the first short enough that its product with n is exact.
  VF f = Fma(n, hn::Set(d, -0x1.62e4p-1f), x);
  f = Fma(n, hn::Set(d, -0x1.7f7d1cp-20f), f);
  VF r = hn::Set(d, 0.00140350813f);
  r = Fma(r, f, hn::Set(d, 0.00837228354f));
  r = Fma(r, f, hn::Set(d, 0.041665554f));
  r = Fma(r, f, hn::Set(d, 0.166664883f));
  r = Fma(r, f, hn::Set(d, 0.5f));
  r = Fma(r, f, hn::Set(d, 1.0f));
  r = Fma(r, f, hn::Set(d, 1.0f));
  // The low bits of `shifted` hold n: to the exponent of 2^n.
  const VU exponent =
      hn::Add(hn::ShiftLeft<23>(hn::BitCast(du, shifted)), hn::Set(du, 0x3f800000u));
  r = hn::Mul(r, hn::BitCast(d, exponent));
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, -87.3f)), hn::Zero(d), r);
}

// erf(x) within 1 ulp: x + x p(x^2) below 1, 1 - exp(q(|x| - 1)) from there on; polynomials fitted
// by tools/fit_elementary.py.
HWY_INLINE VF ErfPart(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  const VF t = hn::Min(hn::Abs(x), hn::Set(d, 4.0f));  // erf(4) rounds to 1
  const VF s = hn::Mul(t, t);
  const VF u = hn::Sub(t, one);

  VF q = hn::Set(d, 9.96012204e-07f);
  q = Fma(q, u, hn::Set(d, 0.00012946075f));
  q = Fma(q, u, hn::Set(d, -0.00160155084f));
  q = Fma(q, u, hn::Set(d, 0.00957207475f));
  q = Fma(q, u, hn::Set(d, -0.0413090587f));
  q = Fma(q, u, hn::Set(d, -0.843165636f));
  q = Fma(q, u, hn::Set(d, -2.63896298f));
  q = Fma(q, u, hn::Set(d, -1.84960556f));
  const VF far = hn::CopySign(hn::Sub(one, ExpPart(q)), x);

  VF p = hn::Set(d, 7.80690389e-05f);
  p = Fma(p, s, hn::Set(d, -0.00079978531f));
  p = Fma(p, s, hn::Set(d, 0.0051871622f));
  p = Fma(p, s, hn::Set(d, -0.0268533472f));
  p = Fma(p, s, hn::Set(d, 0.112835787f));
  p = Fma(p, s, hn::Set(d, -0.37612626f));
  p = Fma(p, s, hn::Set(d, 0.128379166f));
  const VF near = Fma(p, x, x);

  return hn::IfThenElse(hn::Lt(t, one), near, far);
}

HWY_INLINE V16 Exp(const V16& x) {
  V16 r;
  BLOCKSERVE_UNROLL
  for (int i = 0; i < kParts; ++i) r.part[i] = ExpPart(x.part[i]);
  return r;
}

HWY_INLINE V16 Erf(const V16& x) {
  V16 r;
  BLOCKSERVE_UNROLL
  for (int i = 0; i < kParts; ++i) r.part[i] = ErfPart(x.part[i]);
  return r;
}

// The exact GELU, x / 2 (1 + erf(x / sqrt 2)).
HWY_INLINE V16 Gelu(const V16& x) {
  const V16 e = Erf(Mul(x, Set16(0.70710678118654752f)));
  return Mul(Mul(x, Set16(0.5f)), Add(Set16(1.0f), e));
}

// The first `n` < 16 values of `p`, and `fill` after them.
HWY_INLINE V16 LoadTail(const float* p, int64_t n, float fill) {
  alignas(64) float s[16];
  for (int64_t i = 0; i < 16; ++i) s[i] = i < n ? p[i] : fill;
  return Load16(s);
}

}  // namespace HWY_NAMESPACE
}  // namespace blockserve
HWY_AFTER_NAMESPACE();

#endif  // BLOCKSERVE_KERNELS_CPU_VEC16_INL_H_
