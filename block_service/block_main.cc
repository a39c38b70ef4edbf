// blockserve-block: one replica of the block tier.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "block_service/block_service.h"
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

ABSL_FLAG(std::string, model, "", "folder of the model: config.json and safetensors");
ABSL_FLAG(std::string, listen, "127.0.0.1:7071", "address to serve gateways on; port 0: any");
ABSL_FLAG(std::string, health_listen, "", "plaintext address that serves grpc.health alone");
ABSL_FLAG(std::string, tls_cert, "", "PEM file: certificate of this server; empty: plaintext");
ABSL_FLAG(std::string, tls_key, "", "PEM file: its key");
ABSL_FLAG(std::string, tls_client_ca, "", "PEM file: callers must show a certificate of this CA");
ABSL_FLAG(absl::Duration, stall_bound, absl::Seconds(60),
          "with work in hand and none done for so long, liveness fails");
ABSL_FLAG(std::string, metrics_listen, "", "IP:port that shows metrics over HTTP; empty: none");
ABSL_FLAG(std::string, name, "", "name for people; default: the address listened on");
ABSL_FLAG(std::string, device, "auto", blockserve::kDeviceFlagHelp);
ABSL_FLAG(std::string, arithmetic, "auto", blockserve::kArithmeticFlagHelp);
ABSL_FLAG(int32_t, threads, 0, "compute threads; 0: one per core");
ABSL_FLAG(int64_t, kv_memory_mib, 0, "memory for KV; 0: a quarter of the memory, at most 1 GiB");
ABSL_FLAG(int64_t, kv_pages, 0, "KV pages, instead of --kv-memory-mib");
ABSL_FLAG(int32_t, page_blocks, 16, "blocks in a KV page");
ABSL_FLAG(int32_t, max_sequences, 256, "sequences open at a time");
ABSL_FLAG(int32_t, prefill_chunk, 256, "prompt blocks computed in one step");
ABSL_FLAG(int32_t, groups, 2, "groups that take turns, so that neither tier waits");
ABSL_FLAG(bool, allow_long_contexts, false, "more blocks than max_position_embeddings");
ABSL_FLAG(bool, prefix_cache, true, "share KV of prompts that begin alike");
ABSL_FLAG(bool, allow_fault_injection, false,
          "for tests: let --inject make this replica misbehave");
ABSL_FLAG(double, inject_wrong_bits, 0, "for tests: share of rows with a wrong bit");
ABSL_FLAG(int32_t, inject_crash_token, -1, "for tests: a block with this id kills this replica");
ABSL_FLAG(int32_t, inject_hang_token, -1, "for tests: a block with this id hangs this replica");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning, error or off");
ABSL_FLAG(std::string, log_format, "text", "text, or json: an object a line");

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-block";
// After SIGTERM: sequences may be opened elsewhere for so long.
constexpr absl::Duration kDrainTime = absl::Seconds(30);

int Main(int argc, char** argv) {
  const ProgramUsage usage = {
      "blockserve-block --model DIR [--listen HOST:PORT]\n"
      "Serves the block tier: embedder, block decoder and the KV of every sequence.",
      {"model",
       "listen",
       "health_listen",
       "stall_bound",
       "metrics_listen",
       "name",
       "device",
       "arithmetic",
       "threads",
       "kv_memory_mib",
       "kv_pages",
       "page_blocks",
       "max_sequences",
       "prefill_chunk",
       "groups",
       "allow_long_contexts",
       "prefix_cache",
       "tls_cert",
       "tls_key",
       "tls_client_ca",
       "allow_fault_injection",
       "inject_wrong_bits",
       "inject_crash_token",
       "inject_hang_token",
       "log_level",
       "log_format"}};
  const std::vector<std::string> rest = ParseProgramFlags(argc, argv, usage);
  const auto bad_usage = [](const std::string& message) {
    return ReportUsageError(kProgram, absl::InvalidArgumentError(message));
  };
  if (!rest.empty()) return bad_usage(absl::StrCat("unexpected argument \"", rest[0], "\""));
  if (absl::GetFlag(FLAGS_model).empty()) return bad_usage("--model is missing");
  const int threads = absl::GetFlag(FLAGS_threads);
  if (threads < 0 || threads > 4096) {
    return bad_usage(absl::StrCat("--threads is ", threads, "; it must be 0 to 4096"));
  }
  if (absl::GetFlag(FLAGS_stall_bound) <= absl::ZeroDuration()) {
    return bad_usage("--stall-bound must be above zero");
  }
  LoggingOptions logging;
  logging.program = std::string(kProgram);
  logging.level = absl::GetFlag(FLAGS_log_level);
  logging.format = absl::GetFlag(FLAGS_log_format);
  if (absl::Status status = ConfigureLogging(logging); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }
  BlockServiceConfig config;
  config.name = absl::GetFlag(FLAGS_name);
  config.device = absl::GetFlag(FLAGS_device);
  config.arithmetic = absl::GetFlag(FLAGS_arithmetic);
  config.kv_memory_mib = absl::GetFlag(FLAGS_kv_memory_mib);
  config.kv_pages = absl::GetFlag(FLAGS_kv_pages);
  config.page_blocks = absl::GetFlag(FLAGS_page_blocks);
  config.max_sequences = absl::GetFlag(FLAGS_max_sequences);
  config.prefill_chunk = absl::GetFlag(FLAGS_prefill_chunk);
  config.groups = absl::GetFlag(FLAGS_groups);
  config.allow_long_contexts = absl::GetFlag(FLAGS_allow_long_contexts);
  config.prefix_cache = absl::GetFlag(FLAGS_prefix_cache);
  config.faults.allowed = absl::GetFlag(FLAGS_allow_fault_injection);
  config.faults.wrong_bits = absl::GetFlag(FLAGS_inject_wrong_bits);
  config.faults.crash_token = absl::GetFlag(FLAGS_inject_crash_token);
  config.faults.hang_token = absl::GetFlag(FLAGS_inject_hang_token);
  if (config.name.empty()) config.name = absl::GetFlag(FLAGS_listen);
  if (absl::Status status = config.Validate(); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }
  ServerOptions options;
  options.tls.certificate = absl::GetFlag(FLAGS_tls_cert);
  options.tls.key = absl::GetFlag(FLAGS_tls_key);
  options.tls.client_ca = absl::GetFlag(FLAGS_tls_client_ca);
  if (absl::Status status = CheckTlsFiles(options.tls); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }

  // Before any thread is started.
  TerminationWaiter termination;
  absl::StatusOr<std::unique_ptr<HealthServer>> health =
      HealthServer::Start(absl::GetFlag(FLAGS_health_listen));
  if (!health.ok()) return ReportFailure(kProgram, health.status());
  MetricRegistry metrics;
  const std::shared_ptr<void> process_metrics = AddProcessMetrics(metrics);
  config.metrics = &metrics;
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(absl::GetFlag(FLAGS_model));
  if (!checkpoint.ok()) return ReportFailure(kProgram, checkpoint.status());
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  ThreadPool pool(threads > 0 ? threads : cores);
  absl::StatusOr<std::unique_ptr<BlockService>> service =
      BlockService::Create(config, **checkpoint, &pool);
  if (!service.ok()) return ReportFailure(kProgram, service.status());

  options.listen_address = absl::GetFlag(FLAGS_listen);
  absl::StatusOr<std::unique_ptr<RpcServer>> server =
      RpcServer::Start(options, {(*service)->service()});
  if (!server.ok()) return ReportFailure(kProgram, server.status());
  absl::StatusOr<std::unique_ptr<MetricsServer>> metrics_server =
      MetricsServer::StartIfAsked(absl::GetFlag(FLAGS_metrics_listen), metrics);
  if (!metrics_server.ok()) return ReportFailure(kProgram, metrics_server.status());
  (*service)->WaitUntilKnown();
  (*server)->SetServing(true);
  (*health)->WatchProgress({(*service)->progress()}, absl::GetFlag(FLAGS_stall_bound));
  (*health)->SetReady();
  LogInfo(absl::StrCat("listening on ", (*server)->address(), ", ", pool.num_threads(),
                       " threads, arithmetic ", (*service)->numeric_id()));

  const int signal = termination.Wait();
  LogInfo(absl::StrCat("signal ", signal, ": draining"));
  (*health)->SetDraining();
  (*server)->SetServing(false);
  const BlockLoadReport load = (*service)->stats().load;
  LogInfo(absl::StrCat("in hand at the end: ", load.pages.sequences, " sequences, ",
                       (*service)->kv_pages() - load.pages.free_pages - load.pages.cached_pages,
                       " KV pages"));
  (*service)->StartDraining();
  const bool empty = (*service)->WaitUntilEmpty(kDrainTime);
  LogInfo(empty ? "no sequence is left" : "leaving with open sequences");
  (*service)->Stop();
  (*server)->Shutdown(absl::Seconds(2));
  return kExitOk;
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
