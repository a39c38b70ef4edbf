#include "kernels/cpu/dot_matmul.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/base.h"
#include "kernels/cpu/weight_prefetcher.h"

#if HWY_ARCH_X86_64
#include <immintrin.h>
#elif HWY_ARCH_ARM_A64
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace blockserve {
namespace {

// Lines of weights (16 outputs, 4 bytes each) between two bursts of prefetches, and those written
// out one after the other.
constexpr int64_t kChunk = 8;
constexpr int kUnroll = 4;

// Splits rows into tiles of nearly equal height and panels into groups that stay in the cache.
// tile(rows, row, first panel, last panel, prefetcher).
template <typename Tile>
void ForTiles(const MatmulArgs& args, int64_t begin, int64_t end, int64_t max_rows,
              int64_t side_by_side, const Tile& tile) {
  const PackedMatrix& weights = *args.weights;
  const int64_t tiles = (args.rows + max_rows - 1) / max_rows;
  const int64_t group = WeightGroup(weights, side_by_side);
  for (int64_t first = begin; first < end; first += group) {
    const int64_t last = std::min(end, first + group);
    const int64_t passes = (last - first + side_by_side - 1) / side_by_side;
    WeightPrefetcher prefetcher = WeightPrefetcher::After(
        args, last, end, group, tiles * passes * (weights.panel_bytes() / 64 / kChunk));
    int64_t row = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t rows = (args.rows - row + tiles - t - 1) / (tiles - t);
      tile(rows, row, first, last, prefetcher);
      row += rows;
    }
  }
}

// One panel at a time, in tiles of at most Kernel::kMaxRows rows: Kernel::Tile<rows>(row, panel).
template <typename Kernel, int kRows = Kernel::kMaxRows>
void RunPanels(const MatmulArgs& args, int64_t rows, int64_t row, int64_t begin, int64_t end,
               WeightPrefetcher& prefetcher) {
  if (rows == kRows) {
    for (int64_t panel = begin; panel < end; ++panel) {
      Kernel::template Tile<kRows>(args, row, panel, prefetcher);
    }
    return;
  }
  if constexpr (kRows > 1) {
    RunPanels<Kernel, kRows - 1>(args, rows, row, begin, end, prefetcher);
  }
}

template <typename Kernel>
void PanelByPanel(const MatmulArgs& args, int64_t begin, int64_t end) {
  ForTiles(
      args, begin, end, Kernel::kMaxRows, 1,
      [&](int64_t rows, int64_t row, int64_t first, int64_t last, WeightPrefetcher& prefetcher) {
        RunPanels<Kernel>(args, rows, row, first, last, prefetcher);
      });
}

void PlainInt8(const MatmulArgs& args, int64_t begin, int64_t end) {
  const PackedMatrix& weights = *args.weights;
  alignas(64) int32_t sums[kPanelWidth];
  for (int64_t panel = begin; panel < end; ++panel) {
    for (int64_t row = 0; row < args.rows; ++row) {
      const int16_t* x =
          reinterpret_cast<const int16_t*>(args.quantized + row * args.quantized_stride);
      const int8_t* w =
          reinterpret_cast<const int8_t*>(weights.panel_data() + panel * weights.panel_bytes());
      std::fill(sums, sums + kPanelWidth, 0);
      for (int64_t i = 0; i < weights.k(); i += 4, w += 4 * kPanelWidth) {
        for (int64_t o = 0; o < kPanelWidth; ++o) {
          for (int64_t j = 0; j < 4; ++j) sums[o] += int32_t{x[i + j]} * w[o * 4 + j];
        }
      }
      args.finish_dots(args, {row, 1, panel, 1, reinterpret_cast<const uint32_t*>(sums)});
    }
  }
}

}  // namespace
}  // namespace blockserve

#if HWY_ARCH_X86_64

HWY_PUSH_ATTRIBUTES("avx2,fma,bmi,bmi2")
namespace blockserve {
namespace {

// Rows of int16, weights widened to int16: products of pairs are exact in int32, where the
// instructions on bytes would saturate. Half a panel at a time: a register of sums holds 4 outputs,
// two sums each, which leaves room for so many rows that widening costs little.
struct Avx2Int8 {
  // 12 sums, 2 weights, an input and a product are the 16 registers.
  static constexpr int kMaxRows = 6;

  template <int kRows>
  static void Tile(const MatmulArgs& args, int64_t row, int64_t panel,
                   WeightPrefetcher& prefetcher) {
    const PackedMatrix& weights = *args.weights;
    alignas(64) int32_t sums[kRows][kPanelWidth];
#pragma GCC unroll 1
    for (int half = 0; half < 2; ++half) {
      const char* w = weights.panel_data() + panel * weights.panel_bytes() + half * 32;
      RowPointers<kRows> x;
      x.Set(reinterpret_cast<const char*>(args.quantized + row * args.quantized_stride),
            args.quantized_stride);
      __m256i sum[kRows][2];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
      const auto step = [&]() __attribute__((always_inline, target("avx2,fma,bmi,bmi2"))) {
        const __m256i low =
            _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(w)));
        const __m256i high =
            _mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(w + 16)));
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const __m256i a = _mm256_set1_epi64x(x.template At<int64_t>(r, 0));
          sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(a, low));
          sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(a, high));
        }
        w += 64;
        x.Advance(8);
      };
      int64_t lines = weights.panel_bytes() / 64;
      for (; lines >= kChunk; lines -= kChunk) {
        if (half == 0) prefetcher.Burst();
#pragma GCC unroll 1
        for (int64_t i = 0; i < kChunk; ++i) step();
      }
      for (; lines > 0; --lines) step();
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256i pairs = _mm256_hadd_epi32(sum[r][0], sum[r][1]);
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r] + 8 * half),
                           _mm256_permute4x64_epi64(pairs, 0xd8));
      }
    }
    args.finish_dots(args, {row, kRows, panel, 1, reinterpret_cast<const uint32_t*>(sums)});
  }
};

}  // namespace
}  // namespace blockserve
HWY_POP_ATTRIBUTES

HWY_PUSH_ATTRIBUTES("avx512f,avx512vl,avx512dq,avx512bw,avx512vnni,avx512bf16,avx2,fma,bmi,bmi2")
namespace blockserve {
namespace {

// Sixteen chains of sums, one for each output: each step adds two or four products to every one.
struct Bf16Dot {
  using Sums = __m512;
  static HWY_INLINE Sums Zero() { return _mm512_setzero_ps(); }
  static HWY_INLINE Sums Step(Sums sums, __m512i x, __m512i w) {
    return _mm512_dpbf16_ps(sums, (__m512bh)x, (__m512bh)w);
  }
  static HWY_INLINE void Store(Sums sums, uint32_t* out) { _mm512_store_ps(out, sums); }
};
struct Int8Dot {
  using Sums = __m512i;
  static HWY_INLINE Sums Zero() { return _mm512_setzero_si512(); }
  static HWY_INLINE Sums Step(Sums sums, __m512i x, __m512i w) {
    return _mm512_dpbusd_epi32(sums, x, w);
  }
  static HWY_INLINE void Store(Sums sums, uint32_t* out) { _mm512_store_si512(out, sums); }
};

constexpr int kMaxTileRows = 12;
constexpr int TilePanels(int rows) { return rows <= 6 ? 4 : rows <= 8 ? 3 : 2; }

template <typename Dot, int kRows, int kPanels, int kLines>
HWY_INLINE void Steps(RowPointers<kRows>& x, const char*& w, int64_t panel_bytes,
                      typename Dot::Sums (&sum)[kRows][kPanels]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLines; ++i, w += 64) {
    __m512i step[kPanels];
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) step[p] = _mm512_load_si512(w + p * panel_bytes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const __m512i a = _mm512_set1_epi32(x.template At<int32_t>(r, i * 4));
#pragma GCC unroll 16
      for (int p = 0; p < kPanels; ++p) sum[r][p] = Dot::Step(sum[r][p], a, step[p]);
    }
  }
  x.Advance(kLines * 4);
}

template <typename Dot, int kRows, int kPanels>
HWY_INLINE void Tile(const MatmulArgs& args, int64_t row, int64_t panel,
                     WeightPrefetcher& prefetcher) {
  const PackedMatrix& weights = *args.weights;
  int64_t panel_bytes = weights.panel_bytes();
  const char* w = weights.panel_data() + panel * panel_bytes;
  RowPointers<kRows> x;
  x.Set(reinterpret_cast<const char*>(args.quantized + row * args.quantized_stride),
        args.quantized_stride);
  KeepInRegister(panel_bytes);
  typename Dot::Sums sum[kRows][kPanels];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) sum[r][p] = Dot::Zero();
  }
  int64_t lines = panel_bytes / 64;
  for (; lines >= kChunk; lines -= kChunk) {
    prefetcher.Burst();
#pragma GCC unroll 1
    for (int64_t i = 0; i < kChunk; i += kUnroll) {
      Steps<Dot, kRows, kPanels, kUnroll>(x, w, panel_bytes, sum);
    }
  }
  for (; lines > 0; --lines) Steps<Dot, kRows, kPanels, 1>(x, w, panel_bytes, sum);

  alignas(64) uint32_t sums[kRows * kPanels * kPanelWidth];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
    for (int p = 0; p < kPanels; ++p) {
      Dot::Store(sum[r][p], sums + (r * kPanels + p) * kPanelWidth);
    }
  }
  args.finish_dots(args, {row, kRows, panel, kPanels, sums});
}

template <typename Dot, int kRows>
void RowTile(const MatmulArgs& args, int64_t row, int64_t begin, int64_t end,
             WeightPrefetcher& prefetcher) {
  constexpr int kPanels = TilePanels(kRows);
  int64_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) {
    Tile<Dot, kRows, kPanels>(args, row, panel, prefetcher);
  }
  for (; panel < end; ++panel) Tile<Dot, kRows, 1>(args, row, panel, prefetcher);
}

template <typename Dot, int kRows = kMaxTileRows>
void RunTile(const MatmulArgs& args, int64_t rows, int64_t row, int64_t begin, int64_t end,
             WeightPrefetcher& prefetcher) {
  if (rows == kRows) return RowTile<Dot, kRows>(args, row, begin, end, prefetcher);
  if constexpr (kRows > 1) RunTile<Dot, kRows - 1>(args, rows, row, begin, end, prefetcher);
}

template <typename Dot>
void Avx512Matmul(const MatmulArgs& args, int64_t begin, int64_t end) {
  if (args.rows == 0) return;
  const int64_t tiles = (args.rows + kMaxTileRows - 1) / kMaxTileRows;
  const int64_t side_by_side = TilePanels(static_cast<int>((args.rows + tiles - 1) / tiles));
  ForTiles(
      args, begin, end, kMaxTileRows, side_by_side,
      [&](int64_t rows, int64_t row, int64_t first, int64_t last, WeightPrefetcher& prefetcher) {
        RunTile<Dot>(args, rows, row, first, last, prefetcher);
      });
}

void Avx512Bf16Dot(const MatmulArgs& args, int64_t begin, int64_t end) {
  Avx512Matmul<Bf16Dot>(args, begin, end);
}
void Avx512Int8(const MatmulArgs& args, int64_t begin, int64_t end) {
  Avx512Matmul<Int8Dot>(args, begin, end);
}

}  // namespace
}  // namespace blockserve
HWY_POP_ATTRIBUTES

#elif HWY_ARCH_ARM_A64

HWY_PUSH_ATTRIBUTES("arch=armv8.2-a+dotprod")
namespace blockserve {
namespace {

constexpr int kNeonParts = 4;  // registers of a line of weights

template <int kRows>
HWY_INLINE void NeonStep(RowPointers<kRows>& x, const char*& w,
                         int32x4_t (&sum)[kRows][kNeonParts]) {
  int8x16_t line[kNeonParts];
#pragma GCC unroll 4
  for (int p = 0; p < kNeonParts; ++p) {
    line[p] = vld1q_s8(reinterpret_cast<const int8_t*>(w) + 16 * p);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(x.template At<int32_t>(r, 0)));
#pragma GCC unroll 4
    for (int p = 0; p < kNeonParts; ++p) sum[r][p] = vdotq_s32(sum[r][p], line[p], a);
  }
  w += 64;
  x.Advance(4);
}

struct NeonInt8 {
  // 24 sums, 4 weights and an input of the 32 registers.
  static constexpr int kMaxRows = 6;

  template <int kRows>
  static void Tile(const MatmulArgs& args, int64_t row, int64_t panel,
                   WeightPrefetcher& prefetcher) {
    const PackedMatrix& weights = *args.weights;
    const char* w = weights.panel_data() + panel * weights.panel_bytes();
    RowPointers<kRows> x;
    x.Set(reinterpret_cast<const char*>(args.quantized + row * args.quantized_stride),
          args.quantized_stride);
    int32x4_t sum[kRows][kNeonParts];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kNeonParts; ++p) sum[r][p] = vdupq_n_s32(0);
    }
    int64_t lines = weights.panel_bytes() / 64;
    for (; lines >= kChunk; lines -= kChunk) {
      prefetcher.Burst();
#pragma GCC unroll 1
      for (int64_t i = 0; i < kChunk; ++i) NeonStep<kRows>(x, w, sum);
    }
    for (; lines > 0; --lines) NeonStep<kRows>(x, w, sum);
    alignas(64) int32_t sums[kRows][kPanelWidth];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kNeonParts; ++p) vst1q_s32(sums[r] + 4 * p, sum[r][p]);
    }
    args.finish_dots(args, {row, kRows, panel, 1, reinterpret_cast<const uint32_t*>(sums)});
  }
};

}  // namespace
}  // namespace blockserve
HWY_POP_ATTRIBUTES

#endif  // HWY_ARCH_ARM_A64

namespace blockserve {

Int8Rows Int8RowsOf([[maybe_unused]] KernelTarget target) {
#if HWY_ARCH_X86_64
  if (target == KernelTarget::kAvx512 && __builtin_cpu_supports("avx512vnni")) {
    return Int8Rows::kUint8;
  }
#elif HWY_ARCH_ARM_A64
  if (target == KernelTarget::kNeon && (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) {
    return Int8Rows::kInt8;
  }
#endif
  return Int8Rows::kInt16;
}

decltype(CpuKernels::matmul) Bf16DotMatmulKernel([[maybe_unused]] KernelTarget target) {
#if HWY_ARCH_X86_64
  if (target == KernelTarget::kAvx512 && __builtin_cpu_supports("avx512bf16")) {
    return &Avx512Bf16Dot;
  }
#endif
  return nullptr;
}

decltype(CpuKernels::matmul) Int8MatmulKernel([[maybe_unused]] KernelTarget target) {
#if HWY_ARCH_X86_64
  if (Int8RowsOf(target) == Int8Rows::kUint8) return &Avx512Int8;
  if (target != KernelTarget::kPortable) return &PanelByPanel<Avx2Int8>;
#elif HWY_ARCH_ARM_A64
  if (Int8RowsOf(target) == Int8Rows::kInt8) return &PanelByPanel<NeonInt8>;
#endif
  return &PlainInt8;
}

}  // namespace blockserve
