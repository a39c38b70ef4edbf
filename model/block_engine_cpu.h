// The block decoder on the CPU: embedder, stack and paged KV.
#ifndef BLOCKSERVE_MODEL_BLOCK_ENGINE_CPU_H_
#define BLOCKSERVE_MODEL_BLOCK_ENGINE_CPU_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/decoder_stack.h"
#include "model/engine.h"
#include "model/kv_store.h"
#include "model/run_matmul.h"
#include "model/weights.h"

namespace blockserve {

class CpuBlockEngine final : public BlockEngine {
 public:
  // The pool's turn is taken for the time of loading. Errors name the tensor.
  static absl::StatusOr<std::unique_ptr<BlockEngine>> Load(const Checkpoint& checkpoint,
                                                           const EngineOptions& options,
                                                           const CpuKernels& kernels);

  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return arithmetic_; }
  absl::Status AllocateKv(int64_t num_pages, int32_t page_blocks) override;
  int64_t KvBytesPerPage(int32_t page_blocks) const override;
  void CopyPage(int32_t from, int32_t to, int32_t blocks) override;
  // Errors: INVALID_ARGUMENT naming the chunk, before anything is computed.
  absl::Status Start(absl::Span<const BlockChunk> chunks, absl::Span<float> contexts) override;

 private:
  // A position of the step that runs now.
  struct Position {
    const int32_t* tokens;  // [L]
    bool wants_context;
  };

  CpuBlockEngine(const ModelConfig& config, const EngineOptions& options, const CpuKernels& kernels)
      : config_(config),
        arithmetic_(options.arithmetic),
        pool_(*options.pool),
        kernels_(kernels),
        timer_(options.timer) {}

  absl::Status LoadWeights(const Checkpoint& checkpoint, int64_t max_rows);
  // x_ = embeddings of the batch's blocks.
  void Embed();
  // Runs the positions in batch_ and rows_, writes the wanted context rows from `contexts` on, and
  // returns how many there were.
  int64_t RunBatch(float* contexts);

  ModelConfig config_;
  Arithmetic arithmetic_;
  ThreadPool& pool_;
  const CpuKernels& kernels_;
  StepTimer* timer_;  // may be null

  EmbeddingTable table_;
  PackedMatrix projection_;  // Projection::kProjectionLayer only
  DecoderStack stack_;
  KvStore kv_;

  std::vector<Position> batch_;    // at most stack_.max_rows()
  std::vector<SequenceRow> rows_;  // of batch_
  std::vector<int32_t> wanted_;    // indices into batch_ of those that want a context
  QuantizedRows quantized_;        // of gathered_
  AlignedBuffer gathered_;         // [max_rows, L * embedding width padded], kProjectionLayer only
  AlignedBuffer x_;                // [max_rows, stack_.stride()]
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_BLOCK_ENGINE_CPU_H_
