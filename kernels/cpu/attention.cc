#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/bf16.h"
#include "kernels/cpu/attention_tiles.h"
#include "kernels/cpu/dot_attention.h"

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

// Queries that share the loads of keys and values in registers: a tile. The tiles of a run share
// them in the first-level cache.
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
constexpr int kMaxQueries = 1;
#else
constexpr int kMaxQueries = static_cast<int>(kAttentionQueries);
#endif

// Groups of 16 keys, or of 16 dimensions of an output, that are computed side by side: enough
// chains to keep the units busy, few enough to stay in registers.
constexpr int GroupsAtOnce([[maybe_unused]] int queries) {
#if HWY_TARGET == HWY_AVX3
  return 4;
#elif HWY_TARGET == HWY_AVX2
  return queries == 1 ? 4 : queries <= 3 ? 2 : 1;
#elif HWY_TARGET == HWY_NEON
  return queries <= 2 ? 2 : 1;
#else
  return 1;
#endif
}
constexpr int kMaxGroups = kMaxKeyGroups;

// Positions whose values all tiles of a run add before the next ones are read.
constexpr int64_t kValuesAtOnce = 64;

// sum[n] += factors[n * stride] * values, for all groups.
template <int kQueries, int kGroups>
HWY_INLINE void AddProducts(const float* factors, int64_t stride, const V16 (&values)[kGroups],
                            V16 (&sum)[kQueries][kGroups]) {
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    const V16 factor = Set16(factors[n * stride]);
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) sum[n][g] = Fma(factor, values[g], sum[n][g]);
  }
}

// Scores of kQueries queries from `query` on against groups [first, first + kGroups): one chain
// over the head's dimensions each. `ahead`: what will be read next, fetched meanwhile.
template <int kQueries, int kGroups, bool kBf16>
HWY_INLINE void Scores(const QueryRun& run, const KvLayout& layout, int64_t query,
                       const KeyGroups& groups, int first, const KeyGroups& ahead) {
  V16 sum[kQueries][kGroups];
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) sum[n][g] = Set16(0.0f);
  }
  const float* q = run.q + query * run.q_stride;
  const uint8_t* keys[kGroups];
  BLOCKSERVE_UNROLL
  for (int g = 0; g < kGroups; ++g) keys[g] = groups.keys[first + g];
  const int64_t step = layout.key_lanes() * 4;  // bytes
  const bool fetch = ahead.count >= first + kGroups;
  V16 k[kGroups];
  int64_t offset = 0;
  // bf16: with an odd head size the last odd step multiplies the zero padding of q.
  for (int32_t i = 0; i < layout.head_size; i += kBf16 ? 2 : 1, offset += step) {
    if (fetch) {
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) __builtin_prefetch(ahead.keys[first + g] + offset);
    }
    if constexpr (kBf16) {
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        k[g] = LoadBf16Low(reinterpret_cast<const uint32_t*>(keys[g] + offset));
      }
      AddProducts(q + i, run.q_stride, k, sum);
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        k[g] = LoadBf16High(reinterpret_cast<const uint32_t*>(keys[g] + offset));
      }
      AddProducts(q + i + 1, run.q_stride, k, sum);
    } else {
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        k[g] = Load16(reinterpret_cast<const float*>(keys[g] + offset));
      }
      AddProducts(q + i, run.q_stride, k, sum);
    }
  }
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      Store16(sum[n][g], run.scores + (query + n) * run.scores_stride + groups.at[first + g]);
    }
  }
}

template <int kQueries, bool kBf16>
HWY_NOINLINE void TileScores(const QueryRun& run, const KvLayout& layout, int64_t query,
                             const KeyGroups& groups, const KeyGroups& ahead) {
  constexpr int kGroups = GroupsAtOnce(kQueries);
  int first = 0;
  for (; first + kGroups <= groups.count; first += kGroups) {
    Scores<kQueries, kGroups, kBf16>(run, layout, query, groups, first, ahead);
  }
  if constexpr (kGroups > 1) {
    for (; first < groups.count; ++first) {
      Scores<kQueries, 1, kBf16>(run, layout, query, groups, first, ahead);
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

// 16 dimensions of the value at a position of a page; `row`: where it lies, with another in bf16.
template <bool kBf16>
HWY_INLINE V16 LoadValues(const uint8_t* row, int64_t local, int64_t dimension) {
  const uint8_t* at = row + dimension * 4;
  if constexpr (!kBf16) return Load16(reinterpret_cast<const float*>(at));
  const uint32_t* pairs = reinterpret_cast<const uint32_t*>(at);
  return local % 2 == 0 ? LoadBf16Low(pairs) : LoadBf16High(pairs);
}

// sums += weight * value over the positions [begin, end) that each query sees, for kGroups * 16
// dimensions; the first positions begin at zero.
template <int kQueries, int kGroups, bool kBf16>
HWY_INLINE void WeightedValues(const AttentionArgs& args, const QueryRun& run, int64_t query,
                               int64_t dimension, int64_t begin, int64_t end) {
  const KvLayout& layout = *args.layout;
  float* sums = run.sums + query * layout.head_stride() + dimension;
  V16 sum[kQueries][kGroups];
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      sum[n][g] =
          begin == 0 ? Set16(0.0f) : Load16(sums + n * layout.head_stride() + g * kPanelWidth);
    }
  }
  const float* weights = run.scores + query * run.scores_stride;
  // Positions that every query sees, then those that only the later ones see.
  const int64_t position = run.position + query;
  const int64_t common = std::min(end, position + 1);
  const int64_t length = std::min(end, position + kQueries);
  int64_t i = begin;
  for (int64_t page = begin / layout.page_blocks; i < length; ++page) {
    const int64_t first = page * layout.page_blocks;
    const int64_t page_end = std::min<int64_t>(first + layout.page_blocks, length);
    const int64_t common_end = std::min(page_end, common);
    const uint8_t* values = run.HeadOfPage(args, page) + layout.keys_bytes();
    // The same row of the next page is fetched meanwhile.
    const bool more = first + layout.page_blocks < run.length();
    const int64_t to_next = more ? run.HeadOfPage(args, page + 1) - run.HeadOfPage(args, page) : 0;
    while (i < common_end) {
      const uint8_t* row = values + layout.value_row(i - first);
      const bool both = kBf16 && (i - first) % 2 == 0 && i + 1 < common_end;
      V16 v[kGroups];
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        const int64_t at = dimension + g * kPanelWidth;
        v[g] = LoadValues<kBf16>(row, i - first, at);
        __builtin_prefetch(row + to_next + at * 4);
      }
      AddProducts(weights + i++, run.scores_stride, v, sum);
      if (!both) continue;
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        v[g] = LoadValues<kBf16>(row, 1, dimension + g * kPanelWidth);
      }
      AddProducts(weights + i++, run.scores_stride, v, sum);
    }
    for (; i < page_end; ++i) {
      const uint8_t* row = values + layout.value_row(i - first);
      BLOCKSERVE_UNROLL
      for (int n = 1; n < kQueries; ++n) {
        if (position + n < i) continue;
        const V16 weight = Set16(weights[n * run.scores_stride + i]);
        BLOCKSERVE_UNROLL
        for (int g = 0; g < kGroups; ++g) {
          sum[n][g] = Fma(weight, LoadValues<kBf16>(row, i - first, dimension + g * kPanelWidth),
                          sum[n][g]);
        }
      }
    }
  }
  BLOCKSERVE_UNROLL
  for (int n = 0; n < kQueries; ++n) {
    BLOCKSERVE_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      Store16(sum[n][g], sums + n * layout.head_stride() + g * kPanelWidth);
    }
  }
}

template <int kQueries, bool kBf16>
HWY_NOINLINE void TileValues(const AttentionArgs& args, const QueryRun& run, int64_t query,
                             int64_t begin, int64_t end) {
  constexpr int kGroups = GroupsAtOnce(kQueries);
  const int64_t dimensions = args.layout->head_stride();
  int64_t dimension = 0;
  for (; dimension + kGroups * kPanelWidth <= dimensions; dimension += kGroups * kPanelWidth) {
    WeightedValues<kQueries, kGroups, kBf16>(args, run, query, dimension, begin, end);
  }
  if constexpr (kGroups > 1) {
    for (; dimension < dimensions; dimension += kPanelWidth) {
      WeightedValues<kQueries, 1, kBf16>(args, run, query, dimension, begin, end);
    }
  }
}

// What keys and values are stored as, and how they are multiplied.
enum class Products { kF32, kBf16, kBf16Dot };

template <Products kProducts>
void AttendRun(const AttentionArgs& args, const QueryRun& run) {
  constexpr bool kBf16 = kProducts != Products::kF32;
  constexpr bool kDot = kProducts == Products::kBf16Dot;
  const KvLayout& layout = *args.layout;
  if constexpr (kDot) Bf16DotQueries(run, layout);
  const auto tile_queries = [&](int64_t query) {
    return std::min<int64_t>(kMaxQueries, run.queries - query);
  };
  // Lanes past the end of a page are overwritten by the next page's, or masked.
  KeyGroupReader reader(args, run);
  KeyGroups groups = reader.Next(kMaxGroups);
  while (groups.count > 0) {
    const KeyGroups ahead = reader.Next(kMaxGroups);
    for (int64_t query = 0; query < run.queries; query += kMaxQueries) {
      const int64_t queries = tile_queries(query);
      // A run's last positions are seen by its last tiles alone.
      KeyGroups seen = groups;
      while (seen.count > 0 && seen.at[seen.count - 1] >= run.position + query + queries) {
        --seen.count;
      }
      const KeyGroups fetched = query == 0 ? ahead : KeyGroups();
      if constexpr (kDot) {
        Bf16DotScores(run, layout, query, queries, seen, fetched);
      } else {
        ForTile<kMaxQueries>(queries, [&](auto count) HWY_ATTR {
          TileScores<count(), kBf16>(run, layout, query, seen, fetched);
        });
      }
    }
    groups = ahead;
  }

  for (int64_t n = 0; n < run.queries; ++n) {
    float* scores = run.scores + n * run.scores_stride;
    const int64_t own = run.position + n + 1;
    for (int64_t i = own; i < PadToPanel(own); ++i) {
      scores[i] = -std::numeric_limits<float>::infinity();
    }
    // Its place in the padding is free: the weights' sum.
    scores[run.scores_stride - 1] = Exponentials(scores, PadToPanel(own));
    if constexpr (kDot) Bf16DotWeights(run, n, PadToPanel(own));
  }

  const int64_t at_once = run.queries > kMaxQueries ? kValuesAtOnce : run.length();
  for (int64_t begin = 0; begin < run.length(); begin += at_once) {
    const int64_t end = std::min(begin + at_once, run.length());
    for (int64_t query = 0; query < run.queries; query += kMaxQueries) {
      const int64_t queries = tile_queries(query);
      if (begin >= run.position + query + queries) continue;
      if constexpr (kDot) {
        Bf16DotValues(args, run, query, queries, begin, end);
      } else {
        ForTile<kMaxQueries>(queries, [&](auto count) HWY_ATTR {
          TileValues<count(), kBf16>(args, run, query, begin, end);
        });
      }
    }
  }

  for (int64_t n = 0; n < run.queries; ++n) {
    const V16 inverse = Set16(1.0f / run.scores[(n + 1) * run.scores_stride - 1]);
    const float* sums = run.sums + n * layout.head_stride();
    float* out = run.out + n * run.out_stride;
    int64_t i = 0;
    for (; i + kPanelWidth <= layout.head_size; i += kPanelWidth) {
      Store16(Mul(Load16(sums + i), inverse), out + i);
    }
    if (i < layout.head_size) {
      // The head's last dimensions: what follows belongs to the next head.
      alignas(64) float tail[kPanelWidth];
      Store16(Mul(Load16(sums + i), inverse), tail);
      std::memcpy(out + i, tail, (layout.head_size - i) * sizeof(float));
    }
  }
}

template <Products kProducts>
void AttentionRows(const AttentionArgs& args, int64_t row_begin, int64_t row_end, int32_t head,
                   float* scratch) {
  const KvLayout& layout = *args.layout;
  const auto follows = [&](int64_t r) {
    const SequenceRow& row = args.sequence_rows[r];
    const SequenceRow& before = args.sequence_rows[r - 1];
    return row.pages == before.pages && row.position == before.position + 1;
  };
  QueryRun run;
  run.q_stride = layout.num_heads * layout.head_stride();
  run.out_stride = args.out_stride;
  run.head = head;
  run.sums = scratch;
  run.q_pairs = reinterpret_cast<uint32_t*>(scratch + kAttentionRun * layout.head_stride());
  run.scores = scratch + kAttentionRun * layout.head_stride() * 3 / 2;
  for (int64_t r = row_begin; r < row_end;) {
    run.queries = 1;
    while (run.queries < kAttentionRun && r + run.queries < row_end && follows(r + run.queries)) {
      ++run.queries;
    }
    run.q = args.q + r * run.q_stride + head * layout.head_stride();
    run.pages = args.sequence_rows[r].pages;
    run.position = args.sequence_rows[r].position;
    run.scores_stride = AttentionScoresStride(run.position + run.queries - 1);
    run.out = args.out + r * args.out_stride + static_cast<int64_t>(head) * layout.head_size;
    AttendRun<kProducts>(args, run);
    r += run.queries;
  }
}

// Dimensions that are rotated and rounded before they are stored, which vectors do and the places
// of keys and values prevent.
constexpr int32_t kHeadPiece = 64;

// out[i] = dimension begin + i of a head `x`, for i < count. Rotary embedding, half-split pairing:
// products and their difference are rounded separately.
HWY_INLINE void RotatePiece(const float* x, int32_t dims, const float* cos, const float* sin,
                            int32_t begin, int32_t count, float* out) {
  const int32_t half = dims / 2;
  const int32_t end = begin + count;
  int32_t i = begin;
  for (; i < std::min(half, end); ++i) {
    out[i - begin] = x[i] * cos[i] - x[i + half] * sin[i];
  }
  for (; i < std::min(dims, end); ++i) {
    out[i - begin] = x[i] * cos[i - half] + x[i - half] * sin[i - half];
  }
  for (; i < end; ++i) out[i - begin] = x[i];
}

// The lines of a head's keys and values that `row` will be written to are brought into the cache: a
// row touches one line of every dimension, which stores alone would wait for one after the other.
void FetchForWriting(const SplitQkvArgs& args, const SequenceRow& row, int32_t head) {
  const KvLayout& layout = *args.layout;
  const int64_t local = row.position % layout.page_blocks;
  const uint8_t* keys = args.kv +
                        row.pages[row.position / layout.page_blocks] * layout.page_bytes() +
                        head * layout.head_bytes();
  const uint8_t* group = keys + local / kPanelWidth * layout.key_group_bytes();
  for (int64_t i = 0; i < layout.key_group_bytes(); i += 64) __builtin_prefetch(group + i, 1);
  const uint8_t* values = keys + layout.keys_bytes() + layout.value_row(local);
  for (int64_t i = 0; i < layout.value_row_bytes(); i += 64) __builtin_prefetch(values + i, 1);
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
  uint8_t* values = keys + layout.keys_bytes() + layout.value_row(local);

  const float* k_in = q_in + size;
  uint8_t* group = keys + local / kPanelWidth * layout.key_group_bytes();
  const int64_t lanes = layout.key_lanes();
  const int64_t lane = local % kPanelWidth;
  alignas(64) float piece[kHeadPiece];
  alignas(64) uint16_t rounded[kHeadPiece];
  for (int32_t begin = 0; begin < size; begin += kHeadPiece) {
    const int32_t count = std::min(kHeadPiece, size - begin);
    RotatePiece(k_in, dims, cos, sin, begin, count, piece);
    if (!layout.bf16) {
      float* k = reinterpret_cast<float*>(group) + begin * lanes + lane;
      for (int32_t i = 0; i < count; ++i) k[i * lanes] = piece[i];
      continue;
    }
    if (count % 2 != 0) piece[count] = 0.0f;
    Bf16FromFloats(piece, count + count % 2, rounded);
    uint32_t* k = reinterpret_cast<uint32_t*>(group) + begin / 2 * lanes + lane;
    for (int32_t i = 0; i < count; i += 2, k += lanes) {
      std::memcpy(k, rounded + i, sizeof(uint32_t));
    }
    // The other half of the values' pairs may be written at this moment, by another thread.
    Bf16FromFloats(v_in + begin, count, rounded);
    uint16_t* v = reinterpret_cast<uint16_t*>(values) + begin * 2 + local % 2;
    for (int32_t i = 0; i < count; ++i) v[2 * i] = rounded[i];
  }
  if (!layout.bf16) std::memcpy(values, v_in, size * sizeof(float));

  RotatePiece(q_in, dims, cos, sin, 0, size, q);
  for (int32_t i = 0; i < size; ++i) q[i] *= args.q_scale;
  for (int64_t i = size; i < layout.head_stride(); ++i) q[i] = 0.0f;
}

// Rows of a head between what is fetched and what is used.
constexpr int64_t kRowsAhead = 3;

// q, k and v of a head of a row, and the place of its query.
void FetchInput(const SplitQkvArgs& args, int64_t r, int32_t head) {
  const KvLayout& layout = *args.layout;
  const float* in = args.qkv + r * args.qkv_stride + int64_t{3} * head * layout.head_size;
  for (int64_t i = 0; i < 3 * layout.head_size; i += kPanelWidth) __builtin_prefetch(in + i);
  const float* q = args.q + (r * layout.num_heads + head) * layout.head_stride();
  for (int64_t i = 0; i < layout.head_stride(); i += kPanelWidth) __builtin_prefetch(q + i, 1);
}

}  // namespace

void SplitQkv(const SplitQkvArgs& args, int64_t row_begin, int64_t row_end) {
  // Rows of a prompt follow one another in the lines of a head's keys: these stay in the cache.
  const KvLayout& layout = *args.layout;
  const auto page_of = [&](int64_t r) {
    return args.sequence_rows[r].pages[args.sequence_rows[r].position / layout.page_blocks];
  };
  for (int32_t head = 0; head < layout.num_heads; ++head) {
    for (int64_t begin = row_begin; begin < row_end;) {
      int64_t end = begin + 1;
      while (end < row_end && page_of(end) == page_of(begin)) ++end;
      if (end < row_end) {
        FetchForWriting(args, args.sequence_rows[end], head);
      } else if (head + 1 < layout.num_heads) {
        FetchForWriting(args, args.sequence_rows[row_begin], head + 1);
      }
      for (; begin < end; ++begin) {
        // Rows lie too far apart for the processor to foresee which come next.
        int64_t next = begin + kRowsAhead;
        int32_t next_head = head;
        for (; next >= row_end; ++next_head) next -= row_end - row_begin;
        if (next_head < layout.num_heads) FetchInput(args, next, next_head);
        SplitHead(args, begin, head);
      }
    }
  }
}

void Attention(const AttentionArgs& args, int64_t row_begin, int64_t row_end, int32_t head,
               float* scratch) {
  if (args.layout->bf16) {
    AttentionRows<Products::kBf16>(args, row_begin, row_end, head, scratch);
  } else {
    AttentionRows<Products::kF32>(args, row_begin, row_end, head, scratch);
  }
}

#if HWY_TARGET == HWY_AVX3
void Bf16DotAttention(const AttentionArgs& args, int64_t row_begin, int64_t row_end, int32_t head,
                      float* scratch) {
  AttentionRows<Products::kBf16Dot>(args, row_begin, row_end, head, scratch);
}
#endif

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

decltype(CpuKernels::attention) Bf16DotAttentionKernel([[maybe_unused]] KernelTarget target) {
  if (target != KernelTarget::kAvx512 || !HasBf16DotAttention()) return nullptr;
  return BLOCKSERVE_AVX512_FUNCTION(Bf16DotAttention);
}

}  // namespace blockserve
#endif  // HWY_ONCE
