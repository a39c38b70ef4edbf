// Kernels that treat every row of a batch by itself: layer norms, GELU, embedding, gathering.
//
// Contract of all kernels of this folder: a row's result is a fixed sequence of float32 operations
// on the row's own inputs. Sums of a row are taken by a fixed number of threads, each in ascending
// order, and joined by a fixed tree; nothing floating is added atomically. So the bits depend
// neither on the other rows, nor on their number, nor on the order in which blocks run. exp and erf
// are the polynomials of the CPU kernels, with the same bits.
//
// The residual stream x is float32 in every arithmetic. Launches are asynchronous on `stream`; a
// launch of no rows does nothing. INTERNAL when the launch failed, INVALID_ARGUMENT for arguments
// outside the contract.
#ifndef BLOCKSERVE_KERNELS_CUDA_ROW_KERNELS_H_
#define BLOCKSERVE_KERNELS_CUDA_ROW_KERNELS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/runtime.h"

namespace blockserve::cuda {

// y = (x - mean) / sqrt(variance + epsilon) * weight + bias over `width` elements. Products add
// into the residual stream themselves (MatmulShape::accumulate), so what is normed is x alone.
struct LayerNormArgs {
  int64_t rows = 0;
  int64_t width = 0;
  float epsilon = 0;
  const float* x = nullptr;              // [rows, x_stride]
  int64_t x_stride = 0;                  // a multiple of 4
  ElementType type = ElementType::kF32;  // of every y
  struct Output {
    const float* weight = nullptr;  // [width], at a multiple of 16 bytes, as `bias`
    const float* bias = nullptr;    // [width]
    void* y = nullptr;              // [rows, y_stride]; nullptr: no such output. May be x, if kF32
    int64_t y_stride = 0;           // padding is left as it is
  };
  // The second shares the statistics of the first (both norms of a parallel residual).
  Output outputs[2];
};
absl::Status LayerNorm(const LayerNormArgs& args, StreamHandle stream);

// y = x / 2 (1 + erf(x / sqrt 2)), in place over `count` elements, a multiple of 8. cuBLASLt's own
// epilogue is the tanh approximation, which is another function.
absl::Status Gelu(ElementType type, void* y, int64_t count, StreamHandle stream);

// to[i] = from[indices[i]] for rows of `row_bytes` bytes (a multiple of 16; strides in bytes too).
// `from` and `to` do not overlap. indices [rows] on the device; a negative index leaves the row
// alone.
struct GatherRowsArgs {
  int64_t rows = 0;
  const int32_t* indices = nullptr;
  const void* from = nullptr;
  int64_t from_stride_bytes = 0;
  void* to = nullptr;
  int64_t to_stride_bytes = 0;
  int64_t row_bytes = 0;
};
absl::Status GatherRows(const GatherRowsArgs& args, StreamHandle stream);

// Blocks of tokens to rows of width D.
enum class BlockEmbedding {
  kConcat,  // y = the L rows of the table end to end, L * width values
  kSum,     // y = the L rows added, in ascending order, width values
};
struct EmbedBlocksArgs {
  BlockEmbedding kind = BlockEmbedding::kConcat;
  int64_t rows = 0;
  int32_t block_length = 0;
  const int32_t* tokens = nullptr;       // [rows, block_length], each in the table
  ElementType type = ElementType::kF32;  // of the table
  const void* table = nullptr;           // [V, table_stride]
  int64_t table_stride = 0;
  int64_t width = 0;  // of a row of the table
  // [rows, y_stride]; padding becomes zero. kF32 for the residual stream; kBf16 as the input of the
  // product of a projection layer.
  ElementType y_type = ElementType::kF32;
  void* y = nullptr;
  int64_t y_stride = 0;
};
absl::Status EmbedBlocks(const EmbedBlocksArgs& args, StreamHandle stream);

// Inputs of the token decoder, to the residual stream: x[row] = vector + table[token], of which
// either may be missing.
struct EmbedTokensArgs {
  int64_t rows = 0;
  int64_t width = 0;
  // The context's expansion: row r adds vectors[r * vectors_stride + i], i < width. nullptr: none.
  const float* vectors = nullptr;
  int64_t vectors_stride = 0;
  // tokens[r * tokens_stride], on the device: the token of row r. nullptr: `token` in every row; a
  // negative token adds nothing.
  const int32_t* tokens = nullptr;
  int64_t tokens_stride = 0;
  int32_t token = -1;
  ElementType type = ElementType::kF32;  // of the table
  const void* table = nullptr;           // [V, table_stride]
  int64_t table_stride = 0;
  float* x = nullptr;  // [rows, x_stride]; padding becomes zero
  int64_t x_stride = 0;
};
absl::Status EmbedTokens(const EmbedTokensArgs& args, StreamHandle stream);

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_ROW_KERNELS_H_
