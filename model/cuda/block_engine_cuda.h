// The block decoder on a CUDA device: decoding steps are graphs, captured for every batch size of a
// ladder when KV is allocated; steps with prompts in them are given to the stream kernel by kernel.
#ifndef BLOCKSERVE_MODEL_CUDA_BLOCK_ENGINE_CUDA_H_
#define BLOCKSERVE_MODEL_CUDA_BLOCK_ENGINE_CUDA_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/kv_layout.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/runtime.h"
#include "model/cuda/batch_ladder.h"
#include "model/cuda/block_batch.h"
#include "model/cuda/device_stack.h"
#include "model/cuda/device_weights.h"
#include "model/cuda/lane_ring.h"
#include "model/engine.h"
#include "model/rotary_table.h"

namespace blockserve {

class CudaBlockEngine final : public BlockEngine {
 public:
  static absl::StatusOr<std::unique_ptr<BlockEngine>> Load(const Checkpoint& checkpoint,
                                                           const EngineOptions& options);
  ~CudaBlockEngine() override { Drain(); }

  const ModelConfig& config() const override { return config_; }
  Arithmetic arithmetic() const override { return arithmetic_; }
  absl::Status AllocateKv(int64_t num_pages, int32_t page_blocks) override;
  int64_t KvBytesPerPage(int32_t page_blocks) const override;
  int64_t DefaultKvBytes() const override;
  void CopyPage(int32_t from, int32_t to, int32_t blocks) override;
  int32_t max_in_flight() const override { return static_cast<int32_t>(staging_.size()); }
  // Both are UNAVAILABLE when the device failed: another replica may run the chunks.
  absl::Status Start(absl::Span<const BlockChunk> chunks, absl::Span<float> contexts) override;
  absl::Status Finish() override;
  absl::Status Lost() const override { return lost_; }

 private:
  struct StepUnderWay {
    int32_t batches = 0;  // that are in flight
    absl::Status status;  // of those that are done
  };
  // What a batch brings and takes. All batches run on one stream, one after the other; while one
  // runs, the host fills the next, and the contexts of the one before are copied.
  struct Staging {
    cuda::Event done;
    cuda::PinnedBuffer host_io;
    cuda::PinnedBuffer host_contexts;  // [max_rows, D padded] t
    cuda::DeviceBuffer io;             // BlockIoLayout
    cuda::DeviceBuffer contexts;       // [max_rows, D padded] t
    cuda::Event computed;
    std::vector<cuda::Graph> graphs;  // decoding from this buffer, of each step of the ladder
    StepUnderWay* step = nullptr;     // that the batch is a part of
    float* to = nullptr;              // where the caller wants contexts; null: nowhere any more
    int32_t num_wanted = 0;
  };

  CudaBlockEngine(const ModelConfig& config, const EngineOptions& options);

  absl::Status LoadWeights(const Checkpoint& checkpoint, ThreadPool& pool);
  // Rotary tables for at least so many positions. When they move, the graphs that read them are
  // captured again.
  absl::Status EnsurePositions(int64_t positions);
  // Runs a decoding step of every size of the ladder, of rows that are none. CUDA loads a kernel,
  // cuBLASLt's too, when it is launched for the first time, which may need memory and a
  // synchronisation that a capture forbids.
  absl::Status RunEverySize(const Staging& staging);
  // Of both stagings, for tables of so many positions.
  absl::Status CaptureGraphs(int64_t positions);
  // Gives the positions in `staging` to the stream; contexts of the wanted ones end up in
  // staging.contexts. `wanted` < 0: all of them. The first `singles` rows share nothing that
  // attention reads, or hardly anything.
  absl::Status EnqueueBatch(const Staging& staging, int32_t rows, int32_t wanted, int32_t singles,
                            const StepProfile& profile) const;
  absl::Status StartBatch(StepUnderWay& step, float* contexts);
  // Waits for everything that was given to the device.
  void Drain() const;
  // Of the batches in flight; tells its step.
  void FinishOldest();
  absl::Status StartBatches(StepUnderWay& step, absl::Span<const BlockChunk> chunks,
                            float* contexts);
  // What a step is told that failed by `why`; the device is looked at.
  absl::Status Failure(const absl::Status& why);
  void Lose(absl::string_view why);

  ModelConfig config_;
  Arithmetic arithmetic_;
  cuda::ElementType type_;
  cuda::MatmulMode mode_;
  int32_t device_;
  cuda::KernelLaunch launch_;
  int32_t max_rows_;
  std::string device_name_;
  BatchLadder ladder_;
  StepTimer* timer_;  // may be null
  StepProfiler profiler_;

  cuda::Stream stream_;
  cuda::Stream copies_;  // of contexts, to the host
  cuda::DeviceBuffer table_;
  DeviceMatrix projection_;  // Projection::kProjectionLayer only, as the two below
  std::unique_ptr<const cuda::MatmulPlan> projection_plan_;
  cuda::DeviceBuffer gathered_;  // [max_rows, L * embedding width padded] t
  DeviceStack stack_;
  StackActivations activations_;
  cuda::DeviceBuffer q_;  // [max_rows, heads * head_stride] float
  RotaryTable rotary_;
  int64_t positions_ = 0;   // 0 also where graphs are missing
  cuda::DeviceBuffer cos_;  // [positions_, rotary_dims / 2]
  cuda::DeviceBuffer sin_;

  int64_t num_pages_ = 0;
  cuda::KvLayout kv_layout_;
  cuda::DeviceBuffer kv_;  // [layers][num_pages_] pages
  absl::Status lost_;
  BlockBatch batch_;
  std::deque<StepUnderWay> under_way_;  // oldest first; their addresses are stable
  std::vector<Staging> staging_;
  LaneRing ring_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_BLOCK_ENGINE_CUDA_H_
