// The token tier's service: TokenDecoder of token_decoder.proto on a TokenEngine.
#ifndef BLOCKSERVE_TOKEN_SERVICE_TOKEN_SERVICE_H_
#define BLOCKSERVE_TOKEN_SERVICE_TOKEN_SERVICE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/engine.h"
#include "rpc/tier_service.h"
#include "token_service/fault_injection.h"

namespace blockserve {

struct TokenServiceConfig {
  std::string name = "token";       // for people: who answers
  std::string device = "auto";      // auto, cpu or cuda:N
  std::string arithmetic = "auto";  // or a name of model/arithmetic.h
  bool early_launch = false;        // of EngineOptions
  // Rows of a batch, beyond which nothing is gained. 0, for Create alone: 64, on a CUDA device
  // 1024.
  int32_t max_rows = 64;
  // Rows that wait; more are answered RESOURCE_EXHAUSTED. 0, for Create alone: four batches, at
  // least 1024.
  int32_t max_queued_rows = 1024;
  int32_t max_reply_bytes = 4 << 20;  // of rows in one message
  MetricRegistry* metrics = nullptr;  // must outlive the service; null: none are kept
  FaultInjection faults = {};         // for tests of the system around it

  // INVALID_ARGUMENT naming the flag.
  absl::Status Validate() const;
};

// What the hello says beside the configuration.
struct TokenServiceIdentity {
  std::string config_hash;
  std::string tokenizer_hash;
  std::string numeric_id;
  std::string model_digest;
  // Computed beside serving: streams are accepted at once, and hear the hello when it is known.
  std::function<std::string()> part_hash;
};

// Thread-safe.
class TokenService final : public TierService {
 public:
  // Loads the engine and probes it. `checkpoint` and `pool` must outlive the service. Errors: those
  // of Validate and of loading.
  static absl::StatusOr<std::unique_ptr<TokenService>> Create(const TokenServiceConfig& config,
                                                              const Checkpoint& checkpoint,
                                                              ThreadPool* pool);
  // The same on an engine that is there: also for tests.
  static absl::StatusOr<std::unique_ptr<TokenService>> CreateOnEngine(
      const TokenServiceConfig& config, std::unique_ptr<TokenEngine> engine,
      TokenServiceIdentity identity);
  ~TokenService() override;
  TokenService(const TokenService&) = delete;
  TokenService& operator=(const TokenService&) = delete;

  grpc::Service* service() override;
  void WaitUntilKnown() override;
  // Rows that wait are given back (UNAVAILABLE); those being decoded are finished.
  void StartDraining() override;
  bool WaitUntilDrained(absl::Duration timeout) override;
  void Stop() override;  // the step that runs is finished

  const std::string& numeric_id() const override;
  std::shared_ptr<const Progress> progress() const override;
  std::string InHand() const override;
  struct Stats {
    uint64_t steps = 0;
    int32_t waiting = 0;
    int32_t running = 0;
    int32_t streams = 0;
  };
  Stats stats() const;

 private:
  class Impl;
  explicit TokenService(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_TOKEN_SERVICE_H_
