#include "kernels/cpu/matmul.h"

#include <algorithm>
#include <cstdint>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul.cc"
#include "kernels/cpu/highway_targets.h"
// Highway's order: foreach_target before highway.
#include "hwy/foreach_target.h"
#include "kernels/cpu/vec16-inl.h"
#include "kernels/cpu/weight_prefetcher.h"

HWY_BEFORE_NAMESPACE();
namespace blockserve {
namespace HWY_NAMESPACE {
namespace {

// Rows of the largest register tile. f32: 6 rows of 16 outputs fill the 16 registers of AVX2 (12
// sums, 2 weights, 1 input), 12 rows of 2 panels the 32 of AVX-512, 6 rows the 32 of NEON (24, 4,
// 1). bf16 needs registers for widening: on AVX2 gcc 12 spills sums with 6 rows and reaches two
// thirds of the speed of 4; for NEON it writes 2.1 instructions a multiply-add with 6 rows, 1.7
// with 5.
constexpr int MaxTileRows([[maybe_unused]] bool bf16) {
#if HWY_TARGET == HWY_AVX3
  return 12;
#elif HWY_TARGET == HWY_AVX2
  return bf16 ? 4 : 6;
#elif HWY_TARGET == HWY_NEON
  return bf16 ? 5 : 6;
#else
  return 2;
#endif
}

// Panels of a tile of `rows` rows: with few rows more panels run side by side, for a sum is one
// chain and the units are busy only with eight or more chains in flight.
constexpr int TilePanels([[maybe_unused]] int rows, [[maybe_unused]] bool bf16) {
#if HWY_TARGET == HWY_AVX3
  return rows == 1 ? 8 : rows <= 6 ? 4 : rows <= 8 ? 3 : 2;
#elif HWY_TARGET == HWY_AVX2
  if (bf16) return rows == 1 ? 4 : rows == 2 ? 2 : 1;
  return rows == 1 ? 4 : rows == 2 ? 3 : rows == 3 ? 2 : 1;
#elif HWY_TARGET == HWY_NEON
  return rows == 1 ? 3 : rows == 2 ? 2 : 1;
#else
  return 1;
#endif
}

// Inner steps between two bursts of prefetches, and those written out one after the other; even.
constexpr int64_t kChunk = 8;
constexpr int kUnroll = 4;

// Fewest rows for which weights are fetched ahead. Below, arithmetic never waits for anything but
// memory, and the processor's own prefetcher does better.
constexpr int64_t PrefetchFrom([[maybe_unused]] bool bf16) {
#if HWY_TARGET == HWY_AVX3
  return bf16 ? 2 : 5;
#else
  return bf16 ? 1 : 3;
#endif
}

template <int kRows, int kPanels>
HWY_INLINE void Accumulate(const RowPointers<kRows>& x, int64_t i, const V16 (&w)[kPanels],
                           V16 (&sum)[kRows][kPanels]) {
  BLOCKSERVE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const VF a = hn::Set(DF(), x.template At<float>(r, i * 4));
    BLOCKSERVE_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      BLOCKSERVE_UNROLL
      for (int part = 0; part < kParts; ++part) {
        sum[r][p].part[part] = Fma(a, w[p].part[part], sum[r][p].part[part]);
      }
    }
  }
}

// y = GELU(sums + bias) of a tile: sums [rows, panels, 16] have just been stored and are in the
// first-level cache.
HWY_NOINLINE void StoreGelu(const MatmulArgs& args, const float* sums, int64_t row, int64_t rows,
                            int64_t panel, int64_t panels) {
  for (int64_t p = 0; p < panels; ++p) {
    const V16 bias = Load16(args.weights->bias() + (panel + p) * kPanelWidth);
    float* y = args.y + row * args.y_stride + (panel + p - args.y_first_panel) * kPanelWidth;
    for (int64_t r = 0; r < rows; ++r, y += args.y_stride) {
      Store16(Gelu(Add(Load16(sums + (r * panels + p) * kPanelWidth), bias)), y);
    }
  }
}

// kSteps inner steps; even for bf16.
template <int kRows, int kPanels, bool kBf16, int kSteps>
HWY_INLINE void Steps(RowPointers<kRows>& x, const char*& w, int64_t panel_bytes,
                      V16 (&sum)[kRows][kPanels]) {
  if constexpr (kBf16) {
    BLOCKSERVE_UNROLL
    for (int i = 0; i < kSteps; i += 2, w += kPanelWidth * 4) {
      V16 step[kPanels];
      BLOCKSERVE_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        step[p] = LoadBf16Low(reinterpret_cast<const uint32_t*>(w + p * panel_bytes));
      }
      Accumulate<kRows, kPanels>(x, i, step, sum);
      BLOCKSERVE_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        step[p] = LoadBf16High(reinterpret_cast<const uint32_t*>(w + p * panel_bytes));
      }
      Accumulate<kRows, kPanels>(x, i + 1, step, sum);
    }
  } else {
    BLOCKSERVE_UNROLL
    for (int i = 0; i < kSteps; ++i, w += kPanelWidth * 4) {
      V16 step[kPanels];
      BLOCKSERVE_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        step[p] = Load16(reinterpret_cast<const float*>(w + p * panel_bytes));
      }
      Accumulate<kRows, kPanels>(x, i, step, sum);
    }
  }
  x.Advance(kSteps * 4);
}

// Panels as they lie in a matrix, or somewhere else.
struct Panels {
  const char* data;
  int64_t panel_bytes;
  int64_t steps;  // inner steps; even for bf16
};

template <bool kBf16>
HWY_INLINE Panels PanelsFrom(const PackedMatrix& weights, int64_t panel) {
  // With an odd k the last odd step of bf16 multiplies the zero padding of x with a zero weight.
  return {weights.panel_data() + panel * weights.panel_bytes(), weights.panel_bytes(),
          kBf16 ? (weights.k() + 1) / 2 * 2 : weights.k()};
}

// Outputs of kPanels panels from `panel` on, whose weights are `panels`.
template <int kRows, int kPanels, bool kBf16>
HWY_INLINE void Tile(const MatmulArgs& args, int64_t row, int64_t panel, const Panels& panels,
                     WeightPrefetcher& prefetcher) {
  const PackedMatrix& weights = *args.weights;
  int64_t panel_bytes = panels.panel_bytes;
  const char* w = panels.data;
  RowPointers<kRows> x;
  x.Set(reinterpret_cast<const char*>(args.x + row * args.x_stride), args.x_stride * 4);
  KeepInRegister(panel_bytes);

  V16 sum[kRows][kPanels];
  BLOCKSERVE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BLOCKSERVE_UNROLL
    for (int p = 0; p < kPanels; ++p) sum[r][p] = Set16(0.0f);
  }

  int64_t steps = panels.steps;
  for (; steps >= kChunk; steps -= kChunk) {
    prefetcher.Burst();
#pragma GCC unroll 1
    for (int64_t i = 0; i < kChunk; i += kUnroll) {
      Steps<kRows, kPanels, kBf16, kUnroll>(x, w, panel_bytes, sum);
    }
  }
  for (; steps > 0; steps -= (kBf16 ? 2 : 1)) {
    Steps<kRows, kPanels, kBf16, (kBf16 ? 2 : 1)>(x, w, panel_bytes, sum);
  }

  if (args.epilogue == Epilogue::kGelu) {
    alignas(64) float sums[kRows * kPanels * kPanelWidth];
    BLOCKSERVE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      BLOCKSERVE_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        Store16(sum[r][p], sums + (r * kPanels + p) * kPanelWidth);
      }
    }
    return StoreGelu(args, sums, row, kRows, panel, kPanels);
  }
  V16 bias[kPanels];
  BLOCKSERVE_UNROLL
  for (int p = 0; p < kPanels; ++p) bias[p] = Load16(weights.bias() + (panel + p) * kPanelWidth);
  const int64_t first = row * args.y_stride + (panel - args.y_first_panel) * kPanelWidth;
  float* y = args.y + first;
  if (args.epilogue == Epilogue::kAddResidual) {
    // y may be the residual. Bias first, then the residual.
    const float* residual = args.residual + first;
    BLOCKSERVE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      BLOCKSERVE_UNROLL
      for (int p = 0; p < kPanels; ++p) {
        const int64_t at = r * args.y_stride + p * kPanelWidth;
        Store16(Add(Load16(residual + at), Add(sum[r][p], bias[p])), y + at);
      }
    }
    return;
  }
  BLOCKSERVE_UNROLL
  for (int r = 0; r < kRows; ++r) {
    BLOCKSERVE_UNROLL
    for (int p = 0; p < kPanels; ++p) {
      Store16(Add(sum[r][p], bias[p]), y + r * args.y_stride + p * kPanelWidth);
    }
  }
}

template <int kRows, bool kBf16>
HWY_NOINLINE void RowTile(const MatmulArgs& args, int64_t row, int64_t begin, int64_t end,
                          WeightPrefetcher& prefetcher) {
  constexpr int kPanels = TilePanels(kRows, kBf16);
  int64_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) {
    Tile<kRows, kPanels, kBf16>(args, row, panel, PanelsFrom<kBf16>(*args.weights, panel),
                                prefetcher);
  }
  if constexpr (kPanels > 1) {
    for (; panel < end; ++panel) {
      Tile<kRows, 1, kBf16>(args, row, panel, PanelsFrom<kBf16>(*args.weights, panel), prefetcher);
    }
  }
}

template <bool kBf16, int kRows = MaxTileRows(kBf16)>
HWY_INLINE void RunTile(const MatmulArgs& args, int64_t rows, int64_t row, int64_t begin,
                        int64_t end, WeightPrefetcher& prefetcher) {
  if (rows == kRows) return RowTile<kRows, kBf16>(args, row, begin, end, prefetcher);
  if constexpr (kRows > 1) RunTile<kBf16, kRows - 1>(args, rows, row, begin, end, prefetcher);
}

// With many rows, AVX2 and NEON widen a panel of bf16 once for all of them: their tiles of bf16 are
// smaller than those of float32, for want of registers.
constexpr int64_t kWidenFromRows = 16;
constexpr int64_t kWidenMaxSteps = 4096;

template <int kRows = MaxTileRows(false)>
HWY_INLINE void RunWidenedTile(const MatmulArgs& args, int64_t rows, int64_t row, int64_t panel,
                               const Panels& panels, WeightPrefetcher& prefetcher) {
  if (rows == kRows) return Tile<kRows, 1, false>(args, row, panel, panels, prefetcher);
  if constexpr (kRows > 1) {
    RunWidenedTile<kRows - 1>(args, rows, row, panel, panels, prefetcher);
  }
}

[[maybe_unused]] HWY_NOINLINE void RunWidened(const MatmulArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kMaxTileRows = MaxTileRows(false);
  const PackedMatrix& weights = *args.weights;
  alignas(64) float wide[kWidenMaxSteps * kPanelWidth];
  const int64_t tiles = (args.rows + kMaxTileRows - 1) / kMaxTileRows;
  for (int64_t panel = begin; panel < end; ++panel) {
    const Panels narrow = PanelsFrom<true>(weights, panel);
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(narrow.data);
    for (int64_t i = 0; i < narrow.steps; i += 2, pairs += kPanelWidth) {
      Store16(LoadBf16Low(pairs), wide + i * kPanelWidth);
      Store16(LoadBf16High(pairs), wide + (i + 1) * kPanelWidth);
    }
    const Panels panels = {reinterpret_cast<const char*>(wide), 0, narrow.steps};
    WeightPrefetcher prefetcher =
        WeightPrefetcher::After(args, panel + 1, end, 1, tiles * (narrow.steps / kChunk));
    int64_t row = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t rows = (args.rows - row + tiles - tile - 1) / (tiles - tile);
      RunWidenedTile(args, rows, row, panel, panels, prefetcher);
      row += rows;
    }
  }
}

template <bool kBf16>
void RunPanels(const MatmulArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t kMaxTileRows = MaxTileRows(kBf16);
  const PackedMatrix& weights = *args.weights;
  if constexpr (kBf16 && (HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_NEON)) {
    if (args.rows >= kWidenFromRows && weights.k() <= kWidenMaxSteps) {
      return RunWidened(args, begin, end);
    }
  }
  // Tiles of nearly equal height: 8 rows are 4 + 4, for 6 + 2 would leave units idle.
  const int64_t tiles = (args.rows + kMaxTileRows - 1) / kMaxTileRows;
  if (tiles == 0) return;
  const int64_t side_by_side = TilePanels(static_cast<int>((args.rows + tiles - 1) / tiles), kBf16);
  const int64_t group = WeightGroup(weights, side_by_side);
  for (int64_t first = begin; first < end; first += group) {
    const int64_t last = std::min(end, first + group);
    WeightPrefetcher prefetcher;
    if (args.rows >= PrefetchFrom(kBf16)) {
      const int64_t passes = (last - first + side_by_side - 1) / side_by_side;
      prefetcher =
          WeightPrefetcher::After(args, last, end, group, tiles * passes * (weights.k() / kChunk));
    }
    int64_t row = 0;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t rows = (args.rows - row + tiles - tile - 1) / (tiles - tile);
      RunTile<kBf16>(args, rows, row, first, last, prefetcher);
      row += rows;
    }
  }
}

}  // namespace

void Matmul(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end) {
  if (args.weights->format() == WeightFormat::kBf16) {
    RunPanels<true>(args, panel_begin, panel_end);
  } else {
    RunPanels<false>(args, panel_begin, panel_end);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace blockserve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace blockserve {

decltype(CpuKernels::matmul) MatmulKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, Matmul);
}

}  // namespace blockserve
#endif  // HWY_ONCE
