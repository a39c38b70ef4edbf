// The token decoder's attention: a warp a head of a slot. Lane l holds the dimensions l, l + 32, …
// of the head; a score is each lane's chain over its dimensions, joined by the warp's tree. Every
// lane writes and reads its own dimensions of keys and values alone, so nothing has to be waited
// for between the rows of a slot.
//
// What a row reads is small and far away: all of it is asked for before any of it is used, as far
// as it fits into registers.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/head_rows.h"

namespace blockserve::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpsPerBlock = kThreads / kWarp;
// Earlier positions whose keys, or values, are read together. With the row's own, which never
// leaves the registers, that is all of a block of four tokens.
constexpr int kTogether = 4;

struct BlockShared {
  float scores[kWarpsPerBlock][kMaxTokenPositions];
};

// One row of a head as it lies in qkv, by lane, and what rotates it (RotatedElement).
template <typename T, int kLaneDims>
struct HeadRow {
  T own[3][kLaneDims];    // of q, k and v
  T other[2][kLaneDims];  // what rotation joins with q and k
  float cos[kLaneDims];
  float sin[kLaneDims];

  __device__ void Load(const T* qkv, int size, int dims, const float* cosines, const float* sines) {
    const int half = dims / 2;
#pragma unroll
    for (int j = 0; j < kLaneDims; ++j) {
      const int c = static_cast<int>(threadIdx.x) % kWarp + j * kWarp;
      if (c >= size) continue;
      for (int m = 0; m < 3; ++m) own[m][j] = qkv[m * size + c];
      if (c >= dims) continue;
      const int pair = c < half ? c + half : c - half;
      for (int m = 0; m < 2; ++m) other[m][j] = qkv[m * size + pair];
      cos[j] = cosines[c < half ? c : pair];
      sin[j] = sines[c < half ? c : pair];
    }
  }
  // Element c = lane + 32 j of q (0) or k (1).
  __device__ float Rotated(int m, int j, int c, int dims) const {
    const float value = ToFloat(own[m][j]);
    if (c >= dims) return value;
    const float product = ToFloat(other[m][j]) * sin[j];
    return __fmaf_rn(value, cos[j], c < dims / 2 ? -product : product);
  }
};

template <typename T, int kLaneDims>
__global__ void __launch_bounds__(kThreads)
    TokenAttentionKernel(TokenAttentionArgs args, KvStrides strides) {
  WaitForEarlierWork();
  auto& shared = *static_cast<BlockShared*>(BlockMemory());
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const uint32_t item = blockIdx.x * kWarpsPerBlock + warp;  // in 32 bits: it is divided
  const uint32_t heads = args.layout.num_heads;
  const int size = args.layout.head_size;
  if (item >= args.slots * heads) return;  // whole warps; no barrier of the block follows
  const int64_t slot = item / heads;
  const int head = static_cast<int>(item % heads);
  float* scores = shared.scores[warp];
  T* keys = static_cast<T*>(args.kv) + strides.KeysOffset(slot, head);
  T* values = keys + strides.rows_stride;
  // Zeros where there is none.
  const auto load = [&](const T* rows, int first, int end, T(&out)[kTogether][kLaneDims]) {
#pragma unroll
    for (int p = 0; p < kTogether; ++p) {
#pragma unroll
      for (int j = 0; j < kLaneDims; ++j) {
        const int c = lane + j * kWarp;
        out[p][j] = {};
        if (first + p < end && c < size) {
          out[p][j] = rows[int64_t{first + p} * strides.head_stride + c];
        }
      }
    }
  };

  for (int i = 0; i < args.rows_per_slot; ++i) {
    const int position = args.first_index + i;
    const int64_t row = slot * args.rows_per_slot + i;
    HeadRow<T, kLaneDims> own;
    own.Load(static_cast<const T*>(args.qkv) + row * args.qkv_stride + head * 3 * size, size,
             args.rotary_dims, args.cos + int64_t{position} * (args.rotary_dims / 2),
             args.sin + int64_t{position} * (args.rotary_dims / 2));
    T first_keys[kTogether][kLaneDims];
    T first_values[kTogether][kLaneDims];
    load(keys, 0, position, first_keys);
    load(values, 0, position, first_values);

    float q[kLaneDims];
    T own_key[kLaneDims];
#pragma unroll
    for (int j = 0; j < kLaneDims; ++j) {
      const int c = lane + j * kWarp;
      q[j] = 0.0f;
      own_key[j] = {};
      if (c < size) {
        q[j] = own.Rotated(0, j, c, args.rotary_dims) * args.q_scale;
        own_key[j] = FromFloat<T>(own.Rotated(1, j, c, args.rotary_dims));
        const int64_t at = int64_t{position} * strides.head_stride + c;
        keys[at] = own_key[j];
        values[at] = own.own[2][j];
      }
    }

    const auto score_of = [&](const T* key) {
      float score = 0.0f;
#pragma unroll
      for (int j = 0; j < kLaneDims; ++j) score = __fmaf_rn(q[j], ToFloat(key[j]), score);
      return WarpSum(score);
    };
    const auto score_all = [&](int first, const T(&some)[kTogether][kLaneDims]) {
#pragma unroll
      for (int p = 0; p < kTogether; ++p) {
        const float score = score_of(some[p]);
        if (lane == 0 && first + p < position) scores[first + p] = score;
      }
    };
    const float own_score = score_of(own_key);
    if (lane == 0) scores[position] = own_score;
    score_all(0, first_keys);
    for (int first = kTogether; first < position; first += kTogether) {
      T more_keys[kTogether][kLaneDims];
      load(keys, first, position, more_keys);
      score_all(first, more_keys);
    }
    __syncwarp();
    float largest = -Infinity();
    for (int p = lane; p <= position; p += kWarp) {
      largest = largest > scores[p] ? largest : scores[p];
    }
    largest = WarpMax(largest);
    float sum = 0.0f;
    for (int p = lane; p <= position; p += kWarp) {
      const float weight = Exp(scores[p] - largest);
      scores[p] = weight;
      sum += weight;
    }
    const float inverse = __fdiv_rn(1.0f, WarpSum(sum));
    __syncwarp();

    float total[kLaneDims] = {};
    const auto add_all = [&](int first, const T(&some)[kTogether][kLaneDims]) {
#pragma unroll
      for (int p = 0; p < kTogether; ++p) {
        if (first + p >= position) break;
        const float weight = scores[first + p];
#pragma unroll
        for (int j = 0; j < kLaneDims; ++j) {
          total[j] = __fmaf_rn(weight, ToFloat(some[p][j]), total[j]);
        }
      }
    };
    add_all(0, first_values);
    for (int first = kTogether; first < position; first += kTogether) {
      T more_values[kTogether][kLaneDims];
      load(values, first, position, more_values);
      add_all(first, more_values);
    }
    T* out = static_cast<T*>(args.out) + row * args.out_stride + head * size;
#pragma unroll
    for (int j = 0; j < kLaneDims; ++j) {
      const int c = lane + j * kWarp;
      if (c < size) {
        const float all = __fmaf_rn(scores[position], ToFloat(own.own[2][j]), total[j]);
        out[c] = FromFloat<T>(all * inverse);
      }
    }
    __syncwarp();  // before the next row's scores
  }
}

template <typename T>
auto KernelFor(int head_size) {
  static_assert(kMaxHeadSize == 4 * kWarp);
  switch ((head_size + kWarp - 1) / kWarp) {
    case 1:
      return TokenAttentionKernel<T, 1>;
    case 2:
      return TokenAttentionKernel<T, 2>;
    case 3:
      return TokenAttentionKernel<T, 3>;
    default:
      return TokenAttentionKernel<T, 4>;
  }
}

}  // namespace

absl::Status TokenAttention(const TokenAttentionArgs& args, StreamHandle stream) {
  const char* name = "TokenAttention";
  const KvLayout& layout = args.layout;
  absl::Status status = CheckHeads(name, layout, args.rotary_dims, args.qkv_stride);
  if (!status.ok()) return status;
  const int64_t items = args.slots * layout.num_heads;
  if (args.slots < 0 || args.rows_per_slot < 1 || args.first_index < 0 ||
      args.first_index + args.rows_per_slot > layout.page_blocks ||
      layout.page_blocks > kMaxTokenPositions || items > 0x7fffffff ||
      args.out_stride < int64_t{layout.num_heads} * layout.head_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": ", args.slots, " slots, rows ", args.first_index, " + ", args.rows_per_slot,
        " of ", layout.page_blocks, " (at most ", kMaxTokenPositions, ")"));
  }
  if (args.slots == 0) return absl::OkStatus();
  const dim3 grid(static_cast<uint32_t>((items + kWarpsPerBlock - 1) / kWarpsPerBlock));
  const KvStrides strides(layout);
  const auto launch = [&](auto* kernel) {
    return LaunchKernel(name, kernel, grid, kThreads, sizeof(BlockShared), stream, args, strides);
  };
  return layout.type == ElementType::kF32 ? launch(KernelFor<float>(layout.head_size))
                                          : launch(KernelFor<Bf16>(layout.head_size));
}

}  // namespace blockserve::cuda
