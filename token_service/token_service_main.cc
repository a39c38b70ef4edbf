// blockserve-token: a token worker.
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/flag_table.h"
#include "common/logging.h"
#include "common/process_metrics.h"
#include "common/program.h"
#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/device.h"
#include "rpc/health_server.h"
#include "rpc/listen_address.h"
#include "rpc/metrics_server.h"
#include "rpc/server.h"
#include "rpc/server_logging.h"
#include "rpc/signals.h"
#include "rpc/tier_program.h"
#include "token_service/token_service.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-token";
constexpr absl::string_view kUsage =
    "blockserve-token --model DIR [--listen HOST:PORT]\n"
    "A token worker: decodes blocks from context embeddings for any gateway that asks.";
// A block takes milliseconds.
constexpr absl::Duration kDrainTimeout = absl::Seconds(30);
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

struct Options {
  TierProgramOptions program{kProgram, "127.0.0.1:7072"};
  TokenServiceConfig service;

  void AddFlags(FlagTable& flags);
  absl::Status Validate() const;
};

void Options::AddFlags(FlagTable& flags) {
  service.name.clear();
  service.max_rows = 0;
  service.max_queued_rows = 0;
  program.AddFlags(flags);
  flags.Add("name", "name for people; default: host name and port", &service.name);
  flags.Add("device", kDeviceFlagHelp, &service.device);
  flags.Add("arithmetic", kArithmeticFlagHelp, &service.arithmetic);
  flags.Add("max_rows", "rows of a batch; 0: 64, on a CUDA device 1024", &service.max_rows);
  flags.Add("max_queued_rows", "rows that wait; more are refused; 0: four batches, at least 1024",
            &service.max_queued_rows);
  program.AddServingFlags(flags);
  FaultInjection& faults = service.faults;
  flags.Subject("Tests");
  flags.Add("allow_fault_injection", "let --inject make this worker misbehave", &faults.allowed);
  flags.Add("inject_wrong_bits", "share of rows that are answered wrongly", &faults.wrong_bits);
  flags.Add("inject_crash_seed", "a row with this seed kills this worker", &faults.crash_seed);
  flags.Add("inject_hang_seed", "a row with this seed hangs this worker", &faults.hang_seed);
}

absl::Status Options::Validate() const {
  if (absl::Status status = program.Validate(); !status.ok()) return status;
  return service.Validate();
}

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

absl::Status Serve(Options options) {
  // Before any thread is started.
  TerminationWaiter termination;
  absl::StatusOr<std::unique_ptr<HealthServer>> health =
      HealthServer::Start(options.program.health_listen);
  if (!health.ok()) return health.status();
  // Loading takes its time: what cannot be listened on is told before.
  const ServerOptions& front = options.program.server;
  if (absl::Status status = CheckListenAddress(front.listen_flag, front.listen_address);
      !status.ok()) {
    return status;
  }
  MetricRegistry metrics;
  const std::shared_ptr<void> process_metrics = AddProcessMetrics(metrics);
  options.service.metrics = &metrics;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(options.program.model);
  if (!checkpoint.ok()) return checkpoint.status();
  ThreadPool pool(options.program.num_threads());
  absl::StatusOr<std::unique_ptr<TokenService>> service =
      TokenService::Create(options.service, **checkpoint, &pool);
  if (!service.ok()) return service.status();
  absl::StatusOr<std::unique_ptr<RpcServer>> server =
      RpcServer::Start(front, {(*service)->service()});
  if (!server.ok()) return server.status();
  absl::StatusOr<std::unique_ptr<MetricsServer>> metrics_server =
      MetricsServer::StartIfAsked(options.program.metrics, options.program.server.tls, metrics);
  if (!metrics_server.ok()) return metrics_server.status();
  (*service)->WaitUntilKnown();
  (*server)->SetServing(true);
  (*health)->WatchProgress({(*service)->progress()}, options.program.stall_bound);
  (*health)->SetReady();
  LogInfo(absl::StrCat("serving ", options.program.model, " on ", (*server)->address(),
                       ", numeric id ", (*service)->numeric_id(), ", ", pool.num_threads(),
                       " threads"));

  termination.Wait();
  (*health)->SetDraining();
  (*server)->SetServing(false);
  const TokenService::Stats stats = (*service)->stats();
  LogInfo(absl::StrCat("in hand at the end: ", stats.waiting + stats.running, " rows"));
  (*service)->StartDraining();
  if (!(*service)->WaitUntilDrained(kDrainTimeout)) LogWarning("rows were still in hand");
  (*service)->Stop();
  (*server)->Shutdown(kShutdownGrace);
  LogInfo("stopped");
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  FlagTable flags;
  options.AddFlags(flags);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (options.service.name.empty()) {
    const std::string& listen = options.program.server.listen_address;
    const size_t colon = listen.rfind(':');
    options.service.name =
        absl::StrCat(HostName(), colon == std::string::npos ? "" : listen.substr(colon));
  }
  absl::Status status = options.Validate();
  if (status.ok()) status = ConfigureServerLogging(options.program.logging);
  if (!status.ok()) return ReportUsageError(kProgram, status);
  return ReportFailure(kProgram, Serve(std::move(options)));
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
