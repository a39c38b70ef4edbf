// The products of attention by AVX512-BF16, which adds two at once; softmax and the order of the
// work are those of attention.cc. Written with intrinsics, for Highway 1.0.3 has no such thing.
#ifndef BLOCKSERVE_KERNELS_CPU_DOT_ATTENTION_H_
#define BLOCKSERVE_KERNELS_CPU_DOT_ATTENTION_H_

#include <cstdint>

#include "kernels/cpu/attention_tiles.h"

namespace blockserve {

// Whether the functions below may be called on this machine.
bool HasBf16DotAttention();

// run.q_pairs from run.q.
void Bf16DotQueries(const QueryRun& run, const KvLayout& layout);

// Scores of `queries` (at most kAttentionQueries) from `query` on against `groups`, while those of
// `ahead` are fetched.
void Bf16DotScores(const QueryRun& run, const KvLayout& layout, int64_t query, int64_t queries,
                   const KeyGroups& groups, const KeyGroups& ahead);

// The first `count` (a multiple of 16) weights of query n, rounded to bfloat16 in place: 2 bytes
// each from the row's begin.
void Bf16DotWeights(const QueryRun& run, int64_t n, int64_t count);

// run.sums += weight * value over the positions [begin, end) that each query sees; begin is even,
// and at 0 the sums begin. After Bf16DotWeights.
void Bf16DotValues(const AttentionArgs& args, const QueryRun& run, int64_t query, int64_t queries,
                   int64_t begin, int64_t end);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_DOT_ATTENTION_H_
