// All three tiers in one process: the services that the programs of the tiers run, joined by
// in-process channels, and on an address of their own for gateways of other processes.
#ifndef BLOCKSERVE_APP_EMBEDDED_H_
#define BLOCKSERVE_APP_EMBEDDED_H_

#include <grpcpp/channel.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "block_service/block_service.h"
#include "common/metrics.h"
#include "common/thread_pool.h"
#include "gateway/gateway.h"
#include "gateway/http/front.h"
#include "model/checkpoint.h"
#include "rpc/server.h"
#include "rpc/tls.h"
#include "token_service/token_service.h"

namespace blockserve {

struct EmbeddedOptions {
  EmbeddedOptions() { gateway.log_requests = false; }

  std::string model_directory;
  std::string device = "auto";      // auto, cpu or cuda:N
  std::string arithmetic = "auto";  // or a name of model/arithmetic.h
  bool early_launch = false;        // of EngineOptions
  int32_t threads = 0;              // shared by both tiers; 0: one per core
  // 0: the services' defaults.
  int32_t kv_memory_mib = 0;
  int32_t max_sequences = 0;
  int32_t prefill_chunk = 0;
  int32_t max_rows = 0;
  // Of sequences, that take turns at the two decoders; 0: 1 where these share the CPU's cores, on a
  // device 2.
  int32_t groups = 0;
  bool prefix_cache = true;
  // Where clients are served; empty: by channel() alone.
  std::string grpc_address;
  PortUse port_use = PortUse::kAlone;  // of grpc_address
  // Where gateways of other processes find both compute tiers; empty: nowhere. One gateway runs its
  // policy on one thread, and a GPU may write more tokens than that takes.
  std::string tiers_address;
  ServerTlsFiles tls;                 // of all addresses
  HttpFrontOptions http;              // its listen_address empty: no HTTP
  MetricRegistry* metrics = nullptr;  // of all three tiers; must outlive this; null: none
  // Names, admission, keys, logs. The model, the tiers and how to reach them are filled in.
  GatewayConfig gateway;
  // Called when the model has been loaded, before anything can be asked of it. May be null.
  std::function<void()> loaded;

  // INVALID_ARGUMENT naming the flag.
  absl::Status Validate() const;
};

class Embedded {
 public:
  // Loads the model and starts everything; returns when the gateway has both tiers, with health
  // SERVING. Errors name the flag, file or tensor.
  static absl::StatusOr<std::unique_ptr<Embedded>> Start(const EmbeddedOptions& options);
  // As Stop(0).
  ~Embedded();
  Embedded(const Embedded&) = delete;
  Embedded& operator=(const Embedded&) = delete;

  // The gateway's part of the options, filled in.
  static GatewayConfig GatewayOf(const EmbeddedOptions& options);

  // To the public service.
  std::shared_ptr<grpc::Channel> channel() { return front_->InProcessChannel(); }
  // Bound address; empty without grpc_address.
  const std::string& address() const { return front_->address(); }
  // Bound address; empty without tiers_address.
  const std::string& tiers_address() const { return tiers_->address(); }
  // Bound address; empty without http.
  std::string http_address() const { return http_ == nullptr ? "" : http_->address(); }
  // Of the threads that do the work, for liveness.
  std::vector<std::shared_ptr<const Progress>> progress() const {
    return {gateway_->progress(), block_->progress(), token_->progress()};
  }

  // As EndServing (gateway/end_serving.h), but for requests over channel(): gRPC breaks in-process
  // channels at once. Then the tiers drain: other gateways have what is left of `grace`.
  // Idempotent.
  void Stop(absl::Duration grace);

 private:
  Embedded() = default;
  absl::Status WaitForTiers();
  void DrainTiers(absl::Duration timeout);

  // In the order in which they are started; destroyed the other way round.
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<BlockService> block_;
  std::unique_ptr<TokenService> token_;
  std::unique_ptr<RpcServer> tiers_;  // both services
  std::unique_ptr<Gateway> gateway_;
  std::unique_ptr<RpcServer> front_;
  std::unique_ptr<HttpFront> http_;
  bool stopped_ = false;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_APP_EMBEDDED_H_
