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

// Key groups whose scores are computed side by side, and groups of 16 dimensions of an output that
// are summed side by side: enough chains to keep the units busy.
constexpr int kGroupsAtOnce = kParts > 2 ? 1 : 4;
constexpr int kOutputsAtOnce = kGroupsAtOnce;

// Scores of kGroups * 16 positions: one chain over the head's dimensions each.
template <int kGroups, bool kBf16>
HWY_INLINE void Scores(const float* q, const KvLayout& layout, const uint8_t* keys, float* scores) {
  V16 sum[kGroups];
  BLOCKSERVE_UNROLL
  for (int g = 0; g < kGroups; ++g) sum[g] = Set16(0.0f);
  const int64_t group_elements = layout.key_group_bytes() / 4;
  if constexpr (kBf16) {
    const uint32_t* pairs = reinterpret_cast<const uint32_t*>(keys);
    // With an odd head size the last odd step multiplies the zero padding of q.
    for (int32_t i = 0; i < layout.head_size; i += 2, pairs += kPanelWidth) {
      const V16 even_q = Set16(q[i]);
      const V16 odd_q = Set16(q[i + 1]);
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        const uint32_t* pair = pairs + g * group_elements;
        sum[g] = Fma(odd_q, LoadBf16High(pair), Fma(even_q, LoadBf16Low(pair), sum[g]));
      }
    }
  } else {
    const float* k = reinterpret_cast<const float*>(keys);
    for (int32_t i = 0; i < layout.head_size; ++i, k += kPanelWidth) {
      const V16 a = Set16(q[i]);
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) sum[g] = Fma(a, Load16(k + g * group_elements), sum[g]);
    }
  }
  BLOCKSERVE_UNROLL
  for (int g = 0; g < kGroups; ++g) Store16(sum[g], scores + g * kPanelWidth);
}

template <bool kBf16>
void AllScores(const AttentionArgs& args, const SequenceRow& row, int32_t head, const float* q,
               float* scores) {
  const KvLayout& layout = *args.layout;
  const int64_t length = row.position + 1;
  for (int64_t page = 0; page * layout.page_blocks < length; ++page) {
    const int64_t first = page * layout.page_blocks;
    const int64_t in_page = std::min<int64_t>(layout.page_blocks, length - first);
    const int64_t groups = (in_page + kPanelWidth - 1) / kPanelWidth;
    const uint8_t* keys =
        args.kv + row.pages[page] * layout.page_bytes() + head * layout.head_bytes();
    // Lanes past the end of the page are overwritten by the next page, or masked.
    int64_t g = 0;
    for (; g + kGroupsAtOnce <= groups; g += kGroupsAtOnce) {
      Scores<kGroupsAtOnce, kBf16>(q, layout, keys + g * layout.key_group_bytes(),
                                   scores + first + g * kPanelWidth);
    }
    for (; g < groups; ++g) {
      Scores<1, kBf16>(q, layout, keys + g * layout.key_group_bytes(),
                       scores + first + g * kPanelWidth);
    }
  }
  for (int64_t i = length; i < PadToPanel(length); ++i) {
    scores[i] = -std::numeric_limits<float>::infinity();
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

// out = sum over positions of weight * value, for kGroups * 16 dimensions.
template <int kGroups, bool kBf16>
HWY_INLINE void WeightedValues(const AttentionArgs& args, const SequenceRow& row, int32_t head,
                               int64_t dimension, const float* weights, float inverse_sum,
                               float* out) {
  const KvLayout& layout = *args.layout;
  const int64_t length = row.position + 1;
  V16 sum[kGroups];
  BLOCKSERVE_UNROLL
  for (int g = 0; g < kGroups; ++g) sum[g] = Set16(0.0f);
  for (int64_t page = 0; page * layout.page_blocks < length; ++page) {
    const int64_t first = page * layout.page_blocks;
    const int64_t in_page = std::min<int64_t>(layout.page_blocks, length - first);
    const uint8_t* values = args.kv + row.pages[page] * layout.page_bytes() +
                            head * layout.head_bytes() + layout.keys_bytes();
    for (int64_t i = 0; i < in_page; ++i) {
      const V16 weight = Set16(weights[first + i]);
      const uint8_t* value = values + i * layout.value_row_bytes();
      BLOCKSERVE_UNROLL
      for (int g = 0; g < kGroups; ++g) {
        const int64_t at = dimension + g * kPanelWidth;
        const V16 v = kBf16 ? LoadBf16(reinterpret_cast<const uint16_t*>(value) + at)
                            : Load16(reinterpret_cast<const float*>(value) + at);
        sum[g] = Fma(weight, v, sum[g]);
      }
    }
  }
  BLOCKSERVE_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    const V16 result = Mul(sum[g], Set16(inverse_sum));
    const int64_t at = dimension + g * kPanelWidth;
    if (at + kPanelWidth <= layout.head_size) {
      Store16(result, out + at);
    } else {
      // The head's last dimensions: what follows belongs to the next head.
      alignas(64) float tail[kPanelWidth];
      Store16(result, tail);
      std::memcpy(out + at, tail, (layout.head_size - at) * sizeof(float));
    }
  }
}

template <bool kBf16>
void AttentionRows(const AttentionArgs& args, int64_t row_begin, int64_t row_end, int32_t head,
                   float* scratch) {
  const KvLayout& layout = *args.layout;
  const int64_t q_stride = layout.num_heads * layout.head_stride();
  for (int64_t r = row_begin; r < row_end; ++r) {
    const SequenceRow& row = args.sequence_rows[r];
    const float* q = args.q + r * q_stride + head * layout.head_stride();
    float* out = args.out + r * args.out_stride + static_cast<int64_t>(head) * layout.head_size;
    AllScores<kBf16>(args, row, head, q, scratch);
    const float inverse_sum = 1.0f / Exponentials(scratch, PadToPanel(row.position + 1));
    int64_t dimension = 0;
    for (; dimension + kOutputsAtOnce * kPanelWidth <= layout.head_stride();
         dimension += kOutputsAtOnce * kPanelWidth) {
      WeightedValues<kOutputsAtOnce, kBf16>(args, row, head, dimension, scratch, inverse_sum, out);
    }
    for (; dimension < layout.head_stride(); dimension += kPanelWidth) {
      WeightedValues<1, kBf16>(args, row, head, dimension, scratch, inverse_sum, out);
    }
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

void SplitRow(const SplitQkvArgs& args, int64_t r) {
  const KvLayout& layout = *args.layout;
  const SequenceRow& row = args.sequence_rows[r];
  const int32_t size = layout.head_size;
  const int32_t dims = args.rotary_dims;
  const float* cos = args.cos + row.position * (dims / 2);
  const float* sin = args.sin + row.position * (dims / 2);
  const int64_t local = row.position % layout.page_blocks;
  uint8_t* page = args.kv + row.pages[row.position / layout.page_blocks] * layout.page_bytes();
  for (int32_t head = 0; head < layout.num_heads; ++head) {
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
    const int64_t lane = local % kPanelWidth;
    if (layout.bf16) {
      uint16_t* k = reinterpret_cast<uint16_t*>(group);
      for (int32_t i = 0; i < size; ++i) {
        k[(i / 2 * kPanelWidth + lane) * 2 + i % 2] =
            Bf16FromFloat(i < dims ? k_rotated[i] : k_in[i]);
      }
      uint16_t* v = reinterpret_cast<uint16_t*>(values);
      for (int32_t i = 0; i < size; ++i) v[i] = Bf16FromFloat(v_in[i]);
    } else {
      float* k = reinterpret_cast<float*>(group);
      for (int32_t i = 0; i < size; ++i) {
        k[i * kPanelWidth + lane] = i < dims ? k_rotated[i] : k_in[i];
      }
      std::memcpy(values, v_in, size * sizeof(float));
    }

    Rotate(q_in, dims, cos, sin, q);
    for (int32_t i = 0; i < dims; ++i) q[i] *= args.q_scale;
    for (int32_t i = dims; i < size; ++i) q[i] = q_in[i] * args.q_scale;
    for (int64_t i = size; i < layout.head_stride(); ++i) q[i] = 0.0f;
  }
}

}  // namespace

void SplitQkv(const SplitQkvArgs& args, int64_t row_begin, int64_t row_end) {
  for (int64_t r = row_begin; r < row_end; ++r) SplitRow(args, r);
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
