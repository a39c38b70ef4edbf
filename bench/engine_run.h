// Runs both engines over one workload as the services do: prompts in bounded chunks, then a block
// step over all sequences and the token decoder over their rows in turn, on one pool.
#ifndef BLOCKSERVE_BENCH_ENGINE_RUN_H_
#define BLOCKSERVE_BENCH_ENGINE_RUN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/work.h"
#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "model/step_timer.h"

namespace blockserve {

struct EngineRunOptions {
  Arithmetic arithmetic = Arithmetic::kF32;
  int32_t cuda_device = -1;             // of the CUDA arithmetics
  bool early_launch = false;            // of EngineOptions
  std::optional<KernelTarget> kernels;  // absent: the machine's best
  Batching batching;
  int32_t page_blocks = 16;
  // 2, on a device: half of the sequences are in the block decoder while the token decoder writes
  // blocks of the others.
  int32_t groups = 1;
  float temperature = 0;  // 0: greedy
  uint64_t seed = 1;
};

// What one sequence got, to be compared bit for bit.
struct SequenceOutput {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
};

struct EngineRunResult {
  double prefill_seconds = 0;
  double decode_seconds = 0;
  StepTimer prefill_times;
  StepTimer decode_times;
  // A round writes one block of every sequence.
  std::vector<double> round_seconds;
  std::vector<double> prefill_step_seconds;
  std::vector<SequenceOutput> outputs;  // [sequences]
  uint64_t output_hash = 0;             // of all of them
  // Seconds that threads of this process were ready to run and had no core: what other processes
  // took away. Over all threads; 0 where the system does not tell.
  double waited_for_core_seconds = 0;
};

// The prompt of a sequence: the same on every machine, and as good as random.
std::vector<int32_t> MakePrompt(const ModelConfig& config, uint64_t seed, int64_t sequence,
                                int64_t tokens);

class EngineRunner {
 public:
  // KV for `largest` is allocated.
  static absl::StatusOr<std::unique_ptr<EngineRunner>> Load(const Checkpoint& checkpoint,
                                                            const EngineRunOptions& options,
                                                            ThreadPool& pool,
                                                            const Workload& largest);

  const ModelConfig& config() const { return block_->config(); }
  int64_t kv_bytes() const { return kv_bytes_; }

  // `first_sequence`: prompts are those of sequences first_sequence, … ; a sequence's prompt does
  // not depend on how many there are. `progress` (may be empty) is told the share done.
  absl::StatusOr<EngineRunResult> Run(const Workload& workload, int64_t first_sequence = 0,
                                      const std::function<void(double)>& progress = {});

  // Of engines on a device: where the time of such a workload goes, kernel by kernel, in seconds of
  // the device, with nothing beside one another. The prefill is run as it is, of the rounds a few
  // in the middle, whose times are told as if all had taken as long.
  struct ProfiledTimes {
    StepTimer prefill;
    StepTimer decode;
  };
  absl::StatusOr<ProfiledTimes> Profile(const Workload& workload);

  // Several sequences in one batch give the bits of each alone, prefilled in other chunks. Returns
  // a hash of the logits of the first blocks. Errors: INTERNAL naming the sequence that differs.
  absl::StatusOr<uint64_t> CheckBatchInvariance();

 private:
  struct Sequence {
    std::vector<int32_t> tokens;  // of whole blocks, padding first
    std::vector<int32_t> pages;
    uint64_t seed = 0;
    SequenceOutput output;
  };

  EngineRunner() = default;
  std::vector<Sequence> MakeSequences(const Workload& workload, int64_t first_sequence) const;
  // Leaves their contexts in contexts_.
  absl::Status Prefill(std::vector<Sequence>& sequences, int64_t chunk_blocks,
                       EngineRunResult& result, const std::function<void(double)>& progress);
  // Some of the sequences of a run, and their contexts [sequences, D].
  struct Group {
    absl::Span<Sequence> sequences;
    absl::Span<float> contexts;
  };
  // Equal parts of the sequences; contexts_ becomes theirs.
  std::vector<Group> MakeGroups(std::vector<Sequence>& sequences, int32_t groups);
  // Writes the next block of every sequence, of `limit` tokens. `logits`: empty, or
  // [sequences, limit, V].
  absl::Status WriteBlocks(const Group& group, int32_t limit, absl::Span<float> logits);
  absl::Status AppendBlocks(const Group& group);
  // All blocks of a run: what both decoders do in turn, of one group or of two.
  absl::Status Decode(std::vector<Sequence>& sequences, int64_t blocks, int64_t tokens,
                      const std::function<void(int64_t round)>& after_round);

  EngineRunOptions options_;
  StepTimer timer_;
  std::unique_ptr<BlockEngine> block_;
  std::unique_ptr<TokenEngine> token_;
  int64_t num_pages_ = 0;
  int64_t kv_bytes_ = 0;
  SamplingParameters sampling_;
  std::vector<TokenRow> rows_;
  std::vector<TokenRowResult> results_;
  std::vector<BlockChunk> chunks_;
  std::vector<float> contexts_;  // [sequences of the run, D]
};

// FNV-1a, going on from `hash`.
inline constexpr uint64_t kHashStart = 14695981039346656037u;
uint64_t HashBytes(const void* data, size_t size, uint64_t hash = kHashStart);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_ENGINE_RUN_H_
