// The token decoder on a CUDA device: a whole block - expansion, first step, later steps, sampling
// - is one graph, captured for every batch size of a ladder when the model is loaded.
#ifndef BLOCKSERVE_MODEL_CUDA_TOKEN_ENGINE_CUDA_H_
#define BLOCKSERVE_MODEL_CUDA_TOKEN_ENGINE_CUDA_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/runtime.h"
#include "model/cuda/batch_ladder.h"
#include "model/cuda/device_stack.h"
#include "model/cuda/device_weights.h"
#include "model/cuda/lane_ring.h"
#include "model/cuda/token_batch.h"
#include "model/engine.h"

namespace blockserve {

class CudaTokenEngine final : public TokenEngine {
 public:
  static absl::StatusOr<std::unique_ptr<TokenEngine>> Load(const Checkpoint& checkpoint,
                                                           const EngineOptions& options);
  ~CudaTokenEngine() override;  // waits for what is in flight

  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return arithmetic_; }
  int32_t max_rows() const override { return max_rows_; }
  // Rows whose device failed are UNAVAILABLE: another worker may decode them.
  void Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override {
    Start(rows, results);
    Finish();
  }
  int32_t max_in_flight() const override { return static_cast<int32_t>(lanes_.size()); }
  int32_t batch_rows() const override { return lane_rows_; }
  // A batch that one lane cannot hold takes several, one after another.
  void Start(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) override;
  void Finish() override;
  absl::Status Lost() const override { return lost_; }

 private:
  // A batch in flight, or a part of one: what it runs on and in.
  struct Lane {
    cuda::Stream stream;
    cuda::Event done;
    cuda::PinnedBuffer host_io;
    cuda::PinnedBuffer host_lists;
    cuda::PinnedBuffer host_top_tokens;
    cuda::PinnedBuffer host_top_logprobs;
    cuda::DeviceBuffer io;  // TokenIoLayout
    cuda::DeviceBuffer lists;
    cuda::DeviceBuffer saved;
    cuda::DeviceBuffer top_tokens;    // [rows, L, top_stride_]
    cuda::DeviceBuffer top_logprobs;  // [rows, L, top_stride_]
    cuda::DeviceBuffer vectors;       // [rows, r, T padded] float: the expanded contexts
    cuda::DeviceBuffer kv;            // [layers][rows] pages
    cuda::DeviceBuffer logits;        // [head_rows_, V padded] float
    StackActivations activations;
    std::vector<cuda::Graph> graphs;  // of each step of the ladder

    int64_t batch = 0;  // the Start that it belongs to, counted from 1
    absl::Span<const TokenRow> rows;
    absl::Span<TokenRowResult> results;
    TokenIoLayout layout;
    bool tops = false;  // were copied back
  };
  // Told after each step's sampling of rows [begin, begin + count) of the lane.
  using StepSeen = absl::FunctionRef<absl::Status(int32_t token, int64_t begin, int64_t count)>;

  CudaTokenEngine(const ModelConfig& config, const EngineOptions& options);

  bool head_only() const { return config_.strategy == DecodingStrategy::kHeadOnly; }
  bool prefix() const { return config_.strategy == DecodingStrategy::kPrefix; }
  // Inputs up to the one that gives the first token's logits.
  int32_t lead() const { return prefix() ? config_.expansion_ratio : 1; }
  int64_t token_stride() const { return cuda::PadElements(config_.token.hidden_size); }

  absl::Status LoadWeights(const Checkpoint& checkpoint, ThreadPool& pool);
  absl::Status AllocateLane(Lane& lane) const;
  // Runs a block of every size of the ladder. CUDA loads a kernel, cuBLASLt's too, when it is
  // launched for the first time, which may need memory and a synchronisation that a capture
  // forbids.
  absl::Status RunEverySize(const Lane& lane) const;
  absl::Status CaptureGraphs(Lane& lane) const;
  // Gives a whole block of `rows` rows to the lane's stream; what it reads is in the lane's buffers
  // by the layout of so many rows.
  absl::Status EnqueueBlock(const Lane& lane, int32_t rows, const StepProfile& profile,
                            StepSeen seen) const;
  // Fills the stack's input of the step of token `token`.
  absl::Status EmbedStep(const Lane& lane, const TokenIoLayout& layout, int32_t rows,
                         int32_t token) const;
  absl::Status StartLane(Lane& lane, absl::Span<const TokenRow> rows,
                         absl::Span<TokenRowResult> results);
  // The same batch step by step, waiting for each: its logits are wanted on the host.
  absl::Status RunWithLogits(Lane& lane, int32_t rows);
  void FinishOldestLane();
  // These rows are UNAVAILABLE, and the device is looked at.
  void Fail(absl::Span<TokenRowResult> results, const absl::Status& why);

  ModelConfig config_;
  Arithmetic arithmetic_;
  cuda::ElementType type_;
  cuda::MatmulMode mode_;
  int32_t device_;
  cuda::KernelLaunch launch_;
  int32_t max_rows_;
  int32_t lane_rows_;
  int64_t head_rows_;  // whose logits are in memory at once
  int32_t top_stride_;
  int64_t list_capacity_;
  BatchLadder ladder_;
  StepTimer* timer_;  // may be null
  StepProfiler profiler_;

  DeviceMatrix expansion_;
  cuda::DeviceBuffer table_;
  DeviceStack stack_;
  DeviceMatrix head_;
  std::unique_ptr<const cuda::MatmulPlan> expansion_plan_;
  std::unique_ptr<const cuda::MatmulPlan> head_plan_;
  cuda::DeviceBuffer cos_;  // [positions, rotary_dims / 2]
  cuda::DeviceBuffer sin_;
  cuda::KvLayout kv_layout_;        // page s is row s of a lane
  cuda::DeviceBuffer last_inputs_;  // [lane_rows_]: row s * r + r - 1 of the first step

  // After the weights that their graphs read.
  std::vector<Lane> lanes_;
  LaneRing ring_;
  int64_t batches_started_ = 0;
  int64_t batches_finished_ = 0;
  absl::Status lost_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_TOKEN_ENGINE_CUDA_H_
