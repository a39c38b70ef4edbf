#include "kernels/cpu/amx_matmul.h"

#include "hwy/base.h"

#if HWY_ARCH_X86_64

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "kernels/cpu/dot_matmul.h"
#include "kernels/cpu/weight_prefetcher.h"

namespace blockserve {
namespace {

// The instructions are written out: of the compilers' intrinsics for them, those of gcc 12 do not
// say which memory they read.

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileLines = 16;  // of weights: 4 bytes of each row's input
constexpr int kInputTile = 4;       // those before are sums

template <int kTile>
HWY_INLINE void LoadTile(const void* data, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(data), "r"(stride), "i"(kTile) : "memory");
}
// The same for what is read once in a pass: it takes no place in the first-level cache, which the
// rows' inputs and the sums need.
template <int kTile>
HWY_INLINE void StreamTile(const void* data, int64_t stride) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(data), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
HWY_INLINE void StoreTile(void* data, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(data), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
HWY_INLINE void ZeroTile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
// Zeroes the tiles, too.
HWY_INLINE void LoadConfig(const AmxTileConfig& config) {
  asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
}
HWY_INLINE void ReleaseTiles() { asm volatile("tilerelease"); }

struct Int8Dot {
  template <int kSums, int kInput, int kWeights>
  static HWY_INLINE void Add() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kInput), "i"(kWeights));
  }
};

// Of the products of a tile those of the even inputs are one chain of sums from zero, those of the
// odd ones another; their sum is added to what was there.
struct Bf16Dot {
  template <int kSums, int kInput, int kWeights>
  static HWY_INLINE void Add() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                 :
                 : "i"(kSums), "i"(kInput), "i"(kWeights));
  }
};

// Calls visit(0), …, visit(kCount - 1) with constants.
template <int kCount, typename Visit>
HWY_INLINE void ForEach(const Visit& visit) {
  [&]<int... kIndices>(std::integer_sequence<int, kIndices...>) __attribute__((always_inline)) {
    (visit(std::integral_constant<int, kIndices>()), ...);
  }
  (std::make_integer_sequence<int, kCount>());
}

// Rows that are multiplied at a time, one tile of them or two. Two by two tiles of sums need fewest
// loads, but one tile of rows with four of weights serves few rows better than two half-empty ones.
struct RowPass {
  int64_t row = 0;
  int64_t rows = 0;
  AmxTileConfig whole;  // for steps of kTileLines lines of weights
  AmxTileConfig rest;   // for the last lines
  int64_t rest_lines = 0;
};

constexpr int SumsTile(int row_tile, int panel) { return row_tile * 2 + panel; }

AmxTileConfig ConfigFor(int64_t rows, int64_t lines) {
  AmxTileConfig config;
  const int64_t second = std::max<int64_t>(rows - kTileRows, 0);
  const auto set = [&](int tile, int64_t tile_rows, int64_t row_bytes) {
    config.rows[tile] = static_cast<uint8_t>(tile_rows);
    config.row_bytes[tile] = static_cast<uint16_t>(row_bytes);
  };
  const int64_t first = rows - second;
  for (int tile = 0; tile < kInputTile; ++tile) {
    set(tile, second > 0 && tile >= SumsTile(1, 0) ? second : first, kPanelWidth * 4);
  }
  set(kInputTile, first, lines * 4);
  for (int tile = kInputTile + 1; tile < 8; ++tile) set(tile, lines, kPanelWidth * 4);
  if (second > 0) set(kInputTile + 1, second, lines * 4);
  return config;
}

// Adds the products of up to kTileLines lines to all sums.
template <typename Dot, int kRowTiles, int kPanels>
HWY_INLINE void Step(const uint8_t* x, int64_t x_stride, const char* w, int64_t panel_bytes) {
  constexpr int kWeightTile = kInputTile + kRowTiles;
  constexpr int kWeightTiles = 8 - kWeightTile;
  ForEach<kRowTiles>([&](auto r) __attribute__((always_inline)) {
    LoadTile<kInputTile + r()>(x + r() * kTileRows * x_stride, x_stride);
  });
  ForEach<kPanels>([&](auto p) __attribute__((always_inline)) {
    constexpr int kWeights = kWeightTile + decltype(p)::value % kWeightTiles;
    StreamTile<kWeights>(w + p() * panel_bytes, 64);
    ForEach<kRowTiles>([&](auto r) __attribute__((always_inline)) {
      constexpr int kRow = decltype(r)::value;
      Dot::template Add<SumsTile(kRow, decltype(p)::value), kInputTile + kRow, kWeights>();
    });
  });
}

// Fetches the lines of y that a tile will write, while its products are made: written all at once
// afterwards, each would be waited for.
template <int kPanels>
class OutputPrefetcher {
 public:
  OutputPrefetcher(const MatmulArgs& args, const RowPass& pass, int64_t panel, int64_t steps)
      : next_(args.y + pass.row * args.y_stride + (panel - args.y_first_panel) * kPanelWidth),
        stride_(args.y_stride),
        left_(pass.rows),
        rows_per_step_((pass.rows + steps - 1) / std::max<int64_t>(steps, 1)) {}

  HWY_INLINE void Step() {
    const int64_t rows = std::min(left_, rows_per_step_);
    for (int64_t r = 0; r < rows; ++r, next_ += stride_) {
      ForEach<kPanels>([&](auto p) __attribute__((always_inline)) {
        asm volatile("prefetchw %0" : : "m"(next_[p() * kPanelWidth]));
      });
    }
    left_ -= rows;
  }

 private:
  const float* next_;
  int64_t stride_;
  int64_t left_;
  int64_t rows_per_step_;
};

template <typename Dot, int kRowTiles, int kPanels>
void Tile(const MatmulArgs& args, const RowPass& pass, int64_t panel,
          WeightPrefetcher& prefetcher) {
  const PackedMatrix& weights = *args.weights;
  const int64_t panel_bytes = weights.panel_bytes();
  const char* w = weights.panel_data() + panel * panel_bytes;
  const uint8_t* x = args.quantized + pass.row * args.quantized_stride;
  alignas(64) uint32_t sums[kRowTiles * kTileRows * kPanels * kPanelWidth];
  const auto for_sums = [&](const auto& visit) __attribute__((always_inline)) {
    ForEach<kRowTiles>([&](auto r) __attribute__((always_inline)) {
      ForEach<kPanels>([&](auto p) __attribute__((always_inline)) {
        visit(std::integral_constant<int, SumsTile(decltype(r)::value, decltype(p)::value)>(),
              sums + (r() * kTileRows * kPanels + p()) * kPanelWidth);
      });
    });
  };
  const auto store = [&] {
    for_sums([&](auto tile, uint32_t* out)
                 __attribute__((always_inline)) { StoreTile<tile()>(out, kPanels * 64); });
  };
  const int64_t steps = panel_bytes / 64 / kTileLines;
  if (pass.rest_lines > 0) {
    LoadConfig(pass.whole);
  } else {
    for_sums([&](auto tile, uint32_t*) __attribute__((always_inline)) { ZeroTile<tile()>(); });
  }
  OutputPrefetcher<kPanels> outputs(args, pass, panel, steps);
  for (int64_t step = 0; step < steps; ++step) {
    prefetcher.Burst();
    outputs.Step();
    Step<Dot, kRowTiles, kPanels>(x, args.quantized_stride, w, panel_bytes);
    x += kTileLines * 4;
    w += kTileLines * 64;
  }
  store();
  if (pass.rest_lines > 0) {
    LoadConfig(pass.rest);
    for_sums([&](auto tile, uint32_t* in)
                 __attribute__((always_inline)) { LoadTile<tile()>(in, kPanels * 64); });
    Step<Dot, kRowTiles, kPanels>(x, args.quantized_stride, w, panel_bytes);
    store();
  }
  args.finish_dots(args, {pass.row, pass.rows, panel, kPanels, sums});
}

template <typename Dot, int kRowTiles, int kPanels>
void Tiles(const MatmulArgs& args, const RowPass& pass, int64_t begin, int64_t end,
           WeightPrefetcher& prefetcher) {
  for (; begin + kPanels <= end; begin += kPanels) {
    Tile<Dot, kRowTiles, kPanels>(args, pass, begin, prefetcher);
  }
  if constexpr (kPanels > 1) {
    Tiles<Dot, kRowTiles, kPanels - 1>(args, pass, begin, end, prefetcher);
  }
}

template <typename Dot>
void AmxMatmul(const MatmulArgs& args, int64_t begin, int64_t end) {
  const PackedMatrix& weights = *args.weights;
  const int64_t lines = weights.panel_bytes() / 64;
  constexpr int64_t kSideBySide = 4;
  constexpr int64_t kPassRows = 2 * kTileRows;
  const int64_t passes = (args.rows + kPassRows - 1) / kPassRows;
  const int64_t group = WeightGroup(weights, kSideBySide);
  RowPass pass;
  pass.rest_lines = lines % kTileLines;
  int64_t configured_rows = 0;
  for (int64_t first = begin; first < end; first += group) {
    const int64_t last = std::min(end, first + group);
    // Where one pass takes four panels at a time, half of the next group is fetched: the processor
    // foresees the rest, and all of it was slower with 16 rows.
    WeightPrefetcher prefetcher = WeightPrefetcher::After(
        args, last, end, group, passes * (last - first) / 2 * (lines / kTileLines));
    for (int64_t row = 0; row < args.rows; row += kPassRows) {
      pass.row = row;
      pass.rows = std::min(kPassRows, args.rows - row);
      if (pass.rows != configured_rows) {
        configured_rows = pass.rows;
        pass.whole = ConfigFor(pass.rows, kTileLines);
        pass.rest = ConfigFor(pass.rows, pass.rest_lines);
        LoadConfig(pass.whole);
      }
      if (pass.rows > kTileRows) {
        Tiles<Dot, 2, 2>(args, pass, first, last, prefetcher);
      } else {
        Tiles<Dot, 1, 4>(args, pass, first, last, prefetcher);
      }
    }
  }
  ReleaseTiles();
}

// So few rows wait for weights alone, which the loads of AMX bring more slowly: 1 to 3 rows had a
// third fewer tokens, 4 as many. The integers are the same.
constexpr int64_t kFewestRows = 4;

void AmxInt8(const MatmulArgs& args, int64_t begin, int64_t end) {
  static const decltype(CpuKernels::matmul) few = Int8MatmulKernel(KernelTarget::kAvx512);
  if (args.rows < kFewestRows) return few(args, begin, end);
  AmxMatmul<Int8Dot>(args, begin, end);
}

bool RequestAmx() {
  unsigned int eax = 0;
  unsigned int ebx = 0;
  unsigned int ecx = 0;
  unsigned int edx = 0;
  constexpr unsigned int kBf16 = 1u << 22;
  constexpr unsigned int kTile = 1u << 24;
  constexpr unsigned int kInt8 = 1u << 25;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM, which older headers lack
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool AmxIsThere() {
  static const bool there = RequestAmx();
  return there;
}

decltype(CpuKernels::matmul) AmxInt8MatmulKernel() { return &AmxInt8; }
decltype(CpuKernels::matmul) AmxBf16DotMatmulKernel() { return &AmxMatmul<Bf16Dot>; }

}  // namespace blockserve

#else

namespace blockserve {

bool AmxIsThere() { return false; }
decltype(CpuKernels::matmul) AmxInt8MatmulKernel() { return nullptr; }
decltype(CpuKernels::matmul) AmxBf16DotMatmulKernel() { return nullptr; }

}  // namespace blockserve

#endif  // HWY_ARCH_X86_64
