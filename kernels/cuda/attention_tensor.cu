// The block decoder's attention on tensor cores, for bfloat16 and the usual sizes of heads.
//
// A block of threads takes one head of a run of consecutive rows. Positions are taken in chunks of
// 16 from 0 on; chunk c belongs to warp c mod warps, which copies its keys and values to shared
// memory while it computes the chunk before, and keeps a maximum, a sum and a weighted sum of its
// own. The warps' are joined in ascending order at the end. Queries are the rows of the tensor
// cores' 16 x 16 operand: a query by itself (decoding) fills one row of it, and goes through the
// same products in the same order as it does among 16 or 32 (prefill).
//
// Queries and weights are rounded to bfloat16 for the products; sums are float32.
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/head_rows.h"

namespace blockserve::cuda {
namespace {

constexpr int kChunk = 16;  // positions
constexpr int kTile = 16;   // queries
constexpr int kStages = 2;

template <int kSize>
struct Shape {
  static constexpr int kWarps = kSize <= 64 ? 4 : 2;  // what registers and shared memory allow
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kPrefillTiles = kSize <= 64 ? 2 : 1;
  static constexpr int kPieces = kSize / 8;
  // Of a position in shared memory: an odd number of 16 bytes, so that eight rows read at once lie
  // in different banks.
  static constexpr int kStride = kSize + 8;
};

template <int kSize>
struct TensorShared {
  using S = Shape<kSize>;
  // At the end: the warps' weighted sums, [warps][kTile][kSize] float.
  alignas(16) uint16_t stages[S::kWarps][kStages][2][kChunk][S::kStride];
  float maxima[S::kWarps][kTile];
  float sums[S::kWarps][kTile];
  int broken;  // a value that not all queries of the run see is not finite

  static_assert(sizeof(stages) >= S::kWarps * kTile * kSize * sizeof(float));
};

__device__ float Larger(float a, float b) { return a > b ? a : b; }

__device__ bool IsFiniteBf16(uint32_t bits) { return (bits & 0x7f80u) != 0x7f80u; }

// `count` rows from `row` on: consecutive positions of one sequence. No tiles: one row.
template <int kSize, int kTilesOrNone>
__device__ void AttendRun(const BlockAttentionArgs& args, const KvStrides& strides, int64_t row,
                          int count, SequenceRow sequence, TensorShared<kSize>& shared) {
  using S = Shape<kSize>;
  constexpr bool kSingle = kTilesOrNone == 0;
  if constexpr (kSingle) count = 1;  // as the compiler is to know
  constexpr int kTiles = kSingle ? 1 : kTilesOrNone;
  constexpr int kHalves = kSingle ? 1 : 2;  // rows 0 to 7 and 8 to 15 of a tile
  const int head = blockIdx.y;
  const int thread = threadIdx.x;
  const int warp = thread / kWarp;
  const int lane = thread % kWarp;
  // A lane's place in the tensor cores' operands: row `group`, and `group` + 8, of queries; two
  // neighbouring columns from 2 * pair on.
  const int group = lane / 4;
  const int pair = lane % 4;
  const int32_t* pages = args.page_tables + sequence.pages_begin;
  const int last = sequence.position + count - 1;
  const int chunks = last / kChunk + 1;
  const Bf16* kv = static_cast<const Bf16*>(args.kv);
  // Rows of keys lie kSize apart: heads of these sizes are not padded.
  const auto row_of = [&](int position) {
    const int page = strides.PageOf(position);
    return kv + strides.KeysOffset(pages[page], head) +
           (position - page * strides.page_blocks) * kSize;
  };
  // Copies the rows of a chunk, row r from row_at(r); positions beyond the run become zero, and are
  // not read.
  const auto copy_rows = [&](int chunk, int stage, const auto& row_at) {
    uint16_t* keys = &shared.stages[warp][stage][0][0][0];
    uint16_t* values = &shared.stages[warp][stage][1][0][0];
#pragma unroll
    for (int j = 0; j < kChunk * S::kPieces / kWarp; ++j) {
      const int i = lane + j * kWarp;
      const int r = i / S::kPieces;
      const int piece = i % S::kPieces;
      const bool present = chunk * kChunk + r <= last;
      const Bf16* from = row_at(r) + piece * 8;
      const int to = r * S::kStride + piece * 8;
      CopyAsync16(keys + to, from, present);
      CopyAsync16(values + to, from + strides.rows_stride, present);
    }
  };
  const bool whole_chunks = strides.page_blocks % kChunk == 0;  // of a page
  const auto copy = [&](int chunk, int stage) {
    const int first = chunk * kChunk;
    if (whole_chunks) {
      const Bf16* rows = row_of(first);  // one look into the page table
      copy_rows(chunk, stage, [&](int r) { return rows + r * kSize; });
    } else {
      copy_rows(chunk, stage, [&](int r) { return row_of(first + r <= last ? first + r : last); });
    }
  };

  __syncthreads();  // the run before is done with shared memory
  if (thread == 0) shared.broken = 0;
  __syncthreads();
  if (warp < chunks) copy(warp, 0);
  CommitCopies();

  uint32_t q[kTiles][kSize / 16][4];
  float out[kTiles][kSize / 8][4];
  float largest[kTiles][2];
  float sums[kTiles][2];  // of this lane's columns
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int k = 0; k < kSize / 16; ++k) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = m * kTile + group + j % 2 * 8;
        q[m][k][j] = 0;
        if (i < count) {
          const float* x = args.q + ((row + i) * args.layout.num_heads + head) * kSize + k * 16 +
                           j / 2 * 8 + 2 * pair;
          q[m][k][j] = PackBf16(x[0], x[1]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kSize / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out[m][n][j] = 0.0f;
    }
    largest[m][0] = largest[m][1] = -Infinity();
    sums[m][0] = sums[m][1] = 0.0f;
  }

  int stage = 0;
  for (int chunk = warp; chunk < chunks; chunk += S::kWarps) {
    if (chunk + S::kWarps < chunks) copy(chunk + S::kWarps, stage ^ 1);
    CommitCopies();
    WaitForCopies<1>();
    __syncwarp();
    const int first = chunk * kChunk;
    const uint16_t* keys = &shared.stages[warp][stage][0][0][0];
    uint16_t* values = &shared.stages[warp][stage][1][0][0];
    const bool has_unseen = first + kChunk - 1 > sequence.position;
    if (has_unseen && count > 1) {
      // A weight of zero does not take out what is not finite.
      for (int i = lane; i < kChunk * S::kPieces; i += kWarp) {
        const int position = first + i / S::kPieces;
        if (position <= sequence.position || position > last) continue;
        auto* words =
            reinterpret_cast<uint32_t*>(values + i / S::kPieces * S::kStride + i % S::kPieces * 8);
        for (int j = 0; j < 4; ++j) {
          const uint32_t word = words[j];
          if (IsFiniteBf16(word) && IsFiniteBf16(word >> 16)) continue;
          words[j] = 0;
          atomicOr(&shared.broken, 1);
        }
      }
      __syncwarp();
    }
    // Whether a tile has queries, and any of them sees this chunk.
    const auto sees = [&](int m) {
      if (kSingle) return true;
      return m * kTile < count && first <= sequence.position + m * kTile + kTile - 1;
    };

    float scores[kTiles][2][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int j = 0; j < 4; ++j) scores[m][0][j] = scores[m][1][j] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < kSize / 16; ++k) {
      uint32_t b[4];  // dimensions 0 to 7 and 8 to 15 of eight keys, then of the other eight
      LoadMatrices<false>(
          b, keys + (lane / 16 * 8 + lane % 8) * S::kStride + k * 16 + lane / 8 % 2 * 8);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (!sees(m)) continue;
        MultiplyAdd(scores[m][0], q[m][k], b);
        MultiplyAdd(scores[m][1], q[m][k], b + 2);
      }
    }

    uint32_t weights[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
      weights[m][0] = weights[m][1] = weights[m][2] = weights[m][3] = 0;
      if (!sees(m)) continue;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        float x[4] = {scores[m][0][2 * h], scores[m][0][2 * h + 1], scores[m][1][2 * h],
                      scores[m][1][2 * h + 1]};
        if (has_unseen) {
          const int seen = sequence.position + m * kTile + group + 8 * h - first - 2 * pair;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if (j / 2 * 8 + j % 2 > seen) x[j] = -Infinity();
          }
        }
        float most = Larger(Larger(x[0], x[1]), Larger(x[2], x[3]));
        most = Larger(most, __shfl_xor_sync(kAllLanes, most, 1));
        most = Larger(most, __shfl_xor_sync(kAllLanes, most, 2));
        const float now = Larger(largest[m][h], most);
        // Of a query that has seen nothing yet, every weight is zero.
        const float base = now == -Infinity() ? 0.0f : now;
        const float scale = QuickExp(largest[m][h] - base);
        largest[m][h] = now;
        float rounded[4];
        weights[m][h] = PackBf16(QuickExp(x[0] - base), QuickExp(x[1] - base));
        weights[m][h + 2] = PackBf16(QuickExp(x[2] - base), QuickExp(x[3] - base));
        UnpackBf16(weights[m][h], rounded);
        UnpackBf16(weights[m][h + 2], rounded + 2);
        sums[m][h] =
            __fmaf_rn(sums[m][h], scale, (rounded[0] + rounded[1]) + (rounded[2] + rounded[3]));
#pragma unroll
        for (int n = 0; n < kSize / 8; ++n) {
          out[m][n][2 * h] *= scale;
          out[m][n][2 * h + 1] *= scale;
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kSize / 8; n += 2) {
      uint32_t b[4];  // positions 0 to 7 and 8 to 15 of eight dimensions, then of the next eight
      LoadMatrices<true>(b, values + lane % 16 * S::kStride + n * 8 + lane / 16 * 8);
#pragma unroll
      for (int m = 0; m < kTiles; ++m) {
        if (!sees(m)) continue;
        MultiplyAdd(out[m][n], weights[m], b);
        MultiplyAdd(out[m][n + 1], weights[m], b + 2);
      }
    }
    __syncwarp();  // before the stage is filled again
    stage ^= 1;
  }

  // The warps' results, a tile at a time.
  auto* partial = reinterpret_cast<float*>(&shared.stages[0][0][0][0][0]);
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    if (m * kTile >= count) break;
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      float sum = sums[m][h];
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      const int r = group + 8 * h;
      if (kSingle && r != 0) continue;
      if (pair == 0) {
        shared.maxima[warp][r] = largest[m][h];
        shared.sums[warp][r] = sum;
      }
#pragma unroll
      for (int n = 0; n < kSize / 8; ++n) {
        float* to = partial + (warp * kTile + r) * kSize + n * 8 + 2 * pair;
        to[0] = out[m][n][2 * h];
        to[1] = out[m][n][2 * h + 1];
      }
    }
    __syncthreads();
    const int rows = count - m * kTile < kTile ? count - m * kTile : kTile;
    for (int i = thread; i < rows * kSize; i += S::kThreads) {
      const int r = i / kSize;
      const int c = i % kSize;
      float most = shared.maxima[0][r];
      for (int w = 1; w < S::kWarps; ++w) most = Larger(most, shared.maxima[w][r]);
      float total = 0.0f;
      float sum = 0.0f;
      for (int w = 0; w < S::kWarps; ++w) {
        const float factor = QuickExp(shared.maxima[w][r] - most);
        total = __fmaf_rn(partial[(w * kTile + r) * kSize + c], factor, total);
        sum = __fmaf_rn(shared.sums[w][r], factor, sum);
      }
      // Chunks that a query does not see may have turned -0 into 0.
      float value = __fdiv_rn(total, sum) + 0.0f;
      if (shared.broken != 0) {
        for (int j = 1; j <= m * kTile + r; ++j) {
          const Bf16* values = row_of(sequence.position + j) + strides.rows_stride;
          if (!IsFiniteBf16(values[c].bits)) value = __uint_as_float(0x7fc00000u);
        }
      }
      // Who sees an infinite value has none that is finite; which one depends on the run.
      if (!IsFinite(value)) value = __uint_as_float(0x7fc00000u);
      static_cast<Bf16*>(args.out)[(row + m * kTile + r) * args.out_stride + head * kSize + c] =
          FromFloat<Bf16>(value);
    }
  }
}

// Of a multiprocessor at least so many blocks at a time; 0: as many as come. Decoding waits for
// memory, and heads of these sizes are a few registers from one block more.
[[maybe_unused]] constexpr int MinBlocks(int size, int tiles_or_none) {
  return (size == 48 || size == 64) && tiles_or_none == 0 ? 5 : 0;
}

template <int kSize, int kTilesOrNone>
__global__ void __launch_bounds__(Shape<kSize>::kThreads, MinBlocks(kSize, kTilesOrNone))
    TensorAttentionKernel(BlockAttentionArgs args, KvStrides strides) {
  WaitForEarlierWork();
  auto& shared = *static_cast<TensorShared<kSize>*>(BlockMemory());
  constexpr int kQueries = kTilesOrNone == 0 ? 1 : kTilesOrNone * kTile;
  const int64_t begin = int64_t{blockIdx.x} * kQueries;
  const int64_t end = begin + kQueries < args.rows ? begin + kQueries : args.rows;
  for (int64_t row = begin; row < end;) {
    const SequenceRow sequence = args.sequence_rows[row];
    int count = 1;
    if (sequence.position < 0) {
      Bf16* out = static_cast<Bf16*>(args.out) + row * args.out_stride + blockIdx.y * kSize;
      for (int i = threadIdx.x; i < kSize; i += Shape<kSize>::kThreads) {
        out[i] = FromFloat<Bf16>(0.0f);
      }
    } else {
      count = ConsecutiveRows(args.sequence_rows, row, end);
      AttendRun<kSize, kTilesOrNone>(args, strides, row, count, sequence, shared);
    }
    row += count;
  }
}

template <int kSize>
absl::Status LaunchOfSize(const BlockAttentionArgs& args, StreamHandle stream) {
  using S = Shape<kSize>;
  const bool single = args.queries_per_block == 1;
  const int64_t queries = single ? 1 : S::kPrefillTiles * kTile;
  const dim3 grid(static_cast<uint32_t>((args.rows + queries - 1) / queries),
                  static_cast<uint32_t>(args.layout.num_heads));
  const KvStrides strides(args.layout);
  return LaunchKernel(
      "BlockAttention",
      single ? TensorAttentionKernel<kSize, 0> : TensorAttentionKernel<kSize, S::kPrefillTiles>,
      grid, S::kThreads, sizeof(TensorShared<kSize>), stream, args, strides);
}

}  // namespace

bool HasTensorAttention(const KvLayout& layout) {
  if (layout.type != ElementType::kBf16) return false;
  for (const int32_t size : {16, 32, 48, 64, 128}) {
    if (layout.head_size == size) return true;
  }
  return false;
}

absl::Status TensorAttention(const BlockAttentionArgs& args, StreamHandle stream) {
  switch (args.layout.head_size) {
    case 16:
      return LaunchOfSize<16>(args, stream);
    case 32:
      return LaunchOfSize<32>(args, stream);
    case 48:
      return LaunchOfSize<48>(args, stream);
    case 64:
      return LaunchOfSize<64>(args, stream);
    default:
      return LaunchOfSize<128>(args, stream);
  }
}

}  // namespace blockserve::cuda
