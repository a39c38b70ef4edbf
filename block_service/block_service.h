// The block tier's service: embedder, block decoder and the KV of every sequence, behind
// BlockDecoder.Run (block_decoder.proto).
#ifndef BLOCKSERVE_BLOCK_SERVICE_BLOCK_SERVICE_H_
#define BLOCKSERVE_BLOCK_SERVICE_BLOCK_SERVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "block_service/engine_loop.h"
#include "block_service/fault_injection.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "rpc/tier_service.h"

namespace blockserve {

// The explanations of three flags in the --help of the programs that have them.
inline constexpr char kKvMemoryFlagHelp[] =
    "memory for KV; 0: a quarter of it, at most 1 GiB, of a GPU's half";
inline constexpr char kMaxSequencesFlagHelp[] =
    "sequences open at a time; 0: 256, on a CUDA device 2048";
inline constexpr char kPrefillChunkFlagHelp[] =
    "prompt blocks of a step; 0: 256, on a CUDA device 2048";

// Of a process that may have so much memory: a quarter, at most 1 GiB.
int64_t DefaultKvBytes(int64_t memory_bytes);

struct BlockServiceConfig {
  std::string name = "block";       // for people: in the hello and in logs
  std::string device = "auto";      // auto, cpu or cuda:N
  std::string arithmetic = "auto";  // or a name of model/arithmetic.h
  bool early_launch = false;        // of EngineOptions
  // Memory for KV pages. Both 0: on a CUDA device half of what is free there, else DefaultKvBytes,
  // but no more than max_sequences sequences of the longest context can use. The system provides
  // pages of memory as they are written for the first time.
  int64_t kv_memory_mib = 0;
  int64_t kv_pages = 0;  // instead of kv_memory_mib
  int32_t page_blocks = 16;
  // The two below 0, where a checkpoint is loaded: 256, on a CUDA device 2,048.
  int32_t max_sequences = 256;
  int32_t prefill_chunk = 256;  // prompt blocks of a step, over all prompts
  int32_t groups = 2;           // 1 where both tiers share one pool of cores
  int32_t min_group_blocks = 8;
  bool allow_long_contexts = false;  // more blocks than max_position_embeddings
  bool prefix_cache = true;
  absl::Duration lease = absl::Seconds(10);
  // Beyond: RESOURCE_EXHAUSTED. 0: 4096, or two for each of max_sequences where that is more.
  int32_t max_items_per_stream = 0;
  int32_t max_reply_bytes = 4 << 20;  // of context rows in one message
  BlockFaultInjection faults;         // for tests of the system around it
  MetricRegistry* metrics = nullptr;  // must outlive the service; null: none are kept
  const Clock* clock = nullptr;       // must outlive the service; null: the steady clock

  // INVALID_ARGUMENT naming the flag.
  absl::Status Validate() const;
};

// What the service is made of, for tests that bring an engine of their own.
struct BlockServiceParts {
  std::unique_ptr<BlockEngine> engine;  // without KV
  std::string config_hash;
  std::string tokenizer_hash;
  std::string model_digest;
  std::string numeric_id;  // empty: found by probing the engine
  // Called once on a thread of its own; hellos wait for it, nothing else does.
  std::function<std::string()> hash_part;
};

class BlockService final : public TierService {
 public:
  // Loads the model's block part, allocates its KV and probes its numeric id. `checkpoint` and
  // `pool` must outlive the service. Errors name the flag, file or tensor.
  static absl::StatusOr<std::unique_ptr<BlockService>> Create(const BlockServiceConfig& config,
                                                              const Checkpoint& checkpoint,
                                                              ThreadPool* pool);
  static absl::StatusOr<std::unique_ptr<BlockService>> Create(const BlockServiceConfig& config,
                                                              BlockServiceParts parts);
  ~BlockService() override;  // as Stop
  BlockService(const BlockService&) = delete;
  BlockService& operator=(const BlockService&) = delete;

  grpc::Service* service() override;
  void WaitUntilKnown() override;
  void StartDraining() override;  // open sequences are served on
  // True when no sequence is left.
  bool WaitUntilDrained(absl::Duration timeout) override;
  void Stop() override;

  const std::string& numeric_id() const override;
  std::shared_ptr<const Progress> progress() const override;
  std::string InHand() const override;
  EngineLoopStats stats() const;

 private:
  struct Impl;
  explicit BlockService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_BLOCK_SERVICE_H_
