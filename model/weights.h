// Weights of a checkpoint in the form that the CPU kernels read.
#ifndef BLOCKSERVE_MODEL_WEIGHTS_H_
#define BLOCKSERVE_MODEL_WEIGHTS_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/thread_pool.h"
#include "kernels/aligned_buffer.h"
#include "kernels/cpu/packed_matrix.h"
#include "model/arithmetic.h"
#include "model/checkpoint.h"
#include "model/load_progress.h"

namespace blockserve {

// What loading needs; the pool's turn is held by the caller.
struct LoadContext {
  const Checkpoint& checkpoint;
  Arithmetic arithmetic;
  ThreadPool& pool;
  LoadProgress* progress = nullptr;  // not owned
};

// A tensor's elements as the checkpoint stores them.
struct Elements {
  ElementType type = ElementType::kF32;
  const uint8_t* data = nullptr;
};
// Errors name the tensor.
absl::StatusOr<Elements> FindElements(const LoadContext& context, absl::string_view name,
                                      int64_t count);
// After `bytes` of tensors were taken over: their pages are let go, and progress is told.
void TakenOver(const LoadContext& context, int64_t bytes);

// A matrix product's weight `name`.weight [n, k] (or a convolution [n, k / kernel_size,
// kernel_size]) with `name`.bias [n] when there is one, in the form of WeightFormatOf; the bias is
// float32. Errors name the tensor.
absl::StatusOr<PackedMatrix> LoadMatrix(const LoadContext& context, absl::string_view name,
                                        int64_t n, int64_t k, bool has_bias,
                                        int64_t kernel_size = 1);

// A vector [n], float32 in every arithmetic, padded with zeros to a multiple of 16.
absl::StatusOr<AlignedBuffer> LoadVector(const LoadContext& context, absl::string_view name,
                                         int64_t n);

// A table of embeddings [rows, width]: bf16 where the arithmetic or the checkpoint says so, else
// float32.
class EmbeddingTable {
 public:
  EmbeddingTable() = default;
  static absl::StatusOr<EmbeddingTable> Load(const LoadContext& context, absl::string_view name,
                                             int64_t rows, int64_t width);

  int64_t width() const { return width_; }
  int64_t size_bytes() const { return data_.size_bytes(); }
  void CopyRow(int64_t row, float* out) const;  // out [width]
  void AddRow(int64_t row, float* out) const;   // out[i] += table[row, i]

 private:
  int64_t width_ = 0;
  bool bf16_ = false;
  AlignedBuffer data_;  // [rows, width] float or bf16
};

// A layer norm's weight and bias [width], padded with zeros to a multiple of 16.
struct LayerNormWeights {
  AlignedBuffer weight;
  AlignedBuffer bias;

  static absl::StatusOr<LayerNormWeights> Load(const LoadContext& context, absl::string_view name,
                                               int64_t width);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_WEIGHTS_H_
