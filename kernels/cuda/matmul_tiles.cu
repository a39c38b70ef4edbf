// A block of threads computes a tile of y, each warp a part of it, in registers. Along k the tile's
// rows of x and W come to shared memory in slices, several of them under way while one is
// multiplied.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_math.h"
#include "kernels/cuda/matmul_tiles.h"

namespace blockserve::cuda {
namespace {

constexpr int kStep = 16;  // along k, of one product of the tensor cores
constexpr int kPiece = 8;  // elements of 16 bytes

// A tile of kRows x kColumns for kRowWarps x kColumnWarps warps; slices of kDepth along k, of which
// kStages are in shared memory. kBlocks of a multiprocessor at a time bound the registers.
template <int kRows_, int kColumns_, int kRowWarps_, int kColumnWarps_, int kDepth_, int kStages_,
          int kBlocks_>
struct Tile {
  static constexpr int kRows = kRows_;
  static constexpr int kColumns = kColumns_;
  static constexpr int kRowWarps = kRowWarps_;
  static constexpr int kColumnWarps = kColumnWarps_;
  static constexpr int kDepth = kDepth_;
  static constexpr int kStages = kStages_;
  static constexpr int kBlocks = kBlocks_;
  static constexpr int kThreads = kRowWarps * kColumnWarps * kWarp;
  static constexpr int kPieces = kDepth / kPiece;  // of a row of a slice
  // Products of the tensor cores for a warp: 16 rows by 8 columns each, columns in pairs.
  static constexpr int kWarpRows = kRows / kRowWarps;
  static constexpr int kWarpColumns = kColumns / kColumnWarps;
  static constexpr int kTall = kWarpRows / 16;
  static constexpr int kWide = kWarpColumns / 8;
  static_assert(kWarpRows % 16 == 0 && kWarpColumns % 16 == 0 && kDepth % kStep == 0);
  static_assert(kPieces == 4 || kPieces == 8);

  // Where a piece of a row lies in its slice, in elements: eight rows of one piece, which the
  // tensor cores' loads take at once, lie in different banks, though rows follow without gaps.
  __device__ static int At(int row, int piece) {
    return row * kDepth + (piece ^ row / (8 / kPieces) % kPieces) * kPiece;
  }
};

// In the order of kMatmulTiles.
using Tile16x32 = Tile<16, 32, 1, 2, 64, 6, 6>;
using Tile64x64 = Tile<64, 64, 2, 2, 32, 4, 5>;
using Tile64x128 = Tile<64, 128, 2, 2, 32, 4, 3>;
using Tile128x128 = Tile<128, 128, 2, 4, 32, 3, 2>;

template <typename T>
struct TileShared {
  alignas(16) uint16_t x[T::kStages][T::kRows * T::kDepth];
  alignas(16) uint16_t w[T::kStages][T::kColumns * T::kDepth];
};

// This thread's share of slices of the kRows rows from `first` on, of the `rows` that a matrix has:
// rows beyond are zero and not read. A thread copies the same piece of several rows.
template <typename T, int kRows>
class SliceCopier {
 public:
  __device__ SliceCopier(const void* matrix, int64_t first, int64_t rows, int64_t k)
      : piece_(threadIdx.x % T::kPieces * kPiece),
        to_(T::At(threadIdx.x / T::kPieces, threadIdx.x % T::kPieces)) {
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      const int64_t row = first + threadIdx.x / T::kPieces + j * kRowsAtOnce;
      present_[j] = row < rows;
      from_[j] = static_cast<const uint16_t*>(matrix) + (present_[j] ? row : 0) * k + piece_;
    }
  }
  // From element `begin` of the rows on, of which there are `left`.
  __device__ void Copy(int64_t begin, int64_t left, uint16_t* slice) const {
    if (piece_ >= left) return;  // nor is it multiplied
#pragma unroll
    for (int j = 0; j < kCopies; ++j) {
      CopyAsync16(slice + to_ + j * kRowsAtOnce * T::kDepth, from_[j] + begin, present_[j]);
    }
  }

 private:
  static constexpr int kRowsAtOnce = T::kThreads / T::kPieces;
  static constexpr int kCopies = kRows / kRowsAtOnce;
  static_assert(kRows % kRowsAtOnce == 0 && kRowsAtOnce % 8 == 0);  // where At begins anew
  int piece_;
  int to_;
  const uint16_t* from_[kCopies];
  bool present_[kCopies];
};

// Eight neighbouring results at `at` of y.
__device__ void StoreGroup(const TiledMatmulArgs& args, int64_t at, int64_t column, float* sums) {
  const bool bf16 = args.output == ElementType::kBf16;
  const auto add = [&](const void* from, int64_t index) {
    float values[kPiece];
    if (bf16) {
      Load8(static_cast<const Bf16*>(from) + index, values);
    } else {
      Load8(static_cast<const float*>(from) + index, values);
    }
#pragma unroll
    for (int i = 0; i < kPiece; ++i) sums[i] += values[i];
  };
  if (args.bias != nullptr) add(args.bias, column);
  if (args.gelu) {
#pragma unroll
    for (int i = 0; i < kPiece; ++i) sums[i] = bf16 ? GeluForBf16(sums[i]) : GeluOf(sums[i]);
  }
  if (args.accumulate) add(args.y, at);
  if (bf16) {
    Store8(static_cast<Bf16*>(args.y) + at, sums);
  } else {
    Store8(static_cast<float*>(args.y) + at, sums);
  }
}

template <typename T>
__global__ void __launch_bounds__(T::kThreads, T::kBlocks)
    TiledMatmulKernel(TiledMatmulArgs args, bool weights_first) {
  auto& shared = *static_cast<TileShared<T>*>(BlockMemory());
  const int64_t first_row = int64_t{blockIdx.x} * T::kRows;
  const int64_t first_column = int64_t{blockIdx.y} * T::kColumns;
  const int lane = threadIdx.x % kWarp;
  const int warp = threadIdx.x / kWarp;
  const int warp_row = warp / T::kColumnWarps * T::kWarpRows;
  const int warp_column = warp % T::kColumnWarps * T::kWarpColumns;
  const SliceCopier<T, T::kRows> x(args.x, first_row, args.rows, args.k);
  const SliceCopier<T, T::kColumns> w(args.w, first_column, args.n, args.k);
  const int slices = static_cast<int>((args.k + T::kDepth - 1) / T::kDepth);
  const auto copy_x = [&](int slice, int stage) {
    const int64_t begin = int64_t{slice} * T::kDepth;
    x.Copy(begin, args.k - begin, shared.x[stage]);
  };
  const auto copy_w = [&](int slice, int stage) {
    const int64_t begin = int64_t{slice} * T::kDepth;
    w.Copy(begin, args.k - begin, shared.w[stage]);
  };
  if (weights_first) {
#pragma unroll
    for (int slice = 0; slice < T::kStages - 1; ++slice) {
      if (slice < slices) copy_w(slice, slice);
    }
  }
  WaitForEarlierWork();
#pragma unroll
  for (int slice = 0; slice < T::kStages - 1; ++slice) {
    if (slice < slices) {
      copy_x(slice, slice);
      if (!weights_first) copy_w(slice, slice);
    }
    CommitCopies();
  }

  float sums[T::kTall][T::kWide][4];
#pragma unroll
  for (int m = 0; m < T::kTall; ++m) {
#pragma unroll
    for (int n = 0; n < T::kWide; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[m][n][j] = 0.0f;
    }
  }
  // Where the lane's rows of the two operands begin; a step further is two pieces further.
  const int a_at = T::At(warp_row + lane % 16, lane / 16);
  const int b_at = T::At(warp_column + lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const auto multiply = [&](int stage, int step) {
    const uint16_t* a_rows = shared.x[stage] + (a_at ^ step * kStep);
    const uint16_t* b_rows = shared.w[stage] + (b_at ^ step * kStep);
    uint32_t a[T::kTall][4];
    uint32_t b[T::kWide / 2][4];
#pragma unroll
    for (int m = 0; m < T::kTall; ++m) LoadMatrices<false>(a[m], a_rows + m * 16 * T::kDepth);
#pragma unroll
    for (int n = 0; n < T::kWide / 2; ++n) {
      LoadMatrices<false>(b[n], b_rows + n * 16 * T::kDepth);
    }
#pragma unroll
    for (int m = 0; m < T::kTall; ++m) {
#pragma unroll
      for (int n = 0; n < T::kWide; ++n) MultiplyAdd(sums[m][n], a[m], b[n / 2] + n % 2 * 2);
    }
  };

  int stage = 0;
  for (int slice = 0; slice < slices; ++slice) {
    WaitForCopies<T::kStages - 2>();
    __syncthreads();  // the slice is there, and the one before it is no longer read
    const int next = slice + T::kStages - 1;
    if (next < slices) {
      const int free_stage = stage == 0 ? T::kStages - 1 : stage - 1;
      copy_x(next, free_stage);
      copy_w(next, free_stage);
    }
    CommitCopies();
    const int64_t left = args.k - int64_t{slice} * T::kDepth;
    if (left >= T::kDepth) {
#pragma unroll
      for (int step = 0; step < T::kDepth / kStep; ++step) multiply(stage, step);
    } else {
      // Not even zeros are added: they could change the sign of one.
#pragma unroll 1
      for (int step = 0; step < left / kStep; ++step) multiply(stage, step);
    }
    stage = stage + 1 == T::kStages ? 0 : stage + 1;
  }

  // Sums go through shared memory, 16 rows of a warp at a time: a lane holds pairs of columns, and
  // stores eight.
  __syncthreads();
  constexpr int kStride = T::kWarpColumns + 8;
  auto* mine = reinterpret_cast<float*>(&shared) + warp * 16 * kStride;
  static_assert(sizeof(TileShared<T>) >= T::kThreads / kWarp * 16 * kStride * sizeof(float));
#pragma unroll
  for (int m = 0; m < T::kTall; ++m) {
#pragma unroll
    for (int n = 0; n < T::kWide; ++n) {
      float* to = mine + lane / 4 * kStride + n * 8 + lane % 4 * 2;
      Store2(to, sums[m][n]);
      Store2(to + 8 * kStride, sums[m][n] + 2);
    }
    __syncwarp();
    constexpr int kGroups = T::kWarpColumns / kPiece;  // of a row
#pragma unroll 1
    for (int i = lane; i < 16 * kGroups; i += kWarp) {
      const int64_t row = first_row + warp_row + m * 16 + i / kGroups;
      const int64_t column = first_column + warp_column + i % kGroups * kPiece;
      if (row >= args.rows || column >= args.n) continue;
      float group[kPiece];
      Load8(mine + i / kGroups * kStride + i % kGroups * kPiece, group);
      StoreGroup(args, row * args.n + column, column, group);
    }
    __syncwarp();
  }
}

template <typename T, int kIndex>
absl::Status Launch(const TiledMatmulArgs& args, StreamHandle stream) {
  static_assert(kMatmulTiles[kIndex].rows == T::kRows);
  static_assert(kMatmulTiles[kIndex].columns == T::kColumns);
  const int64_t row_tiles = (args.rows + T::kRows - 1) / T::kRows;
  const int64_t column_tiles = (args.n + T::kColumns - 1) / T::kColumns;
  if (row_tiles > 0x7fffffff || column_tiles > 0xffff) {
    return absl::InvalidArgumentError(
        absl::StrCat("TiledMatmul: ", args.rows, " rows, n = ", args.n));
  }
  // Blocks that follow one another share their rows of W, which are the most to read.
  const dim3 grid(static_cast<uint32_t>(row_tiles), static_cast<uint32_t>(column_tiles));
  return LaunchKernel("TiledMatmul", TiledMatmulKernel<T>, grid, T::kThreads, sizeof(TileShared<T>),
                      stream, args, stream.early_launch);
}

}  // namespace

absl::Status TiledMatmul(const TiledMatmulArgs& args, int32_t tile, StreamHandle stream) {
  if (args.rows == 0) return absl::OkStatus();
  static_assert(kNumMatmulTiles == 4);
  switch (tile) {
    case 0:
      return Launch<Tile16x32, 0>(args, stream);
    case 1:
      return Launch<Tile64x64, 1>(args, stream);
    case 2:
      return Launch<Tile64x128, 2>(args, stream);
    case 3:
      return Launch<Tile128x128, 3>(args, stream);
    default:
      return absl::InvalidArgumentError(absl::StrCat("TiledMatmul: no tile ", tile));
  }
}

}  // namespace blockserve::cuda
