// The block decoder's attention over pages: a block of threads for one head of one or several
// consecutive rows. attention_tensor.cu has it for bfloat16 and the usual sizes of heads.
//
// A tile of kAttentionTile positions at a time, in three phases: scores, softmax, weighted sum of
// values. Keys and values are read in pieces of eight elements: so many neighbouring lanes as a
// head has pieces form a group and take one position; position t of the tile belongs to group t mod
// groups. A score is every lane's chain over its eight dimensions, joined by a tree over the group.
// A group adds its positions in ascending order, and the groups' sums are joined in ascending order
// at the end. None of this depends on where a query lies in the launch: rows that share reads
// compute what they would compute alone.
#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/head_rows.h"

namespace blockserve::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kSplitThreads = 128;

// --- Rotation and storing: a block a row.

// All of a piece's reads before its writes, which the compiler moves no read before: each is a way
// to the memory.
template <typename T, bool kWhole>
__global__ void __launch_bounds__(kSplitThreads)
    SplitQkvKernel(SplitQkvArgs args, KvStrides strides) {
  WaitForEarlierWork();
  const int64_t row = blockIdx.x;
  const SequenceRow sequence = args.sequence_rows[row];
  if (sequence.position < 0) return;
  const int size = args.layout.head_size;
  const int pieces = strides.head_stride / kPiece;
  const int page_index = strides.PageOf(sequence.position);
  const int64_t page = args.page_tables[sequence.pages_begin + page_index];
  const int64_t in_page =
      int64_t{sequence.position - page_index * strides.page_blocks} * strides.head_stride;
  const T* qkv = static_cast<const T*>(args.qkv) + row * args.qkv_stride;
  const float* cos = args.cos + int64_t{sequence.position} * (args.rotary_dims / 2);
  const float* sin = args.sin + int64_t{sequence.position} * (args.rotary_dims / 2);
  float* q = args.q + row * args.layout.num_heads * strides.head_stride;
  for (int i = threadIdx.x; i < args.layout.num_heads * pieces; i += kSplitThreads) {
    const int head = i / pieces;
    const int first = (i - head * pieces) * kPiece;
    HeadRow<T, kWhole> own;
    own.Load(qkv + head * 3 * size, size, first, args.rotary_dims, cos, sin, args.q_scale);
    Store8(q + head * strides.head_stride + first, own.q);
    T* key = static_cast<T*>(args.kv) + strides.KeysOffset(page, head) + in_page + first;
    own.k.Store(key);
    own.v.Store(key + strides.rows_stride);
  }
}

// --- Attention

template <int kQueries>
struct BlockShared {
  float weights[kQueries][kAttentionTile];       // scores first
  float scale[kQueries];                         // of what was summed before this tile
  float sum[kQueries];                           // of the weights so far
  alignas(16) float partial[kThreads * kPiece];  // [groups][pieces * kPiece]
};

// What a thread needs to find its part of the keys and values.
struct Lanes {
  int per_group;  // a power of two, at least the pieces of a head
  int groups;     // of the block
  int group;      // this thread's
  int piece;      // this thread's; idle from `pieces` on
  int pieces;
};

// `count` rows from `row` on: consecutive positions of one sequence.
template <typename T, int kQueries>
__device__ void AttendRun(const BlockAttentionArgs& args, const KvStrides& strides,
                          const Lanes& lanes, int64_t row, int count, SequenceRow sequence,
                          BlockShared<kQueries>& shared) {
  const int head = blockIdx.y;
  const int size = args.layout.head_size;
  const int thread = threadIdx.x;
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  const bool active = lanes.piece < lanes.pieces;
  const int32_t* pages = args.page_tables + sequence.pages_begin;
  const int end = sequence.position + count;  // positions that any row of the run sees
  const T* kv = static_cast<const T*>(args.kv) + lanes.piece * kPiece;

  float q[kQueries][kPiece];
  float total[kQueries][kPiece];
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
#pragma unroll
    for (int c = 0; c < kPiece; ++c) q[i][c] = total[i][c] = 0.0f;
    if (i < count && active) {
      Load8(args.q + ((row + i) * args.layout.num_heads + head) * strides.head_stride +
                lanes.piece * kPiece,
            q[i]);
    }
  }
  // Kept by the warp that does the softmax of query i: warp i mod kWarps.
  float largest[(kQueries + kWarps - 1) / kWarps];
  float sums[(kQueries + kWarps - 1) / kWarps];
#pragma unroll
  for (int j = 0; j < (kQueries + kWarps - 1) / kWarps; ++j) {
    largest[j] = -Infinity();
    sums[j] = 0.0f;
  }
  const auto row_of = [&](int position) {
    const int page = strides.PageOf(position);
    return kv + strides.KeysOffset(pages[page], head) +
           int64_t{position - page * strides.page_blocks} * strides.head_stride;
  };

  for (int tile = 0; tile < end; tile += kAttentionTile) {
    const int tile_count = end - tile < kAttentionTile ? end - tile : kAttentionTile;
    // Scores; all lanes take part in every turn.
#pragma unroll 2
    for (int first = 0; first < tile_count; first += lanes.groups) {
      const int t = first + lanes.group;
      const int position = tile + t;
      float key[kPiece];
#pragma unroll
      for (int c = 0; c < kPiece; ++c) key[c] = 0.0f;
      if (active && position < end) Load8(row_of(position), key);
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        if (i >= count) break;
        float score = 0.0f;
#pragma unroll
        for (int c = 0; c < kPiece; ++c) score = __fmaf_rn(q[i][c], key[c], score);
        score = WarpSum(score, lanes.per_group);
        if (lanes.piece == 0) {
          shared.weights[i][t] = position <= sequence.position + i ? score : -Infinity();
        }
      }
    }
    __syncthreads();

    // Softmax: a warp a query.
#pragma unroll
    for (int j = 0; j < (kQueries + kWarps - 1) / kWarps; ++j) {
      const int i = warp + j * kWarps;
      if (i >= count || tile > sequence.position + i) continue;
      float* weights = shared.weights[i];
      float tile_largest = -Infinity();
      for (int t = lane; t < tile_count; t += kWarp) {
        tile_largest = tile_largest > weights[t] ? tile_largest : weights[t];
      }
      tile_largest = WarpMax(tile_largest);
      const float now = largest[j] > tile_largest ? largest[j] : tile_largest;
      float tile_sum = 0.0f;
      for (int t = lane; t < tile_count; t += kWarp) {
        const float weight = Exp(weights[t] - now);
        weights[t] = weight;
        tile_sum += weight;
      }
      const float scale = tile == 0 ? 0.0f : Exp(largest[j] - now);
      sums[j] = __fmaf_rn(sums[j], scale, WarpSum(tile_sum));
      largest[j] = now;
      if (lane == 0) {
        shared.scale[i] = scale;
        shared.sum[i] = sums[j];
      }
    }
    __syncthreads();

    // Weighted sum of values. What a query does not see is left out, not multiplied by zero: it
    // may be anything.
#pragma unroll
    for (int i = 0; i < kQueries; ++i) {
      if (i >= count || tile > sequence.position + i) continue;
      const float scale = shared.scale[i];
#pragma unroll
      for (int c = 0; c < kPiece; ++c) total[i][c] *= scale;
    }
#pragma unroll 2
    for (int t = lanes.group; t < tile_count; t += lanes.groups) {
      const int position = tile + t;
      if (!active) break;
      float value[kPiece];
      Load8(row_of(position) + strides.rows_stride, value);
#pragma unroll
      for (int i = 0; i < kQueries; ++i) {
        if (i >= count || position > sequence.position + i) continue;
        const float weight = shared.weights[i][t];
#pragma unroll
        for (int c = 0; c < kPiece; ++c) total[i][c] = __fmaf_rn(weight, value[c], total[i][c]);
      }
    }
    __syncthreads();
  }

  // The groups' sums, a query at a time.
#pragma unroll
  for (int i = 0; i < kQueries; ++i) {
    if (i >= count) break;
    if (active) {
      Store8(shared.partial + (lanes.group * lanes.pieces + lanes.piece) * kPiece, total[i]);
    }
    __syncthreads();
    if (thread < size) {
      float sum = 0.0f;
      for (int g = 0; g < lanes.groups; ++g) {
        sum += shared.partial[g * lanes.pieces * kPiece + thread];
      }
      const float inverse = __fdiv_rn(1.0f, shared.sum[i]);
      static_cast<T*>(args.out)[(row + i) * args.out_stride + head * size + thread] =
          FromFloat<T>(sum * inverse);
    }
    __syncthreads();
  }
}

template <typename T, int kQueries>
__global__ void __launch_bounds__(kThreads)
    BlockAttentionKernel(BlockAttentionArgs args, KvStrides strides) {
  WaitForEarlierWork();
  auto& shared = *static_cast<BlockShared<kQueries>*>(BlockMemory());
  const int size = args.layout.head_size;
  Lanes lanes;
  lanes.pieces = strides.head_stride / kPiece;
  lanes.per_group = 1;
  while (lanes.per_group < lanes.pieces) lanes.per_group *= 2;
  lanes.groups = kThreads / lanes.per_group;
  lanes.group = threadIdx.x / lanes.per_group;
  lanes.piece = threadIdx.x % lanes.per_group;

  const int64_t begin = int64_t{blockIdx.x} * kQueries;
  const int64_t end = begin + kQueries < args.rows ? begin + kQueries : args.rows;
  for (int64_t row = begin; row < end;) {
    const SequenceRow sequence = args.sequence_rows[row];
    int count = 1;
    if (sequence.position < 0) {
      T* out = static_cast<T*>(args.out) + row * args.out_stride + blockIdx.y * size;
      const int thread = threadIdx.x;
      if (thread < size) out[thread] = FromFloat<T>(0.0f);
    } else {
      count = ConsecutiveRows(args.sequence_rows, row, end);
      AttendRun<T, kQueries>(args, strides, lanes, row, count, sequence, shared);
    }
    row += count;
  }
}

}  // namespace

absl::Status SplitQkv(const SplitQkvArgs& args, StreamHandle stream) {
  const char* name = "SplitQkv";
  absl::Status status = CheckHeads(name, args.layout, args.rotary_dims, args.qkv_stride);
  if (!status.ok()) return status;
  if (args.rows < 0 || args.rows > 0x7fffffff) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": ", args.rows, " rows"));
  }
  if (args.rows == 0) return absl::OkStatus();
  const dim3 grid(static_cast<uint32_t>(args.rows));
  const KvStrides strides(args.layout);
  const bool whole = HeadsAreWhole(args.layout, args.rotary_dims, args.qkv_stride);
  const auto launch = [&](auto* kernel) {
    return LaunchKernel(name, kernel, grid, kSplitThreads, 0, stream, args, strides);
  };
  const auto launch_of = [&](auto type) {
    using T = decltype(type);
    return whole ? launch(SplitQkvKernel<T, true>) : launch(SplitQkvKernel<T, false>);
  };
  return args.layout.type == ElementType::kF32 ? launch_of(float{}) : launch_of(Bf16{});
}

absl::Status BlockAttention(const BlockAttentionArgs& args, StreamHandle stream) {
  const char* name = "BlockAttention";
  const KvLayout& layout = args.layout;
  const int64_t width = int64_t{layout.num_heads} * layout.head_size;
  absl::Status status = CheckHeads(name, layout, 0, 3 * width);
  if (!status.ok()) return status;
  if (args.rows < 0 || args.rows > 0x7fffffff || args.out_stride < width ||
      (args.queries_per_block != 1 && args.queries_per_block != kAttentionQueries)) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, ": ", args.rows, " rows, ", args.queries_per_block,
                     " queries a block (1 or ", kAttentionQueries, "), stride ", args.out_stride));
  }
  if (args.rows == 0) return absl::OkStatus();
  if (HasTensorAttention(layout)) return TensorAttention(args, stream);
  const int64_t queries = args.queries_per_block;
  const dim3 grid(static_cast<uint32_t>((args.rows + queries - 1) / queries), layout.num_heads);
  const KvStrides strides(layout);
  const auto launch = [&](auto* kernel, int64_t shared_bytes) {
    return LaunchKernel(name, kernel, grid, kThreads, shared_bytes, stream, args, strides);
  };
  const bool f32 = layout.type == ElementType::kF32;
  if (queries == 1) {
    return f32 ? launch(BlockAttentionKernel<float, 1>, sizeof(BlockShared<1>))
               : launch(BlockAttentionKernel<Bf16, 1>, sizeof(BlockShared<1>));
  }
  return f32 ? launch(BlockAttentionKernel<float, kAttentionQueries>,
                      sizeof(BlockShared<kAttentionQueries>))
             : launch(BlockAttentionKernel<Bf16, kAttentionQueries>,
                      sizeof(BlockShared<kAttentionQueries>));
}

}  // namespace blockserve::cuda
