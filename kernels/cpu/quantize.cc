#include "kernels/cpu/quantize.h"

#include <cstdint>
#include <cstring>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize.cc"
#include "kernels/cpu/highway_targets.h"
// Highway's order: foreach_target before highway.
#include "hwy/foreach_target.h"
#include "kernels/cpu/vec16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace blockserve {
namespace HWY_NAMESPACE {
namespace {

using DI = hn::RebindToSigned<DF>;
using DI16 = hn::Rebind<int16_t, DI>;
using DI8 = hn::Rebind<int8_t, DI>;
using DU8 = hn::Rebind<uint8_t, DI>;

// Rounds to bfloat16 as Bf16FromFloat does.
void RoundRowToBf16(const float* x, int64_t width, uint16_t* out) {
  const DU du;
  const VU one = hn::Set(du, 1u);
  const VU half = hn::Set(du, 0x7fffu);
  const VU quiet = hn::Set(du, 0x40u);
  for (int64_t i = 0; i < width; i += kPartLanes) {
    const VF value = hn::LoadU(DF(), x + i);
    const VU bits = hn::BitCast(du, value);
    const VU high = hn::ShiftRight<16>(bits);
    const VU rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, half), hn::And(high, one)));
    const VU result =
        hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), hn::Or(high, quiet), rounded);
    const DU16 d16;
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(DI(), result)), d16, out + i);
  }
}

// Returns the row's scale; NaN, and a row of zeros, where a value is not finite.
float RoundRowToInt8(const float* x, int64_t width, Int8Rows rows, void* out) {
  V16 largest = Set16(0.0f);
  V16 probe = Set16(0.0f);  // x * 0 is NaN for an infinite or NaN x and stays so in the sum
  for (int64_t i = 0; i < width; i += kPanelWidth) {
    V16 v = Load16(x + i);
    probe = Fma(v, Set16(0.0f), probe);
    BLOCKSERVE_UNROLL
    for (int p = 0; p < kParts; ++p) v.part[p] = hn::Abs(v.part[p]);
    largest = Max(largest, v);
  }
  const float magnitude = ReduceMax(largest);
  const bool finite = ReduceSum(probe) == 0.0f;
  if (!finite) {
    std::memset(out, 0, width * (rows == Int8Rows::kInt16 ? 2 : 1));
    return std::numeric_limits<float>::quiet_NaN();
  }
  const VF inverse = hn::Set(DF(), magnitude > 1e-30f ? 127.0f / magnitude : 0.0f);
  const VF round = hn::Set(DF(), 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const DI di;
  const auto round_bits = hn::BitCast(di, round);
  for (int64_t i = 0; i < width; i += kPartLanes) {
    const VF shifted = hn::Add(hn::Mul(hn::LoadU(DF(), x + i), inverse), round);
    const auto q = hn::Sub(hn::BitCast(di, shifted), round_bits);
    switch (rows) {
      case Int8Rows::kInt16:
        hn::StoreU(hn::DemoteTo(DI16(), q), DI16(), static_cast<int16_t*>(out) + i);
        break;
      case Int8Rows::kInt8:
        hn::StoreU(hn::DemoteTo(DI8(), q), DI8(), static_cast<int8_t*>(out) + i);
        break;
      case Int8Rows::kUint8:
        hn::StoreU(hn::DemoteTo(DU8(), hn::Add(q, hn::Set(di, 128))), DU8(),
                   static_cast<uint8_t*>(out) + i);
        break;
    }
  }
  return magnitude / 127.0f;
}

}  // namespace

void QuantizeRows(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) {
  const int64_t width = PadToPanel(args.k);
  for (int64_t r = row_begin; r < row_end; ++r) {
    const float* x = args.x + r * args.x_stride;
    uint8_t* out = args.quantized + r * args.quantized_stride;
    // Half of the next row was written by other cores, as a rule: it is on its way meanwhile.
    if (r + 1 < row_end) {
      for (int64_t i = 0; i < width; i += kPanelWidth) __builtin_prefetch(x + args.x_stride + i);
    }
    if (args.format == WeightFormat::kInt8) {
      args.scales[r] = RoundRowToInt8(x, width, args.int8_rows, out);
    } else {
      RoundRowToBf16(x, width, reinterpret_cast<uint16_t*>(out));
    }
  }
}

// The sums of a tile are finished with all that a row shares kept in registers: where a store could
// change what `args` points to, it would be read again for each group of outputs.
template <bool kInt8, Epilogue kEpilogue>
HWY_INLINE void FinishTile(const MatmulArgs& args, const DotTile& tile) {
  const PackedMatrix& weights = *args.weights;
  const DI di;
  const int64_t y_stride = args.y_stride;
  const int64_t sums_stride = tile.panels * kPanelWidth;
  const float* row_scales = args.x_scales + tile.row;
  for (int64_t p = 0; p < tile.panels; ++p) {
    const int64_t column = (tile.panel + p) * kPanelWidth;
    const V16 bias = Load16(weights.bias() + column);
    V16 scales;
    hn::Vec<DI> offsets[kParts];
    if constexpr (kInt8) {
      scales = Load16(weights.scales() + column);
      BLOCKSERVE_UNROLL
      for (int i = 0; i < kParts; ++i) {
        offsets[i] = args.int8_rows == Int8Rows::kUint8
                         ? hn::LoadU(di, weights.offsets() + column + i * kPartLanes)
                         : hn::Zero(di);
      }
    }
    const uint32_t* sums = tile.sums + p * kPanelWidth;
    const int64_t at = tile.row * y_stride + column - args.y_first_panel * kPanelWidth;
    float* y = args.y + at;
    const float* residual = kEpilogue == Epilogue::kAddResidual ? args.residual + at : nullptr;
    for (int64_t r = 0; r < tile.rows; ++r, sums += sums_stride, y += y_stride) {
      V16 v;
      if constexpr (kInt8) {
        BLOCKSERVE_UNROLL
        for (int i = 0; i < kParts; ++i) {
          const auto sum = hn::LoadU(di, reinterpret_cast<const int32_t*>(sums) + i * kPartLanes);
          v.part[i] = hn::ConvertTo(DF(), hn::Sub(sum, offsets[i]));
        }
        v = Mul(Mul(v, Set16(row_scales[r])), scales);
      } else {
        v = Load16(reinterpret_cast<const float*>(sums));
      }
      v = Add(v, bias);
      if constexpr (kEpilogue == Epilogue::kGelu) v = Gelu(v);
      if constexpr (kEpilogue == Epilogue::kAddResidual) {
        v = Add(Load16(residual), v);
        residual += y_stride;
      }
      Store16(v, y);
    }
  }
}

template <bool kInt8>
HWY_INLINE void FinishTile(const MatmulArgs& args, const DotTile& tile) {
  switch (args.epilogue) {
    case Epilogue::kNone:
      return FinishTile<kInt8, Epilogue::kNone>(args, tile);
    case Epilogue::kGelu:
      return FinishTile<kInt8, Epilogue::kGelu>(args, tile);
    case Epilogue::kAddResidual:
      return FinishTile<kInt8, Epilogue::kAddResidual>(args, tile);
  }
}

void FinishDots(const MatmulArgs& args, const DotTile& tile) {
  if (args.weights->format() == WeightFormat::kInt8) return FinishTile<true>(args, tile);
  FinishTile<false>(args, tile);
}

}  // namespace HWY_NAMESPACE
}  // namespace blockserve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace blockserve {

decltype(CpuKernels::quantize) QuantizeKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, QuantizeRows);
}

decltype(CpuKernels::finish_dots) FinishDotsKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, FinishDots);
}

}  // namespace blockserve
#endif  // HWY_ONCE
