#include "kernels/cpu/dot_attention.h"

#include <algorithm>

#include "hwy/base.h"

#if HWY_ARCH_X86_64

#include <immintrin.h>

HWY_PUSH_ATTRIBUTES("avx512f,avx512vl,avx512dq,avx512bw,avx512bf16,avx2,fma,bmi,bmi2")
namespace blockserve {
namespace {

constexpr int kMaxQueries = static_cast<int>(kAttentionQueries);
// Groups of 16 dimensions of an output that are computed side by side.
constexpr int kMaxGroups = kMaxKeyGroups;

HWY_INLINE __m512 Dot(__m512 sums, uint32_t pair, __m512i pairs) {
  return _mm512_dpbf16_ps(sums, (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)),
                          (__m512bh)pairs);
}

// One chain for each query and key, two dimensions of the head a step.
template <int kQueries, int kGroups>
HWY_INLINE void Scores(const QueryRun& run, const KvLayout& layout, int64_t query,
                       const KeyGroups& groups, int first, const KeyGroups& ahead) {
  __m512 sum[kQueries][kGroups];
#pragma GCC unroll 16
  for (int n = 0; n < kQueries; ++n) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) sum[n][g] = _mm512_setzero_ps();
  }
  const int64_t q_stride = layout.head_stride() / 2;
  const uint32_t* q = run.q_pairs + query * q_stride;
  const uint8_t* keys[kGroups];
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; ++g) keys[g] = groups.keys[first + g];
  const int64_t step = layout.key_lanes() * 4;  // bytes
  const bool fetch = ahead.count >= first + kGroups;
  // With an odd head size the last pair multiplies the zero padding of q.
  const int64_t pairs = (layout.head_size + 1) / 2;
  int64_t offset = 0;
#pragma GCC unroll 1
  for (int64_t i = 0; i < pairs; ++i, offset += step) {
    __m512i k[kGroups];
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      k[g] = _mm512_loadu_si512(keys[g] + offset);
      if (fetch) __builtin_prefetch(ahead.keys[first + g] + offset);
    }
#pragma GCC unroll 16
    for (int n = 0; n < kQueries; ++n) {
#pragma GCC unroll 16
      for (int g = 0; g < kGroups; ++g) sum[n][g] = Dot(sum[n][g], q[n * q_stride + i], k[g]);
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < kQueries; ++n) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      _mm512_storeu_ps(run.scores + (query + n) * run.scores_stride + groups.at[first + g],
                       sum[n][g]);
    }
  }
}

// For kGroups * 16 dimensions: one chain for each query and dimension, two positions a step.
template <int kQueries, int kGroups>
HWY_INLINE void Values(const AttentionArgs& args, const QueryRun& run, int64_t query,
                       int64_t dimension, int64_t begin, int64_t end) {
  const KvLayout& layout = *args.layout;
  float* sums = run.sums + query * layout.head_stride() + dimension;
  __m512 sum[kQueries][kGroups];
#pragma GCC unroll 16
  for (int n = 0; n < kQueries; ++n) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      sum[n][g] = begin == 0 ? _mm512_setzero_ps()
                             : _mm512_loadu_ps(sums + n * layout.head_stride() + g * kPanelWidth);
    }
  }
  const int64_t row_bytes = layout.value_row_bytes();
  const int64_t rows = layout.value_rows();  // pairs of a page
  // Pairs that every query sees, then those that only some see, or see half of.
  const int64_t position = run.position + query;
  const int64_t common = std::min(end, position + 1) / 2;
  const int64_t last = (std::min(end, position + kQueries) + 1) / 2;
  const uint32_t* weights =
      reinterpret_cast<const uint32_t*>(run.scores) + query * run.scores_stride;
  int64_t pair = begin / 2;
  for (int64_t page = pair / rows; pair < last; ++page) {
    const int64_t first = page * rows;
    const int64_t page_end = std::min(first + rows, last);
    const uint8_t* value =
        run.HeadOfPage(args, page) + layout.keys_bytes() + (pair - first) * row_bytes;
    // The same row of the next page is fetched meanwhile.
    const bool more = (first + rows) * 2 < run.length();
    const int64_t to_next = more ? run.HeadOfPage(args, page + 1) - run.HeadOfPage(args, page) : 0;
    const int64_t common_end = std::min(page_end, common);
#pragma GCC unroll 1
    for (; pair < common_end; ++pair, value += row_bytes) {
      __m512i v[kGroups];
#pragma GCC unroll 16
      for (int g = 0; g < kGroups; ++g) {
        const uint8_t* at = value + (dimension + g * kPanelWidth) * 4;
        v[g] = _mm512_loadu_si512(at);
        __builtin_prefetch(at + to_next);
      }
#pragma GCC unroll 16
      for (int n = 0; n < kQueries; ++n) {
#pragma GCC unroll 16
        for (int g = 0; g < kGroups; ++g) {
          sum[n][g] = Dot(sum[n][g], weights[n * run.scores_stride + pair], v[g]);
        }
      }
    }
#pragma GCC unroll 1
    for (; pair < page_end; ++pair, value += row_bytes) {
#pragma GCC unroll 16
      for (int n = 0; n < kQueries; ++n) {
        const int64_t seen = position + n + 1 - 2 * pair;
        if (seen <= 0) continue;
        // The position after the last one may not have been written: its weight is 0, but not
        // every product with 0 is.
        const __m512i mask = _mm512_set1_epi32(seen == 1 ? 0xffff : -1);
#pragma GCC unroll 16
        for (int g = 0; g < kGroups; ++g) {
          const __m512i v = _mm512_loadu_si512(value + (dimension + g * kPanelWidth) * 4);
          sum[n][g] =
              Dot(sum[n][g], weights[n * run.scores_stride + pair], _mm512_and_si512(v, mask));
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int n = 0; n < kQueries; ++n) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      _mm512_storeu_ps(sums + n * layout.head_stride() + g * kPanelWidth, sum[n][g]);
    }
  }
}

template <int kQueries>
HWY_NOINLINE void TileScores(const QueryRun& run, const KvLayout& layout, int64_t query,
                             const KeyGroups& groups, const KeyGroups& ahead) {
  if (groups.count == kMaxGroups) {
    return Scores<kQueries, kMaxGroups>(run, layout, query, groups, 0, ahead);
  }
  for (int g = 0; g < groups.count; ++g) {
    Scores<kQueries, 1>(run, layout, query, groups, g, ahead);
  }
}

template <int kQueries>
HWY_NOINLINE void TileValues(const AttentionArgs& args, const QueryRun& run, int64_t query,
                             int64_t begin, int64_t end) {
  constexpr int64_t kStep = int64_t{kMaxGroups} * kPanelWidth;
  const int64_t dimensions = args.layout->head_stride();
  int64_t dimension = 0;
  for (; dimension + kStep <= dimensions; dimension += kStep) {
    Values<kQueries, kMaxGroups>(args, run, query, dimension, begin, end);
  }
  for (; dimension < dimensions; dimension += kPanelWidth) {
    Values<kQueries, 1>(args, run, query, dimension, begin, end);
  }
}

// 16 floats to bfloat16, to nearest even.
HWY_INLINE void Round16(const float* in, void* out) {
  _mm256_storeu_si256(static_cast<__m256i*>(out), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(in)));
}

}  // namespace

void Bf16DotQueries(const QueryRun& run, const KvLayout& layout) {
  const int64_t stride = layout.head_stride();
  for (int64_t n = 0; n < run.queries; ++n) {
    for (int64_t i = 0; i < stride; i += kPanelWidth) {
      Round16(run.q + n * run.q_stride + i, run.q_pairs + (n * stride + i) / 2);
    }
  }
}

void Bf16DotScores(const QueryRun& run, const KvLayout& layout, int64_t query, int64_t queries,
                   const KeyGroups& groups, const KeyGroups& ahead) {
  ForTile<kMaxQueries>(queries,
                       [&](auto count) { TileScores<count()>(run, layout, query, groups, ahead); });
}

void Bf16DotWeights(const QueryRun& run, int64_t n, int64_t count) {
  float* weights = run.scores + n * run.scores_stride;
  for (int64_t i = 0; i < count; i += kPanelWidth) Round16(weights + i, weights + i / 2);
}

void Bf16DotValues(const AttentionArgs& args, const QueryRun& run, int64_t query, int64_t queries,
                   int64_t begin, int64_t end) {
  ForTile<kMaxQueries>(queries,
                       [&](auto count) { TileValues<count()>(args, run, query, begin, end); });
}

}  // namespace blockserve
HWY_POP_ATTRIBUTES

#endif  // HWY_ARCH_X86_64

namespace blockserve {

bool HasBf16DotAttention() {
#if HWY_ARCH_X86_64
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace blockserve
