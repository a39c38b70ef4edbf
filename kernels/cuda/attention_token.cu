// The token decoder's attention: a head of a slot is a few lanes, so that a warp takes several.
// Each of them has eight neighbouring dimensions, 16 bytes of bfloat16; a score is each lane's
// chain over its dimensions, joined by a tree of exchanges. Every lane writes and reads its own
// dimensions of keys and values alone, so nothing has to be waited for between the rows of a slot.
//
// What a row reads is small and far away: all of it is asked for before any of it is used, as far
// as it fits into registers.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/head_rows.h"

namespace blockserve::cuda {
namespace {

constexpr int kThreads = 128;
// Earlier positions whose keys, or values, are read together. With the row's own, which never
// leaves the registers, that is all of a block of four tokens.
constexpr int kTogether = 4;

// kLanes lanes a head, a power of two.
template <typename T, int kLanes, bool kWhole>
__global__ void __launch_bounds__(kThreads)
    TokenAttentionKernel(TokenAttentionArgs args, KvStrides strides) {
  WaitForEarlierWork();
  constexpr int kHeadsPerBlock = kThreads / kLanes;
  const int lane = threadIdx.x % kLanes;  // of the head
  const int part = threadIdx.x / kLanes;
  const uint32_t item = blockIdx.x * kHeadsPerBlock + part;  // in 32 bits: it is divided
  const uint32_t heads = args.layout.num_heads;
  const int size = args.layout.head_size;
  // Those without a head exchange with their warp, and touch no memory but their own scores.
  const bool there = item < args.slots * heads;
  const int64_t slot = there ? item / heads : 0;
  const int head = there ? static_cast<int>(item % heads) : 0;
  const int first = lane * kPiece;
  const bool some = there && first < size;
  float* scores = static_cast<float*>(BlockMemory()) + part * args.layout.page_blocks;
  T* keys = static_cast<T*>(args.kv) + strides.KeysOffset(slot, head) + first;
  T* values = keys + strides.rows_stride;
  // Zeros where there is none. Rows are padded with zeros to whole pieces.
  const auto load = [&](const T* rows, int begin, int end, Piece<T>(&out)[kTogether]) {
#pragma unroll
    for (int p = 0; p < kTogether; ++p) {
      out[p] = {};
      if (some && begin + p < end) out[p].Load(rows + int64_t{begin + p} * strides.head_stride);
    }
  };

  for (int i = 0; i < args.rows_per_slot; ++i) {
    const int position = args.first_index + i;
    const int64_t row = slot * args.rows_per_slot + i;
    Piece<T> first_keys[kTogether];
    Piece<T> first_values[kTogether];
    load(keys, 0, position, first_keys);
    load(values, 0, position, first_values);
    HeadRow<T, kWhole> own;
    if (there) {
      own.Load(static_cast<const T*>(args.qkv) + row * args.qkv_stride + head * 3 * size, size,
               first, args.rotary_dims, args.cos + int64_t{position} * (args.rotary_dims / 2),
               args.sin + int64_t{position} * (args.rotary_dims / 2), args.q_scale);
    }
    if (some) {
      own.k.Store(keys + int64_t{position} * strides.head_stride);
      own.v.Store(values + int64_t{position} * strides.head_stride);
    }

    const auto score_of = [&](const Piece<T>& key) {
      float k[kPiece];
      key.Unpack(k);
      float score = 0.0f;
#pragma unroll
      for (int e = 0; e < kPiece; ++e) score = __fmaf_rn(own.q[e], k[e], score);
      return WarpSum(score, kLanes);
    };
    const auto score_all = [&](int begin, const Piece<T>(&some_keys)[kTogether]) {
#pragma unroll
      for (int p = 0; p < kTogether; ++p) {
        const float score = score_of(some_keys[p]);
        if (lane == 0 && begin + p < position) scores[begin + p] = score;
      }
    };
    const float own_score = score_of(own.k);
    if (lane == 0) scores[position] = own_score;
    score_all(0, first_keys);
#pragma unroll 1
    for (int begin = kTogether; begin < position; begin += kTogether) {
      Piece<T> more_keys[kTogether];
      load(keys, begin, position, more_keys);
      score_all(begin, more_keys);
    }
    __syncwarp();
    float largest = -Infinity();
#pragma unroll 1
    for (int p = lane; p <= position; p += kLanes) {
      largest = largest > scores[p] ? largest : scores[p];
    }
    largest = WarpMax(largest, kLanes);
    float sum = 0.0f;
#pragma unroll 1
    for (int p = lane; p <= position; p += kLanes) {
      const float weight = Exp(scores[p] - largest);
      scores[p] = weight;
      sum += weight;
    }
    const float inverse = __fdiv_rn(1.0f, WarpSum(sum, kLanes));
    __syncwarp();

    float total[kPiece] = {};
    const auto add = [&](float weight, const Piece<T>& value) {
      float v[kPiece];
      value.Unpack(v);
#pragma unroll
      for (int e = 0; e < kPiece; ++e) total[e] = __fmaf_rn(weight, v[e], total[e]);
    };
    const auto add_all = [&](int begin, const Piece<T>(&some_values)[kTogether]) {
#pragma unroll
      for (int p = 0; p < kTogether; ++p) {
        if (begin + p >= position) break;
        add(scores[begin + p], some_values[p]);
      }
    };
    add_all(0, first_values);
#pragma unroll 1
    for (int begin = kTogether; begin < position; begin += kTogether) {
      Piece<T> more_values[kTogether];
      load(values, begin, position, more_values);
      add_all(begin, more_values);
    }
    add(scores[position], own.v);
#pragma unroll
    for (int e = 0; e < kPiece; ++e) total[e] *= inverse;
    if (some) {
      T* out = static_cast<T*>(args.out) + row * args.out_stride + head * size + first;
      if constexpr (kWhole) {
        Piece<T> piece;
        piece.Pack(total);
        piece.Store(out);
      } else {
#pragma unroll
        for (int e = 0; e < kPiece; ++e) {
          if (first + e < size) out[e] = FromFloat<T>(total[e]);
        }
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
  const KvStrides strides(layout);
  const bool whole =
      HeadsAreWhole(layout, args.rotary_dims, args.qkv_stride) && args.out_stride % kPiece == 0;
  const auto launch = [&](auto* kernel, int lanes) {
    const int64_t heads = kThreads / lanes;  // of a block
    const dim3 grid(static_cast<uint32_t>((items + heads - 1) / heads));
    const int64_t shared_bytes = heads * layout.page_blocks * int64_t{sizeof(float)};
    return LaunchKernel(name, kernel, grid, kThreads, shared_bytes, stream, args, strides);
  };
  const auto launch_of = [&](auto type) {
    using T = decltype(type);
    static_assert(kMaxHeadSize == 16 * kPiece);
    if (!whole) return launch(TokenAttentionKernel<T, 16, false>, 16);
    const int pieces = layout.head_size / kPiece;
    if (pieces <= 2) return launch(TokenAttentionKernel<T, 2, true>, 2);
    if (pieces <= 4) return launch(TokenAttentionKernel<T, 4, true>, 4);
    if (pieces <= 8) return launch(TokenAttentionKernel<T, 8, true>, 8);
    return launch(TokenAttentionKernel<T, 16, true>, 16);
  };
  return layout.type == ElementType::kF32 ? launch_of(float{}) : launch_of(Bf16{});
}

}  // namespace blockserve::cuda
