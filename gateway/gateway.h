// The gateway: owns every request from its first token to its last, and drives the two compute
// tiers.
//
// One loop thread runs all of its policy; gRPC's threads only hand messages over. Embeds in any
// program: `service()` is registered with a server of the caller's.
#ifndef BLOCKSERVE_GATEWAY_GATEWAY_H_
#define BLOCKSERVE_GATEWAY_GATEWAY_H_

#include <grpcpp/channel.h>
#include <grpcpp/impl/codegen/service_type.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "common/progress.h"
#include "gateway/admission.h"
#include "gateway/api_keys.h"
#include "gateway/deployment_status.h"
#include "gateway/generation.h"
#include "model/config.h"
#include "model/tokenizer.h"
#include "rpc/tls.h"

namespace blockserve {

class RequestValidator;

struct GatewayConfig {
  // Folder with config.json and, for text, tokenizer.json; no weights are read.
  std::string model_directory;
  // What GetModel and the `model` field of requests call it; empty: the folder's name.
  std::string model_name;
  // Comma lists of host:port and DNS names with a port; every address of a name is a worker.
  // Entries "inproc:NAME" are given to the channel factory as they are.
  std::string block_services;
  std::string token_services;
  // TLS to both tiers.
  ClientTlsFiles tier_tls;
  // File of API keys (gateway/api_keys.h), one of which every call needs; empty: none is needed.
  std::string api_keys;
  // Makes the channel to an address; empty: channels with keepalive and `tier_tls`.
  std::function<std::shared_ptr<grpc::Channel>(const std::string& address)> channel_factory;
  // Texts beyond the positions that the model was trained on are served.
  bool allow_beyond_positions = false;

  // How long requests wait for a tier that is gone; afterwards UNAVAILABLE, and new ones at once.
  absl::Duration tier_wait = absl::Seconds(10);
  absl::Duration resolve_interval = absl::Seconds(2);
  // An answer that takes longer is asked for elsewhere, if there is an elsewhere.
  absl::Duration progress_bound = absl::Seconds(10);
  // Shares of blocks and of context rows that are computed by a second worker too and compared bit
  // for bit; with audit_hold nobody gets an audited one before.
  double audit_fraction = 0;
  double audit_context_fraction = 0;
  bool audit_hold = false;
  absl::Duration slow_reader_timeout = absl::Minutes(2);  // AdmittedCoreOptions
  int32_t max_queued_requests = 1024;  // that wait to be admitted; beyond: RESOURCE_EXHAUSTED
  int32_t max_starting_requests = 64;  // admitted, and without their first block yet
  int32_t max_live_choices = 16384;    // of all admitted requests together
  double max_live_batches = 3;     // likewise, in best batches of all token workers; 0: no limit
  int32_t stream_interval = 1;     // GenerateRequest.stream_interval of requests that name none
  int32_t grpc_write_threads = 1;  // that write the streams of gRPC's clients
  std::string limits_file;         // of keys (gateway/limits_file.h); empty: no limits

  bool log_requests = true;  // a line for each request that is over
  bool log_prompts = false;  // with its prompt
  // Share of requests whose spans are logged (gateway/admitted_core.h); 0: none.
  double trace_sample_ratio = 0;

  MetricRegistry* metrics = nullptr;  // must outlive the gateway; null: none are kept

  // What `limits_file` and the fields say. INVALID_ARGUMENT naming the field.
  absl::StatusOr<AdmissionOptions> Admission() const;
  // INVALID_ARGUMENT naming the field.
  absl::Status Validate() const;
};

// What a gateway reads. It is read in milliseconds: before weights are, where the process loads
// them too.
struct GatewayFiles {
  ModelConfig model;
  std::unique_ptr<Tokenizer> tokenizer;  // null: the folder has none
  std::string tokenizer_hash;
  std::shared_ptr<ApiKeys> api_keys;  // null: none is needed

  // Errors name the file, or the flag of the keys' file.
  static absl::StatusOr<GatewayFiles> Read(const GatewayConfig& config);
};

class Gateway {
 public:
  // Starts the loop thread and begins to connect; does not wait for workers. Errors: those of
  // Validate.
  static absl::StatusOr<std::unique_ptr<Gateway>> Create(const GatewayConfig& config,
                                                         GatewayFiles files);
  // Reads the files, too.
  static absl::StatusOr<std::unique_ptr<Gateway>> Create(const GatewayConfig& config);
  // Stops, and joins the loop thread. The server that has `service()` must be gone.
  ~Gateway();
  Gateway(const Gateway&) = delete;
  Gateway& operator=(const Gateway&) = delete;

  // Owned by the gateway, which must outlive the server that it is registered with.
  grpc::Service* service();
  GenerationCore& core();
  // Who may call; null: everybody.
  ApiKeys* api_keys();
  // Without admission: for probes, which overload must not refuse.
  GenerationCore& core_behind_admission();
  const RequestValidator& validator() const;
  const std::string& model_directory() const;
  // `done` is called on the loop's thread.
  void ReadStatus(std::function<void(DeploymentStatus)> done);

  // New requests are refused with UNAVAILABLE; those that run may go on for `time`, then they end
  // as by Stop.
  void StartDraining(absl::Duration time);
  // Ends what still runs with UNAVAILABLE and closes the streams to the tiers; requests that come
  // later are told the same. Idempotent.
  void Stop();

  // Of the loop's thread, for liveness.
  std::shared_ptr<const Progress> progress() const;

 private:
  struct Impl;
  explicit Gateway(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_GATEWAY_H_
