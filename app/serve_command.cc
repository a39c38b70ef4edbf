// blockserve serve: all three tiers in one process.
#include <cstdio>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "app/command.h"
#include "app/embedded.h"
#include "common/logging.h"
#include "common/process_metrics.h"
#include "common/program.h"
#include "gateway/serving_flags.h"
#include "model/device.h"
#include "rpc/connection_acceptor.h"
#include "rpc/health_server.h"
#include "rpc/listen_address.h"
#include "rpc/metrics_server.h"
#include "rpc/server_logging.h"
#include "rpc/signals.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve serve";
constexpr absl::string_view kUsage =
    "blockserve serve --model DIR [--http-address HOST:PORT] [--grpc-address HOST:PORT]\n"
    "Serves a model: gateway, block service and token service in one process.";

}  // namespace

int RunServe(const Arguments& arguments) {
  EmbeddedOptions options;
  options.grpc_address = "127.0.0.1:7070";
  options.http.server.listen_flag = "--http-address";
  options.gateway.log_requests = true;
  LoggingOptions logging;
  logging.program = std::string(kProgram);
  absl::Duration drain_time = absl::Seconds(30);
  absl::Duration stall_bound = absl::Seconds(60);
  std::string health_listen;
  bool share_port = false;
  MetricsFlags metrics_flags;
  FlagTable flags;
  flags.Add("model", "folder of the model", &options.model_directory);
  flags.Add("grpc_address", "host:port or unix:PATH to serve gRPC on; port 0: any",
            &options.grpc_address);
  flags.Add("http_address", "address to serve HTTP clients on; empty: none",
            &options.http.server.listen_address);
  flags.Add("share_port", kSharePortFlagHelp, &share_port);
  flags.Add("tiers_address",
            "address where other gateways find this one's block service and token worker",
            &options.tiers_address);
  flags.Add("health_listen", "plaintext address that serves grpc.health alone", &health_listen);
  flags.Add("model_name", "what requests may call the model; default: the folder's",
            &options.gateway.model_name);
  flags.Add("device", kDeviceFlagHelp, &options.device);
  flags.Add("arithmetic", ArithmeticFlagHelp(), &options.arithmetic);
  flags.Add("early_launch", kEarlyLaunchFlagHelp, &options.early_launch);
  flags.Add("threads", "compute threads; 0: one per core", &options.threads);
  flags.Add("kv_memory_mib", kKvMemoryFlagHelp, &options.kv_memory_mib);
  flags.Add("max_sequences", kMaxSequencesFlagHelp, &options.max_sequences);
  flags.Add("prefill_chunk", kPrefillChunkFlagHelp, &options.prefill_chunk);
  flags.Add("max_rows", "token rows of a batch; 0: 64, on a CUDA device 1024", &options.max_rows);
  flags.Add("groups", "of sequences, that take turns; 0: 1, on a CUDA device 2", &options.groups);
  flags.Add("allow_long_contexts", "more positions than max_position_embeddings",
            &options.gateway.allow_beyond_positions);
  flags.Add("prefix_cache", "share KV of prompts that begin alike", &options.prefix_cache);
  flags.Add("drain_time", "after SIGTERM, for requests that run", &drain_time);
  flags.Add("stall_bound", "with work in hand and none done for so long, liveness fails",
            &stall_bound);
  flags.Needs("stall_bound", "health_listen");
  AddAdmissionFlags(flags, options.gateway);
  AddStreamFlags(flags, options.gateway);
  AddHttpFlags(flags, options.http, "http_address");
  AddSecurityFlags(flags, options.tls, options.gateway);
  AddObservabilityFlags(flags, options.gateway, logging, metrics_flags);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (share_port) options.port_use = options.http.server.port_use = PortUse::kShared;
  absl::Status status = options.Validate();
  if (status.ok() && options.grpc_address.empty()) {
    status = absl::InvalidArgumentError("--grpc-address is empty; it must be host:port");
  }
  if (status.ok() && stall_bound <= absl::ZeroDuration()) {
    status = absl::InvalidArgumentError("--stall-bound must be above zero");
  }
  if (status.ok()) status = ConfigureServerLogging(logging);
  if (!status.ok()) return ReportUsageError(kProgram, status);

  // Before any thread is started.
  TerminationWaiter termination;
  RaiseDescriptorLimit();
  MetricRegistry metrics;
  const std::shared_ptr<void> process_metrics = AddProcessMetrics(metrics);
  options.metrics = &metrics;
  absl::StatusOr<std::unique_ptr<MetricsServer>> metrics_server =
      MetricsServer::StartIfAsked(metrics_flags, options.tls, metrics);
  if (!metrics_server.ok()) return ReportFailure(kProgram, metrics_server.status());
  absl::StatusOr<std::unique_ptr<HealthServer>> health = HealthServer::Start(health_listen);
  if (!health.ok()) return ReportFailure(kProgram, health.status());
  // Loading takes its time: what cannot be listened on is told before.
  status = CheckListenAddresses(
      {{"--grpc-address", options.grpc_address, options.port_use},
       {"--http-address", options.http.server.listen_address, options.port_use},
       {"--tiers-address", options.tiers_address}});
  if (!status.ok()) return ReportFailure(kProgram, status);
  options.loaded = [&termination] { termination.SetLoading(false); };
  termination.SetLoading(true);
  absl::StatusOr<std::unique_ptr<Embedded>> embedded = Embedded::Start(options);
  if (!embedded.ok()) return ReportFailure(kProgram, embedded.status());
  (*health)->WatchProgress((*embedded)->progress(), stall_bound);
  (*health)->SetReady();
  const std::string http = (*embedded)->http_address();
  const absl::string_view scheme = options.tls.enabled() ? "https://" : "http://";
  std::puts(absl::StrCat("blockserve serves ", options.model_directory, " on ",
                         (*embedded)->address(),
                         http.empty() ? "" : absl::StrCat(" (gRPC) and ", scheme, http, "/"),
                         (*embedded)->tiers_address().empty()
                             ? ""
                             : absl::StrCat("; its tiers on ", (*embedded)->tiers_address()))
                .c_str());
  std::fflush(stdout);

  const int signal = termination.Wait();
  LogInfo(absl::StrCat("signal ", signal, ": draining"));
  (*health)->SetDraining();
  (*embedded)->Stop(drain_time);
  LogInfo("stopped");
  return kExitOk;
}

}  // namespace blockserve
