// The token decoder on the CPU: expansion of the context embedding, stack, head and sampling.
#ifndef BLOCKSERVE_MODEL_TOKEN_ENGINE_CPU_H_
#define BLOCKSERVE_MODEL_TOKEN_ENGINE_CPU_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/decoder_stack.h"
#include "model/engine.h"
#include "model/kv_store.h"
#include "model/output_head.h"
#include "model/run_matmul.h"
#include "model/sampler.h"
#include "model/weights.h"

namespace blockserve {

class CpuTokenEngine final : public TokenEngine {
 public:
  // The pool's turn is taken for the time of loading. Errors name the tensor.
  static absl::StatusOr<std::unique_ptr<TokenEngine>> Load(const Checkpoint& checkpoint,
                                                           const EngineOptions& options,
                                                           const CpuKernels& kernels);

  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return arithmetic_; }
  int32_t max_rows() const override { return max_rows_; }
  void Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override;

 private:
  // A row of the group that runs now: its KV slot is its index in the group.
  struct LiveRow {
    const TokenRow* row = nullptr;
    TokenRowResult* result = nullptr;
    std::vector<int32_t> tokens;  // of the block so far, forced ones first
    bool done = false;
  };
  // One input position of a row. With `wants_logits`, the logits of token `token_index` are
  // computed from it.
  struct Input {
    int32_t live = 0;  // index into live_
    int32_t index = 0;
    int32_t token_index = -1;
    bool wants_logits = false;
  };

  CpuTokenEngine(const ModelConfig& config, const EngineOptions& options,
                 const CpuKernels& kernels);

  absl::Status LoadWeights(const Checkpoint& checkpoint);
  bool head_only() const { return config_.strategy == DecodingStrategy::kHeadOnly; }
  // Inputs up to the one that gives the first token's logits.
  int32_t lead() const {
    return config_.strategy == DecodingStrategy::kPrefix ? config_.expansion_ratio : 1;
  }
  void DecodeGroup(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results);
  // expanded_ = the r vectors of every live row.
  void Expand();
  // The first pass of a row: prefix and forced tokens.
  void AddFirstInputs(int32_t live);
  void FillInput(const Input& input, float* x) const;
  // Runs inputs_ through stack, head and sampling; then inputs_ is empty.
  void RunInputs();
  void RunSlice(absl::Span<const Input> inputs);
  // Logits of the inputs that want them, [begin, end) of wanted_, and what follows from them.
  void RunHead(int64_t begin, int64_t end);
  // What reporting and drawing needs of an input's logits.
  LogitsWanted WantedOf(const Input& input) const;
  // Row `head_row` of the head's last run is the input's.
  void TakeLogits(const Input& input, int64_t head_row, Sampler& sampler);

  ModelConfig config_;
  Arithmetic arithmetic_;
  ThreadPool& pool_;
  const CpuKernels& kernels_;
  int32_t max_rows_;
  StepTimer* timer_;  // may be null

  PackedMatrix expansion_;
  EmbeddingTable table_;
  DecoderStack stack_;
  PackedMatrix head_weights_;
  OutputHead head_;
  KvStore kv_;  // one page a slot

  int64_t stride_ = 0;               // from a row of activations to the next
  std::vector<int32_t> slot_pages_;  // [max_rows] page of each slot: its index
  std::vector<LiveRow> live_;        // [rows of the group], reused
  int32_t num_live_ = 0;
  std::vector<Input> inputs_;
  std::vector<Input> wanted_;            // of a slice, those that want logits; row i of x_
  std::vector<int32_t> wanted_indices_;  // of wanted_, in the slice
  std::vector<SequenceRow> sequence_rows_;
  std::vector<int32_t> runs_;                // starts of the runs of wanted_ with equal live
  std::vector<LogitsWanted> logits_wanted_;  // of the head's rows
  std::vector<Sampler> samplers_;            // of each thread
  QuantizedRows quantized_;                  // of contexts_, or of x_ for the head
  AlignedBuffer contexts_;                   // [max_rows, D padded]
  AlignedBuffer expanded_;                   // [max_rows, r T padded]
  AlignedBuffer x_;                          // [max_rows, stride_]
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_TOKEN_ENGINE_CPU_H_
