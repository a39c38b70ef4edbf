// The vector kernels of the CPU engine, one table per instruction set.
//
// Contract of all: a row's result is a fixed sequence of float32 operations that depends on nothing
// but the row's own inputs. Sums over an inner dimension are one chain of fused multiply-adds per
// output, in ascending order. Reductions run over 16 virtual lanes (element i in lane i mod 16,
// lanes in ascending order of i) and end with the tree s[i] += s[i + 8], + 4, + 2, + 1. exp and erf
// are polynomials with explicit fused multiply-adds. So the bits depend neither on the other rows
// of a batch, nor on how work is split, nor on the instruction set.
//
// Buffers of activations have rows padded to a multiple of 16 elements with zeros at the end;
// kernels write whole groups of 16 and keep the padding zero. Rows may lie further apart.
#ifndef BLOCKSERVE_KERNELS_CPU_CPU_KERNELS_H_
#define BLOCKSERVE_KERNELS_CPU_CPU_KERNELS_H_

#include <cstdint>

#include "kernels/cpu/kernel_target.h"
#include "kernels/cpu/kv_layout.h"
#include "kernels/cpu/packed_matrix.h"

namespace blockserve {

// What is done to x W^T + bias before it is stored.
enum class Epilogue { kNone, kGelu, kAddResidual };

// y[rows, n] = epilogue(x[rows, k] W^T + bias).
struct MatmulArgs;

// Sums of products of `rows` rows from `row` on with `panels` panels from `panel` on, before
// scales, bias and epilogue: [rows, panels, 16] float (kBf16Dot) or int32 (kInt8).
struct DotTile {
  int64_t row = 0;
  int64_t rows = 0;
  int64_t panel = 0;
  int64_t panels = 0;
  const uint32_t* sums = nullptr;
};

// How integers of rows are stored for the product with kInt8.
enum class Int8Rows {
  kInt16,
  kInt8,
  kUint8,  // with 128 added
};

struct MatmulArgs {
  // kF32 and kBf16 only; the other formats read `quantized`.
  const float* x = nullptr;
  int64_t x_stride = 0;  // elements, >= k padded to 16
  int64_t rows = 0;
  const PackedMatrix* weights = nullptr;
  Epilogue epilogue = Epilogue::kNone;
  const float* residual = nullptr;  // kAddResidual: [rows, y_stride], may be y itself
  float* y = nullptr;
  int64_t y_stride = 0;  // elements, >= n padded to 16
  // The panel that is y's first: a buffer may hold a part of the outputs only. 0 with a residual.
  int64_t y_first_panel = 0;

  // Hints of what to fetch ahead, which change no result: the panels up to `fetch_end` come after
  // those of this call, and then `fetch_next` from `fetch_next_panel` on, if any.
  int64_t fetch_end = 0;
  const PackedMatrix* fetch_next = nullptr;
  int64_t fetch_next_panel = 0;

  // kBf16Dot and kInt8: what CpuKernels::quantize made of x.
  const uint8_t* quantized = nullptr;
  int64_t quantized_stride = 0;     // bytes
  const float* x_scales = nullptr;  // [rows], kInt8
  Int8Rows int8_rows = Int8Rows::kInt16;
  // CpuKernels::finish_dots of the same instruction set.
  void (*finish_dots)(const MatmulArgs& args, const DotTile& tile) = nullptr;
};

// Rows of x in the form that kBf16Dot or kInt8 multiply: bfloat16, or integers round(x / scale)
// with scale = largest magnitude / 127. A row with a value that is not finite has the scale NaN,
// and so has NaN results.
struct QuantizeArgs {
  const float* x = nullptr;  // [rows, x_stride], zero from k to its padding
  int64_t x_stride = 0;      // elements
  int64_t k = 0;
  WeightFormat format = WeightFormat::kInt8;
  Int8Rows int8_rows = Int8Rows::kInt16;
  uint8_t* quantized = nullptr;  // [rows, quantized_stride]
  int64_t quantized_stride = 0;  // bytes, >= k padded to 16 times 2, multiple of 64
  float* scales = nullptr;       // [rows], kInt8
};

// y = (x - mean) / sqrt(variance + eps) * weight + bias over `width` elements.
struct LayerNormArgs {
  const float* x = nullptr;
  int64_t x_stride = 0;
  int64_t width = 0;
  float epsilon = 0;
  struct Output {
    const float* weight = nullptr;  // [width padded to 16]
    const float* bias = nullptr;
    float* y = nullptr;  // nullptr: no such output
    int64_t y_stride = 0;
  };
  // The second shares the statistics of the first (both norms of a parallel residual).
  Output outputs[2];
};

// One position of a sequence in a batch.
struct SequenceRow {
  const int32_t* pages = nullptr;  // page table of the sequence
  int64_t position = 0;            // attends to 0 .. position
};

// Takes a row of attention.query_key_value apart: rotates q and k, scales q, stores k and v in the
// row's page.
struct SplitQkvArgs {
  const float* qkv = nullptr;  // [rows, qkv_stride], by heads: q, k, v of head 0, of head 1, …
  int64_t qkv_stride = 0;
  const SequenceRow* sequence_rows = nullptr;
  const KvLayout* layout = nullptr;
  uint8_t* kv = nullptr;       // pages of this layer
  int32_t rotary_dims = 0;     // even
  const float* cos = nullptr;  // [positions, rotary_dims / 2]
  const float* sin = nullptr;
  float q_scale = 1;
  float* q = nullptr;  // [rows, heads, head_stride]
};

// Causal attention of rows over pages. Scores are one chain over the dimensions of the head, the
// softmax runs over the absolute positions, outputs are one chain over the positions: page size and
// chunking change nothing.
struct AttentionArgs {
  const float* q = nullptr;  // [rows, heads, head_stride]
  const SequenceRow* sequence_rows = nullptr;
  const KvLayout* layout = nullptr;
  const uint8_t* kv = nullptr;
  float* out = nullptr;  // [rows, out_stride], head h at h * head_size
  int64_t out_stride = 0;
};
// Rows of one sequence at consecutive positions that share the loads of keys and values: so many in
// registers, and so many in the first-level cache. Calls with a multiple of them waste none.
inline constexpr int64_t kAttentionQueries = 6;
inline constexpr int64_t kAttentionRun = 4 * kAttentionQueries;
// Floats from one row of scores to the next: an odd number of cache lines, so that they do not
// share sets.
inline int64_t AttentionScoresStride(int64_t position) {
  return ((position + 1 + kPanelWidth) / kPanelWidth | 1) * kPanelWidth + 2 * kPanelWidth;
}
// Floats of scratch that attention over positions 0 .. position needs.
inline int64_t AttentionScratch(const KvLayout& layout, int64_t position) {
  return kAttentionRun * (AttentionScoresStride(position) + layout.head_stride() * 3 / 2);
}

// The statistics of a row of logits are those of its segments of so many, joined in ascending
// order: a segment's are known as soon as it is computed, whatever becomes of the others.
inline constexpr int64_t kLogitSegment = 256;

struct SegmentStatistics {
  float max = 0;
  float sum_exp = 0;    // of exp(logit - max): 16 lanes and their tree
  bool finite = false;  // all of the segment
};

struct LogitStatistics {
  float max = 0;
  // Of exp(logit - max): the segments' sums, each times exp(its max - max) in float32, added in
  // float64.
  double sum_exp = 0;
  bool finite = false;  // all of the row
};

struct CpuKernels {
  KernelTarget target = KernelTarget::kPortable;

  // Panels [panel_begin, panel_end) of the output, all rows.
  void (*matmul)(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end) = nullptr;
  // The same for kBf16Dot: products in the order of the instruction, of kAmx another one than of
  // kAvx512; nullptr where the machine lacks it. For kInt8: exact sums of integers, the same on every machine.
  void (*bf16dot_matmul)(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end) = nullptr;
  void (*int8_matmul)(const MatmulArgs& args, int64_t panel_begin, int64_t panel_end) = nullptr;
  Int8Rows int8_rows = Int8Rows::kInt16;  // what int8_matmul reads
  void (*quantize)(const QuantizeArgs& args, int64_t row_begin, int64_t row_end) = nullptr;
  // y of a tile from its sums: scales, bias, epilogue.
  void (*finish_dots)(const MatmulArgs& args, const DotTile& tile) = nullptr;
  void (*layer_norm)(const LayerNormArgs& args, int64_t row_begin, int64_t row_end) = nullptr;
  void (*split_qkv)(const SplitQkvArgs& args, int64_t row_begin, int64_t row_end) = nullptr;
  // One head. `scratch`: AttentionScratch of the largest position.
  void (*attention)(const AttentionArgs& args, int64_t row_begin, int64_t row_end, int32_t head,
                    float* scratch) = nullptr;
  // The same over bf16 pages with queries and weights rounded to bfloat16, too: scores are pairs of
  // products in the order of the instruction, outputs those of positions 0 and 1, 2 and 3, …; the
  // sum of the weights is that of before they are rounded. Pairs stay within a page: page_blocks is
  // even, or no sequence has a second page. nullptr where the machine lacks AVX512-BF16.
  void (*bf16dot_attention)(const AttentionArgs& args, int64_t row_begin, int64_t row_end,
                            int32_t head, float* scratch) = nullptr;

  // Statistics of a segment of `n` logits, and of a row of `count` segments.
  SegmentStatistics (*segment_statistics)(const float* logits, int64_t n) = nullptr;
  LogitStatistics (*join_segments)(const SegmentStatistics* segments, int64_t count) = nullptr;
  // The largest of `n` values.
  float (*max_value)(const float* values, int64_t n) = nullptr;
  // The lowest index of `n` that holds `value`; n when there is none.
  int64_t (*first_index_of)(const float* values, int64_t n, float value) = nullptr;
  // weights[i] = exp((logits[i] - max) / temperature) for i < n; both arrays padded to 16.
  void (*softmax_weights)(const float* logits, int64_t n, float max, float temperature,
                          float* weights) = nullptr;
  // values[i] = exp(values[i]) and erf(values[i]) for i < n, padded to 16: for tests of accuracy.
  void (*exp_in_place)(float* values, int64_t n) = nullptr;
  void (*erf_in_place)(float* values, int64_t n) = nullptr;
};

// `target` must be one that SupportedKernelTargets names: others would run instructions that the
// machine lacks, or have no functions.
const CpuKernels& GetCpuKernels(KernelTarget target);

// Statistics of a whole row of `n` logits.
LogitStatistics StatisticsOf(const CpuKernels& kernels, const float* logits, int64_t n);

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_CPU_CPU_KERNELS_H_
