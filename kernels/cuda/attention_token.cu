// The token decoder's attention: a warp a head of a slot. Lane l holds the dimensions l, l + 32, …
// of the head; a score is each lane's chain over its dimensions, joined by the warp's tree. Every
// lane writes and reads its own dimensions of keys and values alone, so nothing has to be waited
// for between the rows of a slot.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/head_rows.h"

namespace blockserve::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarpsPerBlock = kThreads / kWarp;
constexpr int kLaneDims = kMaxHeadSize / kWarp;

struct BlockShared {
  float scores[kWarpsPerBlock][kMaxTokenPositions];
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    TokenAttentionKernel(TokenAttentionArgs args, KvStrides strides) {
  auto& shared = *static_cast<BlockShared*>(BlockMemory());
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int64_t item = int64_t{blockIdx.x} * kWarpsPerBlock + warp;
  const int heads = args.layout.num_heads;
  const int size = args.layout.head_size;
  if (item >= args.slots * heads) return;  // whole warps; no barrier of the block follows
  const int64_t slot = item / heads;
  const int head = static_cast<int>(item - slot * heads);
  float* scores = shared.scores[warp];
  T* keys = static_cast<T*>(args.kv) + strides.KeysOffset(slot, head);
  T* values = keys + strides.rows_stride;

  for (int i = 0; i < args.rows_per_slot; ++i) {
    const int position = args.first_index + i;
    const int64_t row = slot * args.rows_per_slot + i;
    const T* qkv = static_cast<const T*>(args.qkv) + row * args.qkv_stride + head * 3 * size;
    const float* cos = args.cos + int64_t{position} * (args.rotary_dims / 2);
    const float* sin = args.sin + int64_t{position} * (args.rotary_dims / 2);
    float q[kLaneDims];
#pragma unroll
    for (int j = 0; j < kLaneDims; ++j) {
      const int c = lane + j * kWarp;
      if (c < size) {
        q[j] = RotatedElement(qkv, c, args.rotary_dims, cos, sin) * args.q_scale;
        const int64_t at = int64_t{position} * strides.head_stride + c;
        keys[at] = FromFloat<T>(RotatedElement(qkv + size, c, args.rotary_dims, cos, sin));
        values[at] = qkv[2 * size + c];
      }
    }

    for (int p = 0; p <= position; ++p) {
      const T* key = keys + int64_t{p} * strides.head_stride;
      float score = 0.0f;
#pragma unroll
      for (int j = 0; j < kLaneDims; ++j) {
        const int c = lane + j * kWarp;
        if (c < size) score = __fmaf_rn(q[j], ToFloat(key[c]), score);
      }
      score = WarpSum(score);
      if (lane == 0) scores[p] = score;
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

    T* out = static_cast<T*>(args.out) + row * args.out_stride + head * size;
#pragma unroll
    for (int j = 0; j < kLaneDims; ++j) {
      const int c = lane + j * kWarp;
      if (c < size) {
        float total = 0.0f;
        for (int p = 0; p <= position; ++p) {
          total =
              __fmaf_rn(scores[p], ToFloat(values[int64_t{p} * strides.head_stride + c]), total);
        }
        out[c] = FromFloat<T>(total * inverse);
      }
    }
    __syncwarp();  // before the next row's scores
  }
}

}  // namespace

absl::Status TokenAttention(const TokenAttentionArgs& args, StreamHandle stream) {
  const char* name = "TokenAttention";
  const KvLayout& layout = args.layout;
  absl::Status status = CheckHeads(name, layout, args.rotary_dims, args.qkv_stride);
  if (!status.ok()) return status;
  const int64_t blocks = (args.slots * layout.num_heads + kWarpsPerBlock - 1) / kWarpsPerBlock;
  if (args.slots < 0 || args.rows_per_slot < 1 || args.first_index < 0 ||
      args.first_index + args.rows_per_slot > layout.page_blocks ||
      layout.page_blocks > kMaxTokenPositions || blocks > 0x7fffffff ||
      args.out_stride < int64_t{layout.num_heads} * layout.head_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, ": ", args.slots, " slots, rows ", args.first_index, " + ", args.rows_per_slot,
        " of ", layout.page_blocks, " (at most ", kMaxTokenPositions, ")"));
  }
  if (args.slots == 0) return absl::OkStatus();
  const dim3 grid(static_cast<uint32_t>(blocks));
  const KvStrides strides(layout);
  return layout.type == ElementType::kF32
             ? LaunchKernel(name, TokenAttentionKernel<float>, grid, kThreads, sizeof(BlockShared),
                            stream, args, strides)
             : LaunchKernel(name, TokenAttentionKernel<Bf16>, grid, kThreads, sizeof(BlockShared),
                            stream, args, strides);
}

}  // namespace blockserve::cuda
