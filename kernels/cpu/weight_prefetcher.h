// Fetches weights ahead of their use, and keeps the addresses of a tile's rows in registers: what
// the matrix products of every instruction set share.
#ifndef BLOCKSERVE_KERNELS_CPU_WEIGHT_PREFETCHER_H_
#define BLOCKSERVE_KERNELS_CPU_WEIGHT_PREFETCHER_H_

#include <algorithm>
#include <cstdint>

#include "hwy/base.h"
#include "kernels/cpu/cpu_kernels.h"

namespace blockserve {

// Bytes of weights that one pass over the rows reads again and again: a small part of a
// second-level cache, which holds the next group and the inputs too, and into which lines come by
// way of the first level.
inline constexpr int64_t kWeightGroupBytes = 96 * 1024;

// Panels of a group; whole tiles of `side_by_side` panels.
inline int64_t WeightGroup(const PackedMatrix& weights, int64_t side_by_side) {
  const int64_t wanted = std::max<int64_t>(kWeightGroupBytes / weights.panel_bytes(), 1);
  return (wanted + side_by_side - 1) / side_by_side * side_by_side;
}

inline bool PrefetchesIntoSecondLevel() {
#if HWY_ARCH_X86
  return __builtin_cpu_is("intel") != 0;
#else
  return false;
#endif
}

// Fetches the weights of the next group while this one is multiplied, evenly: memory and
// arithmetic run side by side, where otherwise the first pass over each group would wait for memory
// and the others leave it idle.
struct WeightPrefetcher {
  const char* next = nullptr;
  const char* end = nullptr;
  int64_t lines_per_burst = 0;

  // What comes after the panels up to `last` of a call for panels up to `end`, as far as a group of
  // `group` panels, in the course of `bursts` calls of Burst.
  static WeightPrefetcher After(const MatmulArgs& args, int64_t last, int64_t end, int64_t group,
                                int64_t bursts) {
    const PackedMatrix* weights = args.weights;
    int64_t begin = last;
    int64_t limit = std::max(end, args.fetch_end);
    if (begin >= limit && args.fetch_next != nullptr) {
      group = std::max<int64_t>(kWeightGroupBytes / args.fetch_next->panel_bytes(), 1);
      weights = args.fetch_next;
      begin = args.fetch_next_panel;
      limit = weights->num_panels();
    }
    const int64_t panels = std::max<int64_t>(std::min(limit - begin, group), 0);
    WeightPrefetcher prefetcher;
    if (panels == 0 || bursts == 0) return prefetcher;
    const int64_t bytes = panels * weights->panel_bytes();
    prefetcher.next = weights->panel_data() + begin * weights->panel_bytes();
    prefetcher.end = prefetcher.next + bytes;
    prefetcher.lines_per_burst = (bytes / 64 + bursts - 1) / bursts;
    return prefetcher;
  }

  // Hints for the second level alone are served more slowly on Zen 5, by half with 16 rows, where
  // memory must deliver all the time; on Sapphire and Emerald Rapids those for the first level are,
  // which take up what loads of the tile wait with (a third with 16 rows).
  HWY_INLINE void Burst() {
    const char* burst_end = std::min(next + lines_per_burst * 64, end);
    if (PrefetchesIntoSecondLevel()) {
      for (; next < burst_end; next += 64) __builtin_prefetch(next, 0, 2);
    } else {
      for (; next < burst_end; next += 64) __builtin_prefetch(next, 0, 3);
    }
  }
};

// Tells the compiler nothing: it must keep a pointer in a register, and addresses relative to it,
// rather than make one pointer for every row and spill them.
template <typename T>
HWY_INLINE void KeepInRegister([[maybe_unused]] T& value) {
#if HWY_ARCH_X86 || HWY_ARCH_ARM_A64
  asm("" : "+r"(value));
#endif
}

// Pointers to every third of kRows rows; those between are one and two strides further.
template <int kRows>
struct RowPointers {
  static constexpr int kCount = (kRows + 2) / 3;
  const char* row[kCount];
  int64_t stride;  // bytes

  HWY_INLINE void Set(const char* first, int64_t stride_bytes) {
    stride = stride_bytes;
    for (int j = 0; j < kCount; ++j) row[j] = first + 3 * j * stride;
    KeepInRegister(stride);
  }
  // The value of type T at `offset` bytes in row `r`.
  template <typename T>
  HWY_INLINE T At(int r, int64_t offset) const {
    return *reinterpret_cast<const T*>(row[r / 3] + (r % 3) * stride + offset);
  }
  HWY_INLINE void Advance(int64_t bytes) {
#pragma GCC unroll 8
    for (int j = 0; j < kCount; ++j) {
      row[j] += bytes;
      KeepInRegister(row[j]);
    }
  }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_WEIGHT_PREFETCHER_H_
