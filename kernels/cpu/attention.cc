#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "kernels/cpu/highway_targets.h"
// Highway's order: foreach_target before highway.
#include "hwy/foreach_target.h"
#include "kernels/cpu/vec16-inl.h"

HWY_BEFORE_NAMESPACE();
namespace blockserve {
namespace HWY_NAMESPACE {
namespace {

// Queries of one sequence that share the loads of keys and values.
constexpr int kMaxQueries = kParts > 2 ? 1 : static_cast<int>(kAttentionQueries);

// Groups of 16 keys, or of 16 dimensions of an output, that are computed side by side: enough
// chains to keep the units busy, few enough to stay in registers.
constexpr int GroupsAtOnce([[maybe_unused]] int queries) {
#if HWY_TARGET == HWY_AVX3
  return 4;
#elif HWY_TARGET == HWY_AVX2
  return queries == 1 ? 4 : queries <= 3 ? 2 : 1;
#else
  return 1;
#endif
}

// Consecutive positions of one sequence and one head.
struct QueryTile {
  const float* q;        // [queries, q_stride]
  int64_t q_stride;      // elements
  const int32_t* pages;  // of the sequence
  int64_t position;      // of the first query
  int32_t head;
  float* scores;          // [queries, scores_stride]
  int64_t scores_stride;  // elements
  float* out;             // [queries, out_stride], at the head's first dimension
  int64_t out_stride;     // elements

  const uint8_t* HeadOfPage(const AttentionArgs& args, int64_t page) const {
    return args.kv + pages[page] * args.layout->page_bytes() + head * args.layout->head_bytes();
  }
};

// Scores of kGroups * 16 positions from `at` on: one chain over the head's dimensions each.
template <int kQueries, int kGroups, bool kBf16>
HWY_INLINE void Scores(const QueryTile& tile, const KvLayout& layout, const uint8_t* keys,
                       int64_t at) {
  V16 sum[kQueries][kGroups];
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) sum[n][g] = Set16(0.0f);
  }
  const auto add = [&](int64_t dimension, const V16(&k)[kGroups]) HWY_ATTR {
    BLOCKSERVE_UNROLL
    for (int n = 0; n < kQueries; ++n) {
      const V16 a = Set16(tile.q[n * tile.q_stride + dimension]);
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) sum[n][g] = Fma(a, k[g], sum[n][g]);
    }
  };
  const int64_t group_elements = layout.key_group_bytes() / 4;
  const int64_t lanes = layout.key_lanes();
  V16 k[kGroups];
  if constexpr (kBf16) {
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(keys);
    // With an odd head size the last odd step multiplies the zero padding of q.
    for (int32_t i = 0; i < layout.head_size; i += 2, pairs += lanes) {
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) k[g] = LoadBf16Low(pairs + g * group_elements);
      add(i, k);
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) k[g] = LoadBf16High(pairs + g * group_elements);
      add(i + 1, k);
    }
  } else {
    const float* floats = reinterpret_cast<const float*>(keys);
    for (int32_t i = 0; i < layout.head_size; ++i, floats += lanes) {
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) k[g] = Load16(floats + g * group_elements);
      add(i, k);
    }
  }
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      Store16(sum[n][g], tile.scores + n * tile.scores_stride + at + g * kPanelWidth);
    }
  }
}

// Scores of all positions up to the last query's; each row's end in -infinity after its own.
template <int kQueries, bool kBf16>
HWY_INLINE void AllScores(const AttentionArgs& args, const QueryTile& tile) {
  constexpr int kGroups = GroupsAtOnce(kQueries);
  const KvLayout& layout = *args.layout;
  const int64_t length = tile.position + kQueries;
  for (int64_t page = 0; page * layout.page_blocks < length; ++page) {
    const int64_t first = page * layout.page_blocks;
    const int64_t in_page = std::min<int64_t>(layout.page_blocks, length - first);
    const int64_t groups = (in_page + kPanelWidth - 1) / kPanelWidth;
    const uint8_t* keys = tile.HeadOfPage(args, page);
    // Lanes past the end of the page are overwritten by the next page, or masked.
    int64_t g = 0;
    for (; g + kGroups <= groups; g += kGroups) {
      Scores<kQueries, kGroups, kBf16>(tile, layout, keys + g * layout.key_group_bytes(),
                                       first + g * kPanelWidth);
    }
    if constexpr (kGroups > 1) {
      for (; g < groups; ++g) {
        Scores<kQueries, 1, kBf16>(tile, layout, keys + g * layout.key_group_bytes(),
                                   first + g * kPanelWidth);
      }
    }
  }
  for (int n = 0; n < kQueries; ++n) {
    float* scores = tile.scores + n * tile.scores_stride;
    const int64_t own = tile.position + n + 1;
    for (int64_t i = own; i < PadToPanel(own); ++i) {
      scores[i] = -std::numeric_limits<float>::infinity();
    }
  }
}

// Turns scores into exp(score - max) and returns their sum.
HWY_INLINE float Exponentials(float* scores, int64_t padded) {
  V16 max = Load16(scores);
  for (int64_t i = kPanelWidth; i < padded; i += kPanelWidth) max = Max(max, Load16(scores + i));
  const V16 largest = Set16(ReduceMax(max));
  V16 sum = Set16(0.0f);
  for (int64_t i = 0; i < padded; i += kPanelWidth) {
    const V16 e = Exp(Sub(Load16(scores + i), largest));
    Store16(e, scores + i);
    sum = Add(sum, e);
  }
  return ReduceSum(sum);
}

template <bool kBf16>
HWY_INLINE V16 LoadValues(const uint8_t* value, int64_t dimension) {
  return kBf16 ? LoadBf16(reinterpret_cast<const uint16_t*>(value) + dimension)
               : Load16(reinterpret_cast<const float*>(value) + dimension);
}

// out = sum over positions of weight * value, for kGroups * 16 dimensions.
template <int kQueries, int kGroups, bool kBf16>
HWY_INLINE void WeightedValues(const AttentionArgs& args, const QueryTile& tile, int64_t dimension,
                               const float (&inverse_sums)[kQueries]) {
  const KvLayout& layout = *args.layout;
  V16 sum[kQueries][kGroups];
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) sum[n][g] = Set16(0.0f);
  }
  const int64_t row_bytes = layout.value_row_bytes();
  // Positions that every query sees, then those that only the later ones see.
  const int64_t common = tile.position + 1;
  const int64_t length = tile.position + kQueries;
  for (int64_t page = 0; page * layout.page_blocks < length; ++page) {
    const int64_t first = page * layout.page_blocks;
    const int64_t end = std::min<int64_t>(first + layout.page_blocks, length);
    const uint8_t* value = tile.HeadOfPage(args, page) + layout.keys_bytes();
    const float* weights = tile.scores + first;
    int64_t i = first;
    for (; i < std::min(end, common); ++i, value += row_bytes, ++weights) {
      V16 v[kGroups];
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g)
        v[g] = LoadValues<kBf16>(value, dimension + g * kPanelWidth);
      BLOCKSERVE_UNROLL
      for (int n = 0; n < kQueries; ++n) {
        const V16 weight = Set16(weights[n * tile.scores_stride]);
        BLOCKSERVE_UNROLL
        for (int g = 0; g < kGroups; ++g) sum[n][g] = Fma(weight, v[g], sum[n][g]);
      }
    }
    for (; i < end; ++i, value += row_bytes, ++weights) {
      BLOCKSERVE_UNROLL
      for (int n = 1; n < kQueries; ++n) {
        if (tile.position + n < i) continue;
        const V16 weight = Set16(weights[n * tile.scores_stride]);
        BLOCKSERVE_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          sum[n][g] = Fma(weight, LoadValues<kBf16>(value, dimension + g * kPanelWidth), sum[n][g]);
        }
      }
    }
  }
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      const V16 result = Mul(sum[n][g], Set16(inverse_sums[n]));
      const int64_t at = dimension + g * kPanelWidth;
      float* out = tile.out + n * tile.out_stride + at;
      if (at + kPanelWidth <= layout.head_size) {
        Store16(result, out);
      } else {
        // The head's last dimensions: what follows belongs to the next head.
        alignas(64) float tail[kPanelWidth];
        Store16(result, tail);
        std::memcpy(out, tail, (layout.head_size - at) * sizeof(float));
      }
    }
  }
}

template <int kQueries, bool kBf16>
HWY_NOINLINE void RunQueries(const AttentionArgs& args, const QueryTile& tile) {
  constexpr int kGroups = GroupsAtOnce(kQueries);
  AllScores<kQueries, kBf16>(args, tile);
  float inverse_sums[kQueries];
  for (int n = 0; n < kQueries; ++n) {
    inverse_sums[n] = 1.0f / Exponentials(tile.scores + n * tile.scores_stride,
                                          PadToPanel(tile.position + n + 1));
  }
  const int64_t dimensions = args.layout->head_stride();
  int64_t dimension = 0;
  for (; dimension + kGroups * kPanelWidth <= dimensions; dimension += kGroups * kPanelWidth) {
    WeightedValues<kQueries, kGroups, kBf16>(args, tile, dimension, inverse_sums);
  }
  if constexpr (kGroups > 1) {
    for (; dimension < dimensions; dimension += kPanelWidth) {
      WeightedValues<kQueries, 1, kBf16>(args, tile, dimension, inverse_sums);
    }
  }
}

template <bool kBf16, int kQueries = kMaxQueries>
HWY_INLINE void RunTile(const AttentionArgs& args, const QueryTile& tile, int64_t queries) {
  if (queries == kQueries) return RunQueries<kQueries, kBf16>(args, tile);
  if constexpr (kQueries > 1) RunTile<kBf16, kQueries - 1>(args, tile, queries);
}

template <bool kBf16>
void AttentionRows(const AttentionArgs& args, int64_t row_begin, int64_t row_end, int32_t head,
                   float* scratch) {
  const KvLayout& layout = *args.layout;
  const auto follows = [&](int64_t r) {
    const SequenceRow& row = args.sequence_rows[r];
    const SequenceRow& before = args.sequence_rows[r - 1];
    return row.pages == before.pages && row.position == before.position + 1;
  };
  QueryTile tile;
  tile.q_stride = layout.num_heads * layout.head_stride();
  tile.out_stride = args.out_stride;
  tile.head = head;
  tile.scores = scratch;
  for (int64_t r = row_begin; r < row_end;) {
    int64_t queries = 1;
    while (queries < kMaxQueries && r + queries < row_end && follows(r + queries)) ++queries;
    tile.q = args.q + r * tile.q_stride + head * layout.head_stride();
    tile.pages = args.sequence_rows[r].pages;
    tile.position = args.sequence_rows[r].position;
    // Rows of scores an odd number of cache lines apart, so that they do not share sets.
    tile.scores_stride = AttentionScratchStride(tile.position + queries - 1);
    tile.out = args.out + r * args.out_stride + static_cast<int64_t>(head) * layout.head_size;
    RunTile<kBf16>(args, tile, queries);
    r += queries;
  }
}

// Rotary embedding, half-split pairing: products and their difference are rounded separately.
void Rotate(const float* x, int32_t dims, const float* cos, const float* sin, float* y) {
  const int32_t half = dims / 2;
  for (int32_t i = 0; i < half; ++i) {
    const float a = x[i];
    const float b = x[i + half];
    y[i] = a * cos[i] - b * sin[i];
    y[i + half] = b * cos[i] + a * sin[i];
  }
}

void SplitHead(const SplitQkvArgs& args, int64_t r, int32_t head) {
  const KvLayout& layout = *args.layout;
  const SequenceRow& row = args.sequence_rows[r];
  const int32_t size = layout.head_size;
  const int32_t dims = args.rotary_dims;
  const float* cos = args.cos + row.position * (dims / 2);
  const float* sin = args.sin + row.position * (dims / 2);
  const int64_t local = row.position % layout.page_blocks;
  uint8_t* page = args.kv + row.pages[row.position / layout.page_blocks] * layout.page_bytes();
  const float* q_in = args.qkv + r * args.qkv_stride + int64_t{3} * head * size;
  const float* v_in = q_in + 2 * size;
  float* q = args.q + (r * layout.num_heads + head) * layout.head_stride();
  uint8_t* keys = page + head * layout.head_bytes();
  uint8_t* values = keys + layout.keys_bytes() + local * layout.value_row_bytes();

  // The key first, through q's place.
  const float* k_in = q_in + size;
  Rotate(k_in, dims, cos, sin, q);
  const float* k_rotated = q;
  uint8_t* group = keys + local / kPanelWidth * layout.key_group_bytes();
  const int64_t lanes = layout.key_lanes();
  const int64_t lane = local % kPanelWidth;
  if (layout.bf16) {
    uint16_t* k = reinterpret_cast<uint16_t*>(group);
    for (int32_t i = 0; i < size; ++i) {
      k[(i / 2 * lanes + lane) * 2 + i % 2] = Bf16FromFloat(i < dims ? k_rotated[i] : k_in[i]);
    }
    uint16_t* v = reinterpret_cast<uint16_t*>(values);
    for (int32_t i = 0; i < size; ++i) v[i] = Bf16FromFloat(v_in[i]);
  } else {
    float* k = reinterpret_cast<float*>(group) + lane;
    for (int32_t i = 0; i < dims; ++i) k[i * lanes] = k_rotated[i];
    for (int32_t i = dims; i < size; ++i) k[i * lanes] = k_in[i];
    std::memcpy(values, v_in, size * sizeof(float));
  }

  Rotate(q_in, dims, cos, sin, q);
  for (int32_t i = 0; i < dims; ++i) q[i] *= args.q_scale;
  for (int32_t i = dims; i < size; ++i) q[i] = q_in[i] * args.q_scale;
  for (int64_t i = size; i < layout.head_stride(); ++i) q[i] = 0.0f;
}

}  // namespace

void SplitQkv(const SplitQkvArgs& args, int64_t row_begin, int64_t row_end) {
  // Rows of a prompt follow one another in the lines of a head's keys: these stay in the cache.
  for (int32_t head = 0; head < args.layout->num_heads; ++head) {
    for (int64_t r = row_begin; r < row_end; ++r) SplitHead(args, r, head);
  }
}

void Attention(const AttentionArgs& args, int64_t row_begin, int64_t row_end, int32_t head,
               float* scratch) {
  if (args.layout->bf16) {
    AttentionRows<true>(args, row_begin, row_end, head, scratch);
  } else {
    AttentionRows<false>(args, row_begin, row_end, head, scratch);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace blockserve
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace blockserve {

decltype(CpuKernels::split_qkv) SplitQkvKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, SplitQkv);
}

decltype(CpuKernels::attention) AttentionKernel(KernelTarget target) {
  return BLOCKSERVE_KERNEL_FOR(target, Attention);
}

}  // namespace blockserve
#endif  // HWY_ONCE
