// blockserve-token: a token worker.
#include <unistd.h>

#include <string>
#include <thread>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/logging.h"
#include "common/metrics_server.h"
#include "common/process_metrics.h"
#include "common/program.h"
#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/device.h"
#include "rpc/health_server.h"
#include "rpc/server.h"
#include "rpc/signals.h"
#include "token_service/token_service.h"

ABSL_FLAG(std::string, model, "", "folder of the model: config.json, model.safetensors");
ABSL_FLAG(std::string, listen, "127.0.0.1:7072", "host:port to serve gateways on; port 0: any");
ABSL_FLAG(std::string, health_listen, "", "host:port that serves grpc.health alone; empty: none");
ABSL_FLAG(std::string, tls_cert, "", "PEM file: certificate of this server; empty: plaintext");
ABSL_FLAG(std::string, tls_key, "", "PEM file: its key");
ABSL_FLAG(std::string, tls_client_ca, "", "PEM file: callers must show a certificate of this CA");
ABSL_FLAG(absl::Duration, stall_bound, absl::Seconds(60),
          "with work in hand and none done for so long, liveness fails");
ABSL_FLAG(std::string, metrics_listen, "", "IP:port that shows metrics over HTTP; empty: none");
ABSL_FLAG(std::string, device, "auto", blockserve::kDeviceFlagHelp);
ABSL_FLAG(std::string, arithmetic, "auto", blockserve::kArithmeticFlagHelp);
ABSL_FLAG(int, threads, 0, "compute threads; 0: one for each core");
ABSL_FLAG(int, max_rows, 0, "rows of a batch; 0: 64, on a CUDA device 1024");
ABSL_FLAG(int, max_queued_rows, 1024, "rows that wait; more are refused");
ABSL_FLAG(std::string, name, "", "what people call this worker; empty: host name and port");
ABSL_FLAG(bool, allow_fault_injection, false, "for tests: let --inject make this worker misbehave");
ABSL_FLAG(double, inject_wrong_bits, 0, "for tests: share of rows that are answered wrongly");
ABSL_FLAG(uint64_t, inject_crash_seed, 0, "for tests: a row with this seed kills this worker");
ABSL_FLAG(uint64_t, inject_hang_seed, 0, "for tests: a row with this seed hangs this worker");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning, error or off");
ABSL_FLAG(std::string, log_format, "text", "text, or json: an object a line");

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-token";
// A block takes milliseconds.
constexpr absl::Duration kDrainTimeout = absl::Seconds(30);
constexpr absl::Duration kShutdownGrace = absl::Seconds(2);

struct TokenProgramConfig {
  std::string model;
  int threads = 0;
  std::string log_level;
  std::string log_format;
  std::string health_listen;
  absl::Duration stall_bound;
  std::string metrics_listen;
  ServerOptions server;
  TokenServiceConfig service;

  absl::Status Validate() const {
    if (model.empty()) return absl::InvalidArgumentError("--model is needed");
    if (server.listen_address.empty()) return absl::InvalidArgumentError("--listen is empty");
    if (threads < 0 || threads > 1024) {
      return absl::InvalidArgumentError(
          absl::StrCat("--threads is ", threads, "; it must be 0 to 1024"));
    }
    if (stall_bound <= absl::ZeroDuration()) {
      return absl::InvalidArgumentError("--stall-bound must be above zero");
    }
    if (absl::Status status = CheckTlsFiles(server.tls); !status.ok()) return status;
    return service.Validate();
  }
};

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

TokenProgramConfig ConfigFromFlags() {
  TokenProgramConfig config;
  config.model = absl::GetFlag(FLAGS_model);
  config.threads = absl::GetFlag(FLAGS_threads);
  config.log_level = absl::GetFlag(FLAGS_log_level);
  config.log_format = absl::GetFlag(FLAGS_log_format);
  config.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  config.server.listen_address = absl::GetFlag(FLAGS_listen);
  config.health_listen = absl::GetFlag(FLAGS_health_listen);
  config.stall_bound = absl::GetFlag(FLAGS_stall_bound);
  config.server.tls.certificate = absl::GetFlag(FLAGS_tls_cert);
  config.server.tls.key = absl::GetFlag(FLAGS_tls_key);
  config.server.tls.client_ca = absl::GetFlag(FLAGS_tls_client_ca);
  config.service.device = absl::GetFlag(FLAGS_device);
  config.service.arithmetic = absl::GetFlag(FLAGS_arithmetic);
  config.service.max_rows = absl::GetFlag(FLAGS_max_rows);
  config.service.max_queued_rows = absl::GetFlag(FLAGS_max_queued_rows);
  config.service.name = absl::GetFlag(FLAGS_name);
  config.service.faults.allowed = absl::GetFlag(FLAGS_allow_fault_injection);
  config.service.faults.wrong_bits = absl::GetFlag(FLAGS_inject_wrong_bits);
  config.service.faults.crash_seed = absl::GetFlag(FLAGS_inject_crash_seed);
  config.service.faults.hang_seed = absl::GetFlag(FLAGS_inject_hang_seed);
  if (config.service.name.empty()) {
    const std::string& listen = config.server.listen_address;
    const size_t colon = listen.rfind(':');
    config.service.name =
        absl::StrCat(HostName(), colon == std::string::npos ? "" : listen.substr(colon));
  }
  return config;
}

absl::Status Serve(TokenProgramConfig config, TerminationWaiter& termination) {
  absl::StatusOr<std::unique_ptr<HealthServer>> health = HealthServer::Start(config.health_listen);
  if (!health.ok()) return health.status();
  MetricRegistry metrics;
  const std::shared_ptr<void> process_metrics = AddProcessMetrics(metrics);
  config.service.metrics = &metrics;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(config.model);
  if (!checkpoint.ok()) return checkpoint.status();
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  ThreadPool pool(config.threads > 0 ? config.threads : std::max(1, cores));
  absl::StatusOr<std::unique_ptr<TokenService>> service =
      TokenService::Create(config.service, **checkpoint, &pool);
  if (!service.ok()) return service.status();
  absl::StatusOr<std::unique_ptr<RpcServer>> server =
      RpcServer::Start(config.server, {(*service)->service()});
  if (!server.ok()) return server.status();
  absl::StatusOr<std::unique_ptr<MetricsServer>> metrics_server =
      MetricsServer::StartIfAsked(config.metrics_listen, metrics);
  if (!metrics_server.ok()) return metrics_server.status();
  (*service)->WaitUntilKnown();
  (*server)->SetServing(true);
  (*health)->WatchProgress({(*service)->progress()}, config.stall_bound);
  (*health)->SetReady();
  LogInfo(absl::StrCat("serving ", config.model, " on ", (*server)->address(), ", numeric id ",
                       (*service)->numeric_id(), ", ", pool.num_threads(), " threads"));

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
  const ProgramUsage usage = {
      .text =
          "blockserve-token --model DIR [flags]\n"
          "A token worker: decodes blocks from context embeddings for any gateway that asks.",
      .flags = {"model",
                "listen",
                "health_listen",
                "stall_bound",
                "metrics_listen",
                "device",
                "arithmetic",
                "threads",
                "max_rows",
                "max_queued_rows",
                "name",
                "tls_cert",
                "tls_key",
                "tls_client_ca",
                "allow_fault_injection",
                "inject_wrong_bits",
                "inject_crash_seed",
                "inject_hang_seed",
                "log_level",
                "log_format"}};
  const std::vector<std::string> rest = ParseProgramFlags(argc, argv, usage);
  if (!rest.empty()) {
    return ReportUsageError(
        kProgram, absl::InvalidArgumentError(absl::StrCat("unexpected argument ", rest.front())));
  }
  const TokenProgramConfig config = ConfigFromFlags();
  absl::Status status = config.Validate();
  if (status.ok()) {
    status = ConfigureLogging(
        {.program = std::string(kProgram), .level = config.log_level, .format = config.log_format});
  }
  if (!status.ok()) return ReportUsageError(kProgram, status);
  TerminationWaiter termination;  // before any thread
  return ReportFailure(kProgram, Serve(config, termination));
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
