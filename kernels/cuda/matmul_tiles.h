// Matrix products of bfloat16 on tensor cores, in tiles: the kernel behind MatmulMode::kOwn.
//
// Each sum is one chain of the tensor cores' products of 16 along k, ascending, whatever the tile:
// tiles differ in speed and in nothing else, so that every number of rows has the tile that suits
// it and a row has the same bits in all of them.
#ifndef BLOCKSERVE_KERNELS_CUDA_MATMUL_TILES_H_
#define BLOCKSERVE_KERNELS_CUDA_MATMUL_TILES_H_

#include <cstdint>
#include <iterator>

#include "absl/status/status.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/runtime.h"

namespace blockserve::cuda {

// What a block of threads computes of y.
struct MatmulTile {
  int32_t rows;
  int32_t columns;
};
inline constexpr MatmulTile kMatmulTiles[] = {{16, 32}, {64, 64}, {64, 128}, {128, 128}};
inline constexpr int32_t kNumMatmulTiles = std::size(kMatmulTiles);

// The tile, an index into kMatmulTiles, that takes the least time by the reckoning in
// matmul_own.cc, on a device of so many multiprocessors.
int32_t ChooseMatmulTile(int64_t rows, int64_t n, int32_t multiprocessors);

// y = x W^T + bias, its GELU, or y += that.
struct TiledMatmulArgs {
  int64_t rows = 0;
  int64_t n = 0;  // a multiple of kElementPadding, as k
  int64_t k = 0;
  const void* x = nullptr;     // [rows, k] bf16, at a multiple of 16 bytes, as the others
  const void* w = nullptr;     // [n, k] bf16; as MatmulPlan::Run has it
  const void* bias = nullptr;  // [n] of `output`; nullptr: none
  ElementType output = ElementType::kF32;
  void* y = nullptr;  // [rows, n] of `output`; rows beyond are left alone
  bool gelu = false;
  bool accumulate = false;
};
// Asynchronous; no rows do nothing. INVALID_ARGUMENT for a tile that is none, or more tiles than a
// grid has blocks.
absl::Status TiledMatmul(const TiledMatmulArgs& args, int32_t tile, StreamHandle stream);

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_MATMUL_TILES_H_
