// What a lane computes by itself. Products and sums are rounded one by one, as nvcc was told
// (-fmad=false); a result that is no number is the device's.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <type_traits>
#include <utility>

#include "common/bf16.h"
#include "kernels/cuda/emulation/ptx/block.h"

namespace blockserve::cuda::emulation::ptx {
namespace {

// How a value lies in a lane of a register: 16 bits take 32.
template <typename T>
using Lane = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <typename T>
T FromLane(Lane<T> lane) {
  if constexpr (sizeof(T) == 2) {
    return static_cast<T>(lane);
  } else {
    return std::bit_cast<T>(lane);
  }
}
template <typename T>
Lane<T> ToLane(T value) {
  if constexpr (sizeof(T) == 2) {
    return static_cast<uint16_t>(value);
  } else if constexpr (std::is_same_v<T, float>) {
    return std::isnan(value) ? 0x7fffffffu : std::bit_cast<uint32_t>(value);
  } else {
    return std::bit_cast<Lane<T>>(value);
  }
}

template <typename T>
void WriteLanes(Block& block, Register where, LaneMask mask, const std::array<T, kLanes>& values) {
  Lane<T>* lanes = block.lanes<Lane<T>>(where);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (mask >> lane & 1) lanes[lane] = ToLane(values[lane]);
  }
}

// One result of type R from values of types S. What lanes beside the mask would get is computed
// too, which costs less than to leave it out.
template <typename R, typename... S, typename Compute>
void ForLanes(Block& block, const Instruction& i, LaneMask mask, const Compute& compute) {
  std::array<R, kLanes> results;
  [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
    for (int lane = 0; lane < kLanes; ++lane) {
      results[lane] = compute(FromLane<S>(block.lanes<Lane<S>>(i.sources[kIndex])[lane])...);
    }
  }
  (std::index_sequence_for<S...>());
  WriteLanes(block, i.results[0], mask, results);
}

template <auto kCompute, typename R, typename... S>
void Apply(Block& block, const Instruction& i, LaneMask mask) {
  ForLanes<R, S...>(block, i, mask,
                    [](S... values) { return static_cast<R>(kCompute(values...)); });
}

template <typename T>
T Smaller(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
    if (a == b) return std::signbit(a) ? a : b;
  }
  return b < a ? b : a;
}
template <typename T>
T Larger(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) ? b : a;
    if (a == b) return std::signbit(a) ? b : a;
  }
  return a < b ? b : a;
}

// Shifts by the width of the type and more leave nothing, or signs.
template <typename T>
T ShiftLeft(T a, uint32_t by) {
  return by < sizeof(T) * 8 ? static_cast<T>(a << by) : T{0};
}
template <typename T>
T ShiftRight(T a, uint32_t by) {
  constexpr uint32_t kBits = sizeof(T) * 8;
  if (std::is_signed_v<T>) return static_cast<T>(a >> std::min(by, kBits - 1));
  return by < kBits ? static_cast<T>(a >> by) : T{0};
}

template <typename T>
T InsertBits(T bits, T into, uint32_t position, uint32_t count) {
  for (uint32_t j = 0; j < (count & 0xff) && position + j < sizeof(T) * 8; ++j) {
    into &= ~(T{1} << (position + j));
    into |= (bits >> j & 1) << (position + j);
  }
  return into;
}
uint32_t ExtractedBits(uint32_t bits, uint32_t position, uint32_t count) {
  position &= 0xff;
  count &= 0xff;
  const uint32_t moved = position < 32 ? bits >> position : 0;
  return count < 32 ? moved & ((uint32_t{1} << count) - 1) : moved;
}
// Four of the bytes of a, 0 to 3, and b, 4 to 7: by a digit each, whose highest bit asks for the
// byte's sign.
uint32_t PickedBytes(uint32_t a, uint32_t b, uint32_t digits) {
  const uint64_t bytes = a | uint64_t{b} << 32;
  uint32_t picked = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = digits >> 4 * i & 0xf;
    auto byte = static_cast<uint8_t>(bytes >> 8 * (digit & 7));
    if (digit & 8) byte = byte & 0x80 ? 0xff : 0;
    picked |= uint32_t{byte} << 8 * i;
  }
  return picked;
}
uint32_t ReversedBits(uint32_t x) {
  uint32_t reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}

// Of what divides by zero the device makes all ones.
template <typename T>
T Quotient(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if (std::is_signed_v<T> && b == static_cast<T>(-1)) {
    return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  }
  return a / b;
}

// To a whole number, cut off, at most and at least what the type has.
template <typename I, typename F>
I Whole(F x) {
  if (std::isnan(x)) return sizeof(I) == 8 ? static_cast<I>(uint64_t{1} << 63) : I{0};
  x = std::trunc(x);
  if (x <= static_cast<F>(std::numeric_limits<I>::min())) return std::numeric_limits<I>::min();
  if (x >= static_cast<F>(std::numeric_limits<I>::max())) return std::numeric_limits<I>::max();
  return static_cast<I>(x);
}

// The device's approximations: of their bits only the accuracy. Subnormal numbers are zeros.
float Flushed(float x) { return std::abs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
float QuickPower(float x) { return Flushed(std::exp2(Flushed(x))); }
float QuickReciprocal(float x) { return Flushed(1.0f / Flushed(x)); }

template <typename T>
T Fused(T a, T b, T c) {
  return std::fma(a, b, c);
}

// --- Predicates

template <typename T, auto kHolds>
void Compare(Block& block, const Instruction& i, LaneMask mask) {
  const Lane<T>* a = block.lanes<Lane<T>>(i.sources[0]);
  const Lane<T>* b = block.lanes<Lane<T>>(i.sources[1]);
  LaneMask result = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool holds = kHolds(FromLane<T>(a[lane]), FromLane<T>(b[lane]));
    result |= static_cast<LaneMask>(holds) << lane;
  }
  LaneMask& predicate = block.predicate(i.results[0]);
  predicate = (predicate & ~mask) | (result & mask);
}

template <auto kCompute>
void OfMasks(Block& block, const Instruction& i, LaneMask mask) {
  const LaneMask a = block.predicate(i.sources[0]);
  const LaneMask b = block.predicate(i.sources.back());
  LaneMask& result = block.predicate(i.results[0]);
  result = (result & ~mask) | (kCompute(a, b) & mask);
}

template <typename T>
void Choose(Block& block, const Instruction& i, LaneMask mask) {
  const LaneMask first = block.predicate(i.sources[2]);
  const Lane<T>* a = block.lanes<Lane<T>>(i.sources[0]);
  const Lane<T>* b = block.lanes<Lane<T>>(i.sources[1]);
  std::array<T, kLanes> results;
  for (int lane = 0; lane < kLanes; ++lane) {
    results[lane] = FromLane<T>(first >> lane & 1 ? a[lane] : b[lane]);
  }
  WriteLanes(block, i.results[0], mask, results);
}

// --- Pairs: Whole holds two of Part.
template <typename Whole, typename Part>
void JoinPair(Block& block, const Instruction& i, LaneMask mask) {
  ForLanes<Whole, Part, Part>(block, i, mask, [](Part low, Part high) {
    return static_cast<Whole>(low | static_cast<Whole>(high) << sizeof(Part) * 8);
  });
}
template <typename Whole, typename Part>
void PartPair(Block& block, const Instruction& i, LaneMask mask) {
  std::array<Part, kLanes> low;
  std::array<Part, kLanes> high;
  for (int lane = 0; lane < kLanes; ++lane) {
    const Whole whole = block.lanes<Lane<Whole>>(i.sources[0])[lane];
    low[lane] = static_cast<Part>(whole);
    high[lane] = static_cast<Part>(whole >> sizeof(Part) * 8);
  }
  WriteLanes(block, i.results[0], mask, low);
  WriteLanes(block, i.results[1], mask, high);
}

using Table = std::map<std::string, KnownInstruction>;

// In parentheses what has a ">": gcc 12 takes it for the end of the template's arguments.
template <typename T>
void AddCompares(Table& table, const std::string& type) {
  table["setp.eq." + type] = {Compare<T, [](T a, T b) { return a == b; }>};
  table["setp.lt." + type] = {Compare<T, [](T a, T b) { return a < b; }>};
  table["setp.le." + type] = {Compare<T, [](T a, T b) { return a <= b; }>};
  table["setp.gt." + type] = {Compare<T, [](T a, T b) { return (a > b); }>};
  table["setp.ge." + type] = {Compare<T, [](T a, T b) { return (a >= b); }>};
  if constexpr (std::is_floating_point_v<T>) {
    table["setp.ne." + type] = {Compare<T, [](T a, T b) { return (a < b || a > b); }>};
    table["setp.equ." + type] = {Compare<T, [](T a, T b) { return !(a < b || a > b); }>};
    table["setp.neu." + type] = {Compare<T, [](T a, T b) { return !(a == b); }>};
    table["setp.ltu." + type] = {Compare<T, [](T a, T b) { return !(a >= b); }>};
    table["setp.leu." + type] = {Compare<T, [](T a, T b) { return !(a > b); }>};
    table["setp.gtu." + type] = {Compare<T, [](T a, T b) { return !(a <= b); }>};
    table["setp.geu." + type] = {Compare<T, [](T a, T b) { return !(a < b); }>};
    table["setp.num." + type] = {Compare<T, [](T a, T b) { return a == a && b == b; }>};
    table["setp.nan." + type] = {Compare<T, [](T a, T b) { return !(a == a && b == b); }>};
  } else {
    table["setp.ne." + type] = {Compare<T, [](T a, T b) { return a != b; }>};
  }
}

// What does not ask for the sign, for any name of the type.
template <typename T>
void AddBits(Table& table, const std::string& type) {
  table["mov." + type] = {Apply<[](T a) { return a; }, T, T>};
  table["not." + type] = {Apply<[](T a) { return ~a; }, T, T>};
  table["and." + type] = {Apply<[](T a, T b) { return a & b; }, T, T, T>};
  table["or." + type] = {Apply<[](T a, T b) { return a | b; }, T, T, T>};
  table["xor." + type] = {Apply<[](T a, T b) { return a ^ b; }, T, T, T>};
  table["add." + type] = {Apply<[](T a, T b) { return a + b; }, T, T, T>};
  table["sub." + type] = {Apply<[](T a, T b) { return a - b; }, T, T, T>};
  table["neg." + type] = {Apply<[](T a) { return 0 - a; }, T, T>};
  table["mul.lo." + type] = {Apply<[](T a, T b) { return a * b; }, T, T, T>};
  table["mad.lo." + type] = {Apply<[](T a, T b, T c) { return a * b + c; }, T, T, T, T>};
  table["shl." + type] = {Apply<ShiftLeft<T>, T, T, uint32_t>};
  table["selp." + type] = {Choose<T>};
}

template <typename T>
void AddOrdered(Table& table, const std::string& type) {
  AddCompares<T>(table, type);
  table["min." + type] = {Apply<Smaller<T>, T, T, T>};
  table["max." + type] = {Apply<Larger<T>, T, T, T>};
  if constexpr (std::is_integral_v<T>) {
    table["shr." + type] = {Apply<ShiftRight<T>, T, T, uint32_t>};
    table["div." + type] = {Apply<Quotient<T>, T, T, T>};
  }
}

template <typename T>
void AddFloats(Table& table, const std::string& type) {
  AddOrdered<T>(table, type);
  for (const char* rounding : {".", ".rn."}) {
    table["add" + (rounding + type)] = {Apply<[](T a, T b) { return a + b; }, T, T, T>};
    table["sub" + (rounding + type)] = {Apply<[](T a, T b) { return a - b; }, T, T, T>};
    table["mul" + (rounding + type)] = {Apply<[](T a, T b) { return a * b; }, T, T, T>};
    table["div" + (rounding + type)] = {Apply<[](T a, T b) { return a / b; }, T, T, T>};
    table["sqrt" + (rounding + type)] = {Apply<[](T a) { return std::sqrt(a); }, T, T>};
    table["fma" + (rounding + type)] = {Apply<Fused<T>, T, T, T, T>};
  }
  table["mov." + type] = {Apply<[](Lane<T> a) { return a; }, Lane<T>, Lane<T>>};
  table["selp." + type] = {Choose<Lane<T>>};
  table["neg." + type] = {Apply<[](T a) { return -a; }, T, T>};
  table["abs." + type] = {Apply<[](T a) { return std::abs(a); }, T, T>};
}

template <typename R, typename S>
void AddConversion(Table& table, const std::string& name) {
  table["cvt." + name] = {Apply<[](S a) { return static_cast<R>(a); }, R, S>};
}

Table MakeTable() {
  Table table;
  for (const char* type : {"s16", "u16", "b16"}) AddBits<uint16_t>(table, type);
  for (const char* type : {"s32", "u32", "b32"}) AddBits<uint32_t>(table, type);
  for (const char* type : {"s64", "u64", "b64"}) AddBits<uint64_t>(table, type);
  AddOrdered<int16_t>(table, "s16");
  AddOrdered<uint16_t>(table, "u16");
  AddOrdered<int32_t>(table, "s32");
  AddOrdered<uint32_t>(table, "u32");
  AddOrdered<int64_t>(table, "s64");
  AddOrdered<uint64_t>(table, "u64");
  AddCompares<uint16_t>(table, "b16");
  AddCompares<uint32_t>(table, "b32");
  AddCompares<uint64_t>(table, "b64");
  AddFloats<float>(table, "f32");
  AddFloats<double>(table, "f64");
  table["shr.b32"] = table["shr.u32"];
  table["shr.b64"] = table["shr.u64"];
  table["mul.wide.u16"] = {
      Apply<[](uint16_t a, uint16_t b) { return uint32_t{a} * b; }, uint32_t, uint16_t, uint16_t>};
  table["mul.wide.u32"] = {
      Apply<[](uint32_t a, uint32_t b) { return uint64_t{a} * b; }, uint64_t, uint32_t, uint32_t>};
  table["mul.wide.s32"] = {
      Apply<[](int32_t a, int32_t b) { return int64_t{a} * b; }, int64_t, int32_t, int32_t>};
  table["mul.hi.u32"] = {Apply<[](uint32_t a, uint32_t b) { return (uint64_t{a} * b >> 32); },
                               uint32_t, uint32_t, uint32_t>};
  table["mul.hi.s32"] = {Apply<[](int32_t a, int32_t b) { return (int64_t{a} * b >> 32); }, int32_t,
                               int32_t, int32_t>};
  table["mul.hi.u64"] = {
      Apply<[](uint64_t a, uint64_t b) { return (static_cast<unsigned __int128>(a) * b >> 64); },
            uint64_t, uint64_t, uint64_t>};
  table["bfi.b32"] = {
      Apply<InsertBits<uint32_t>, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t>};
  table["bfi.b64"] = {
      Apply<InsertBits<uint64_t>, uint64_t, uint64_t, uint64_t, uint32_t, uint32_t>};
  table["bfe.u32"] = {Apply<ExtractedBits, uint32_t, uint32_t, uint32_t, uint32_t>};
  table["prmt.b32"] = {Apply<PickedBytes, uint32_t, uint32_t, uint32_t, uint32_t>};
  table["copysign.f32"] = {
      Apply<[](float sign, float a) { return std::copysign(a, sign); }, float, float, float>};
  table["brev.b32"] = {Apply<ReversedBits, uint32_t, uint32_t>};
  table["popc.b32"] = {Apply<[](uint32_t a) { return std::popcount(a); }, uint32_t, uint32_t>};
  table["clz.b32"] = {Apply<[](uint32_t a) { return std::countl_zero(a); }, uint32_t, uint32_t>};
  table["clz.b64"] = {Apply<[](uint64_t a) { return std::countl_zero(a); }, uint32_t, uint64_t>};
  table["bfind.shiftamt.u32"] = {
      Apply<[](uint32_t a) { return a == 0 ? -1 : std::countl_zero(a); }, uint32_t, uint32_t>};
  table["ex2.approx.ftz.f32"] = {Apply<QuickPower, float, float>};
  table["rcp.approx.ftz.f32"] = {Apply<QuickReciprocal, float, float>};

  table["and.pred"] = {OfMasks<std::bit_and<LaneMask>{}>};
  table["or.pred"] = {OfMasks<std::bit_or<LaneMask>{}>};
  table["xor.pred"] = {OfMasks<std::bit_xor<LaneMask>{}>};
  table["not.pred"] = {OfMasks<[](LaneMask a, LaneMask) { return ~a; }>};
  table["mov.pred"] = {OfMasks<[](LaneMask a, LaneMask) { return a; }>};

  AddConversion<int64_t, int32_t>(table, "s64.s32");
  AddConversion<uint64_t, uint32_t>(table, "u64.u32");
  AddConversion<uint32_t, uint64_t>(table, "u32.u64");
  AddConversion<uint32_t, uint64_t>(table, "s32.s64");
  AddConversion<uint32_t, uint16_t>(table, "u32.u16");
  AddConversion<int32_t, int16_t>(table, "s32.s16");
  AddConversion<uint64_t, uint16_t>(table, "u64.u16");
  AddConversion<int64_t, int16_t>(table, "s64.s16");
  AddConversion<uint16_t, uint32_t>(table, "u16.u32");
  AddConversion<uint16_t, uint64_t>(table, "u16.u64");
  AddConversion<double, float>(table, "f64.f32");
  AddConversion<float, double>(table, "rn.f32.f64");
  AddConversion<float, int32_t>(table, "rn.f32.s32");
  AddConversion<float, uint32_t>(table, "rn.f32.u32");
  AddConversion<float, int64_t>(table, "rn.f32.s64");
  AddConversion<float, uint64_t>(table, "rn.f32.u64");
  AddConversion<double, int32_t>(table, "rn.f64.s32");
  AddConversion<double, int64_t>(table, "rn.f64.s64");
  AddConversion<double, uint64_t>(table, "rn.f64.u64");
  table["cvt.rzi.s32.f32"] = {Apply<Whole<int32_t, float>, int32_t, float>};
  table["cvt.rzi.u32.f32"] = {Apply<Whole<uint32_t, float>, uint32_t, float>};
  table["cvt.rzi.s64.f32"] = {Apply<Whole<int64_t, float>, int64_t, float>};
  table["cvt.rzi.u64.f32"] = {Apply<Whole<uint64_t, float>, uint64_t, float>};
  table["cvt.rzi.u64.f64"] = {Apply<Whole<uint64_t, double>, uint64_t, double>};
  table["cvt.rpi.f64.f64"] = {Apply<[](double a) { return std::ceil(a); }, double, double>};
  table["cvt.rmi.f64.f64"] = {Apply<[](double a) { return std::floor(a); }, double, double>};
  table["cvt.rn.bf16.f32"] = {Apply<[](float a) { return Bf16FromFloat(a); }, uint16_t, float>};
  table["cvta.to.global.u64"] = table["mov.u64"];

  table["mov.b32 join"] = {JoinPair<uint32_t, uint16_t>};
  table["mov.b64 join"] = {JoinPair<uint64_t, uint32_t>};
  table["mov.b32 part"] = {PartPair<uint32_t, uint16_t>};
  table["mov.b64 part"] = {PartPair<uint64_t, uint32_t>};
  return table;
}

}  // namespace

const KnownInstruction* FindArithmetic(const std::string& name) {
  static const auto* table = new Table(MakeTable());
  const auto found = table->find(name);
  return found == table->end() ? nullptr : &found->second;
}

}  // namespace blockserve::cuda::emulation::ptx
