// A GPT-NeoX stack on the CPU: the layers that block decoder and token decoder have in common.
#ifndef BLOCKSERVE_MODEL_DECODER_STACK_H_
#define BLOCKSERVE_MODEL_DECODER_STACK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/thread_pool.h"
#include "kernels/cpu/cpu_kernels.h"
#include "model/config.h"
#include "model/kv_store.h"
#include "model/rotary_table.h"
#include "model/run_matmul.h"
#include "model/step_timer.h"
#include "model/weights.h"

namespace blockserve {

class DecoderStack {
 public:
  // `prefix`: the names of the tensors up to "layers.N." and "final_layer_norm"; ends in a dot.
  // Activations are allocated for batches of `max_rows` positions.
  static absl::StatusOr<DecoderStack> Load(const LoadContext& context, const std::string& prefix,
                                           const StackConfig& config, const CpuKernels& kernels,
                                           int64_t max_rows);

  const StackConfig& config() const { return config_; }
  int64_t max_rows() const { return max_rows_; }
  // Elements from one row of activations to the next.
  int64_t stride() const { return RowStride(config_.hidden_size); }

  // Runs at most max_rows positions through all layers: x [rows, stride()], in place. The rows of
  // one sequence come in ascending order of position, and all positions before them have been run:
  // a row sees those of its own batch too. `wanted`, ascending, names the rows whose results are
  // used: their residual streams before the final norm end up in x [wanted, stride()]. The others
  // only leave their keys and values, which spares them most of the last layer.
  void Run(ThreadPool& pool, absl::Span<const SequenceRow> rows, absl::Span<const int32_t> wanted,
           const KvStore& kv, float* x, StepTimer* timer = nullptr);

  // y = final layer norm of x; both [rows, stride()], may be the same.
  void FinalNorm(ThreadPool& pool, int64_t rows, const float* x, float* y) const;

 private:
  struct Layer {
    LayerNormWeights attention_norm;
    LayerNormWeights mlp_norm;
    PackedMatrix qkv;
    PackedMatrix dense;
    PackedMatrix up;
    PackedMatrix down;
  };

  absl::Status LoadLayer(const LoadContext& context, const std::string& at, Layer& layer) const;
  // Rotates what is in qkv_, stores keys and values, and leaves the queries in q_.
  void SplitQkv(ThreadPool& pool, absl::Span<const SequenceRow> rows, const KvLayout& layout,
                uint8_t* kv) const;
  // attended_ = attention of the queries in q_.
  void RunAttention(ThreadPool& pool, absl::Span<const SequenceRow> rows, const KvLayout& layout,
                    const uint8_t* kv);
  // Moves the wanted rows of x, q_ and mlp_normed_ to the front, and fills wanted_rows_.
  void Compact(absl::Span<const SequenceRow> rows, absl::Span<const int32_t> wanted, float* x);
  void ReserveScratch(ThreadPool& pool, absl::Span<const SequenceRow> rows, const KvLayout& layout);

  StackConfig config_;
  const CpuKernels* kernels_ = nullptr;
  decltype(CpuKernels::attention) attention_ = nullptr;  // the arithmetic's
  std::vector<Layer> layers_;
  LayerNormWeights final_norm_;
  RotaryTable rotary_;

  int64_t max_rows_ = 0;
  std::vector<SequenceRow> wanted_rows_;
  QuantizedRows quantized_;  // of the matrix product that runs now
  // Activations, rows RowStride(width) apart.
  AlignedBuffer normed_;        // [max_rows, width]: input of attention, or of the MLP
  AlignedBuffer mlp_normed_;    // [max_rows, width]: input of the MLP under a parallel residual
  AlignedBuffer qkv_;           // [max_rows, 3 width]
  AlignedBuffer q_;             // [max_rows, heads, head_stride]
  AlignedBuffer attended_;      // [max_rows, width]
  AlignedBuffer intermediate_;  // [max_rows, intermediate_size]
  std::vector<std::vector<float>> scores_;  // of each thread
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_DECODER_STACK_H_
