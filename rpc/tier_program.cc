#include "rpc/tier_program.h"

#include <unistd.h>

#include <algorithm>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/process_metrics.h"
#include "rpc/connection_acceptor.h"
#include "rpc/health_server.h"
#include "rpc/listen_address.h"
#include "rpc/metrics_server.h"
#include "rpc/signals.h"
#include "rpc/tls.h"

namespace blockserve {
namespace {

// What has been answered is on its way by then.
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

}  // namespace

void TierProgramOptions::AddFlags(FlagTable& flags) {
  flags.Add("model", "folder of the model: config.json and safetensors", &model);
  flags.Add("listen", "host:port or unix:PATH to serve gateways on; port 0: any",
            &server.listen_address);
  flags.Add("health_listen", "plaintext address that serves grpc.health alone", &health_listen);
  flags.Add("threads", "compute threads; 0: one per core", &threads);
  flags.Add("stall_bound", "with work in hand and none done for so long, liveness fails",
            &stall_bound);
  flags.Needs("stall_bound", "health_listen");
}

void TierProgramOptions::AddServingFlags(FlagTable& flags) {
  flags.Subject("Security");
  flags.Add("tls_cert", "PEM file: certificate of this server; empty: plaintext",
            &server.tls.certificate);
  flags.Add("tls_key", "PEM file: its key", &server.tls.key);
  flags.Add("tls_client_ca", "PEM file: callers must show a certificate of this CA",
            &server.tls.client_ca);
  flags.Subject("Observability");
  metrics.Add(flags);
  flags.Add("log_level", "debug, info, warning, error or off", &logging.level);
  flags.Add("log_format", "text, or json: an object a line", &logging.format);
}

absl::Status TierProgramOptions::Validate() const {
  if (model.empty()) return absl::InvalidArgumentError("--model is missing");
  // Without an address a server has no socket: nobody could reach this one.
  if (server.listen_address.empty()) {
    return absl::InvalidArgumentError("--listen is empty; it must be host:port");
  }
  if (threads < 0 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads is ", threads, "; it must be 0 to ", kMaxThreads));
  }
  if (stall_bound <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--stall-bound must be above zero");
  }
  return CheckTlsFiles(server.tls);
}

int TierProgramOptions::num_threads() const {
  if (threads > 0) return threads;
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

std::string TierProgramOptions::DefaultName() const {
  char host[256] = {};
  if (gethostname(host, sizeof(host) - 1) != 0) return server.listen_address;
  const size_t colon = server.listen_address.rfind(':');
  return absl::StrCat(host, colon == std::string::npos ? "" : server.listen_address.substr(colon));
}

absl::Status ServeTier(
    const TierProgramOptions& options, absl::Duration drain_time,
    const std::function<absl::StatusOr<std::unique_ptr<TierService>>(MetricRegistry&)>& load) {
  // Before any thread is started.
  TerminationWaiter termination;
  RaiseDescriptorLimit();
  absl::StatusOr<std::unique_ptr<HealthServer>> health = HealthServer::Start(options.health_listen);
  if (!health.ok()) return health.status();
  // Loading takes its time: what cannot be listened on is told before.
  if (absl::Status status =
          CheckListenAddresses({{options.server.listen_flag, options.server.listen_address},
                                {kMetricsListenFlag, options.metrics.listen_address}});
      !status.ok()) {
    return status;
  }
  MetricRegistry metrics;
  const std::shared_ptr<void> process_metrics = AddProcessMetrics(metrics);
  termination.SetLoading(true);
  const absl::StatusOr<std::unique_ptr<TierService>> service = load(metrics);
  if (!service.ok()) return service.status();
  const absl::StatusOr<std::unique_ptr<RpcServer>> server =
      RpcServer::Start(options.server, {(*service)->service()});
  if (!server.ok()) return server.status();
  const absl::StatusOr<std::unique_ptr<MetricsServer>> metrics_server =
      MetricsServer::StartIfAsked(options.metrics, options.server.tls, metrics);
  if (!metrics_server.ok()) return metrics_server.status();
  (*service)->WaitUntilKnown();
  // Not before: while the model is hashed, which may take as long as loading it, nothing is in
  // hand.
  termination.SetLoading(false);
  (*server)->SetServing(true);
  (*health)->WatchProgress({(*service)->progress()}, options.stall_bound);
  (*health)->SetReady();
  LogInfo(absl::StrCat("listening on ", (*server)->address(), ", ", options.num_threads(),
                       " threads, numeric id ", (*service)->numeric_id()));

  const int signal = termination.Wait();
  LogInfo(absl::StrCat("signal ", signal, ": draining; in hand: ", (*service)->InHand()));
  (*health)->SetDraining();
  (*server)->SetServing(false);
  (*service)->StartDraining();
  if (!(*service)->WaitUntilDrained(drain_time)) {
    LogWarning(absl::StrCat("leaving with work in hand: ", (*service)->InHand()));
  }
  (*service)->Stop();
  (*server)->Shutdown(kShutdownGrace);
  LogInfo("stopped");
  return absl::OkStatus();
}

}  // namespace blockserve
