// blockserve-gateway: the tier that owns requests and drives the two others.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/flag_table.h"
#include "common/logging.h"
#include "common/process_metrics.h"
#include "common/program.h"
#include "gateway/end_serving.h"
#include "gateway/gateway.h"
#include "gateway/http/front.h"
#include "gateway/serving_flags.h"
#include "rpc/connection_acceptor.h"
#include "rpc/health_server.h"
#include "rpc/metrics_server.h"
#include "rpc/server.h"
#include "rpc/server_logging.h"
#include "rpc/signals.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-gateway";
constexpr absl::string_view kUsage =
    "blockserve-gateway --model DIR --block-services LIST --token-services LIST\n"
    "Takes requests and drives the block and token tiers.";

struct Options {
  GatewayConfig gateway;
  ServerOptions server;
  HttpFrontOptions http;
  LoggingOptions logging;
  std::string health_listen;
  MetricsFlags metrics;
  absl::Duration stall_bound = absl::Seconds(60);
  absl::Duration drain_time = absl::Seconds(30);
  absl::Duration max_connection_age = absl::Minutes(5);
  bool share_port = false;

  void AddFlags(FlagTable& flags);
  absl::Status Validate() const;
};

void Options::AddFlags(FlagTable& flags) {
  flags.Add("model", "folder of the model: config.json and tokenizer.json are read",
            &gateway.model_directory);
  flags.Add("block_services", "block replicas: host:port or DNS names, by commas",
            &gateway.block_services);
  flags.Add("token_services", "token workers: host:port or DNS names, by commas",
            &gateway.token_services);
  flags.Add("listen", "host:port or unix:PATH to serve gRPC on; port 0: any",
            &server.listen_address);
  flags.Add("http_listen", "address to serve HTTP clients on; empty: none",
            &http.server.listen_address);
  flags.Add("share_port", kSharePortFlagHelp, &share_port);
  flags.Add("health_listen", "plaintext address that serves grpc.health alone", &health_listen);
  flags.Add("model_name", "what requests may call the model; default: the folder's",
            &gateway.model_name);
  flags.Add("allow_long_contexts", "more positions than max_position_embeddings",
            &gateway.allow_beyond_positions);
  flags.Add("drain_time", "after SIGTERM, for requests that run", &drain_time);
  flags.Add("max_connection_age",
            "clients connect anew about so often, so that a new gateway gets its share; 0: never",
            &max_connection_age);
  flags.Add("stall_bound", "with work in hand and none done for so long, liveness fails",
            &stall_bound);
  flags.Needs("stall_bound", "health_listen");
  AddAdmissionFlags(flags, gateway);
  flags.Subject("Tiers");
  flags.Add("tier_wait", "how long requests wait for a lost tier", &gateway.tier_wait);
  flags.Add("resolve_interval", "between two look-ups of DNS names", &gateway.resolve_interval);
  flags.Add("progress_bound", "without an answer for so long, a row or block is sent elsewhere",
            &gateway.progress_bound);
  flags.Add("audit_fraction", "share of blocks that a second worker decodes and compares",
            &gateway.audit_fraction);
  flags.Add("audit_context_fraction", "share of context rows that a second replica computes",
            &gateway.audit_context_fraction);
  flags.Add("audit_hold", "send no audited block before it has been compared", &gateway.audit_hold);
  flags.Add("tier_tls_ca", "PEM file: CA of both tiers; empty: plaintext to them",
            &gateway.tier_tls.ca);
  flags.Add("tier_tls_cert", "PEM file: certificate that is shown to the tiers",
            &gateway.tier_tls.certificate);
  flags.Add("tier_tls_key", "PEM file: its key", &gateway.tier_tls.key);
  flags.Add("tier_tls_name", "name in the tiers' certificates; default: their host",
            &gateway.tier_tls.server_name);
  AddStreamFlags(flags, gateway);
  AddHttpFlags(flags, http, "http_listen");
  AddSecurityFlags(flags, server.tls, gateway);
  AddObservabilityFlags(flags, gateway, logging, metrics);
}

absl::Status Options::Validate() const {
  const auto missing = [](absl::string_view flag) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " is missing"));
  };
  if (gateway.model_directory.empty()) return missing("--model");
  if (gateway.block_services.empty()) return missing("--block-services");
  if (gateway.token_services.empty()) return missing("--token-services");
  if (stall_bound <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--stall-bound must be above zero");
  }
  if (absl::Status status = gateway.Validate(); !status.ok()) return status;
  if (absl::Status status = CheckTlsFiles(gateway.tier_tls); !status.ok()) return status;
  if (absl::Status status = CheckTlsFiles(server.tls); !status.ok()) return status;
  return http.Validate();
}

int Main(int argc, char** argv) {
  Options options;
  options.gateway.tier_tls.flags = "--tier-tls";
  options.server.listen_address = "127.0.0.1:7070";
  options.logging.program = std::string(kProgram);
  FlagTable flags;
  options.AddFlags(flags);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  options.server.channelz = options.gateway.api_keys.empty();
  options.http.tls = options.server.tls;
  if (options.max_connection_age > absl::ZeroDuration()) {
    options.server.max_connection_age = options.max_connection_age;
    options.http.server.limits.max_age = options.max_connection_age;
  }
  if (options.share_port) {
    options.server.port_use = options.http.server.port_use = PortUse::kShared;
  }
  absl::Status status = options.Validate();
  if (status.ok()) status = ConfigureServerLogging(options.logging);
  if (!status.ok()) return ReportUsageError(kProgram, status);

  // Before any thread is started.
  TerminationWaiter termination;
  RaiseDescriptorLimit();
  MetricRegistry metrics;
  const std::shared_ptr<void> process_metrics = AddProcessMetrics(metrics);
  options.gateway.metrics = &metrics;
  absl::StatusOr<std::unique_ptr<HealthServer>> health = HealthServer::Start(options.health_listen);
  if (!health.ok()) return ReportFailure(kProgram, health.status());
  absl::StatusOr<std::unique_ptr<Gateway>> gateway = Gateway::Create(options.gateway);
  if (!gateway.ok()) return ReportFailure(kProgram, gateway.status());
  absl::StatusOr<std::unique_ptr<RpcServer>> server =
      RpcServer::Start(options.server, {(*gateway)->service()});
  if (!server.ok()) return ReportFailure(kProgram, server.status());
  absl::StatusOr<std::unique_ptr<MetricsServer>> metrics_server =
      MetricsServer::StartIfAsked(options.metrics, options.server.tls, metrics);
  if (!metrics_server.ok()) return ReportFailure(kProgram, metrics_server.status());
  std::unique_ptr<HttpFront> http;
  if (!options.http.server.listen_address.empty()) {
    options.http.api.metrics = [&metrics] { return metrics.RenderText(); };
    absl::StatusOr<std::unique_ptr<HttpFront>> started = HttpFront::Start(options.http, **gateway);
    if (!started.ok()) return ReportFailure(kProgram, started.status());
    http = *std::move(started);
    http->SetServing(true);
    LogInfo(absl::StrCat("HTTP on ", http->address()));
  }
  // Ready is what can answer: without workers that is UNAVAILABLE after the tier wait.
  (*server)->SetServing(true);
  (*health)->WatchProgress({(*gateway)->progress()}, options.stall_bound);
  (*health)->SetReady();
  LogInfo(absl::StrCat("listening on ", (*server)->address()));

  const int signal = termination.Wait();
  LogInfo(absl::StrCat("signal ", signal, ": draining"));
  (*health)->SetDraining();
  EndServing(**server, http.get(), **gateway, options.drain_time);
  LogInfo("stopped");
  return kExitOk;
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
