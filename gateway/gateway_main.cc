// blockserve-gateway: the tier that owns requests and drives the two others.
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/logging.h"
#include "common/metrics_server.h"
#include "common/process_metrics.h"
#include "common/program.h"
#include "gateway/gateway.h"
#include "gateway/http/front.h"
#include "rpc/health_server.h"
#include "rpc/server.h"
#include "rpc/signals.h"

ABSL_FLAG(std::string, model, "", "folder of the model: config.json and tokenizer.json are read");
ABSL_FLAG(std::string, block_services, "", "block replicas: host:port or DNS names, by commas");
ABSL_FLAG(std::string, token_services, "", "token workers: host:port or DNS names, by commas");
ABSL_FLAG(std::string, listen, "127.0.0.1:7070", "address to serve clients on; port 0: any");
ABSL_FLAG(std::string, health_listen, "", "plaintext address that serves grpc.health alone");
ABSL_FLAG(std::string, tls_cert, "", "PEM file: certificate of this server; empty: plaintext");
ABSL_FLAG(std::string, tls_key, "", "PEM file: its key");
ABSL_FLAG(std::string, tls_client_ca, "", "PEM file: callers must show a certificate of this CA");
ABSL_FLAG(std::string, tier_tls_ca, "", "PEM file: CA of both tiers; empty: plaintext to them");
ABSL_FLAG(std::string, tier_tls_cert, "", "PEM file: certificate that is shown to the tiers");
ABSL_FLAG(std::string, tier_tls_key, "", "PEM file: its key");
ABSL_FLAG(std::string, tier_tls_name, "", "name in the tiers' certificates; default: their host");
ABSL_FLAG(std::string, api_keys, "", "file of API keys that callers need; empty: none is needed");
ABSL_FLAG(absl::Duration, stall_bound, absl::Seconds(60),
          "with work in hand and none done for so long, liveness fails");
ABSL_FLAG(std::string, metrics_listen, "", "IP:port that shows metrics over HTTP; empty: none");
ABSL_FLAG(std::string, model_name, "", "what requests may call the model; default: the folder's");
ABSL_FLAG(absl::Duration, tier_wait, absl::Seconds(10), "how long requests wait for a lost tier");
ABSL_FLAG(absl::Duration, drain_time, absl::Seconds(30), "after SIGTERM, for requests that run");
ABSL_FLAG(absl::Duration, resolve_interval, absl::Seconds(2), "between two look-ups of DNS names");
ABSL_FLAG(double, audit_fraction, 0, "share of blocks that a second worker decodes and compares");
ABSL_FLAG(double, audit_context_fraction, 0,
          "share of context rows that a second replica computes");
ABSL_FLAG(bool, audit_hold, false, "send no audited block before it has been compared");
ABSL_FLAG(absl::Duration, progress_bound, absl::Seconds(10),
          "without an answer for so long, a row or block is sent elsewhere");
ABSL_FLAG(int32_t, max_live_choices, 16384, "choices that are generated at a time; more wait");
ABSL_FLAG(int32_t, max_queued_requests, 1024, "requests that wait; more are refused");
ABSL_FLAG(int32_t, max_starting_requests, 64, "requests between the queue and their first block");
ABSL_FLAG(std::string, limits_file, "", "JSON: what each API key may have; empty: no limits");
ABSL_FLAG(bool, allow_long_contexts, false, "more blocks than max_position_embeddings");
ABSL_FLAG(std::string, http_listen, "", "address to serve HTTP clients on; empty: none");
ABSL_FLAG(int32_t, http_threads, 1, "threads of the HTTP connections");
ABSL_FLAG(int32_t, http_max_connections, 4096, "HTTP connections; more are answered 503");
ABSL_FLAG(int32_t, http_max_header_bytes, 16 << 10, "of an HTTP request; more: 431");
ABSL_FLAG(int32_t, http_max_body_bytes, 4 << 20, "of an HTTP request; more: 413");
ABSL_FLAG(absl::Duration, http_header_timeout, absl::Seconds(10), "for a request's headers");
ABSL_FLAG(absl::Duration, http_body_timeout, absl::Seconds(60), "for a request's body");
ABSL_FLAG(absl::Duration, http_idle_timeout, absl::Seconds(120), "between two requests");
ABSL_FLAG(absl::Duration, http_write_timeout, absl::Seconds(30),
          "a client that has not read what waits for it is cut off");
ABSL_FLAG(std::string, http_cors_origin, "", "origin whose pages browsers let in; *: all");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning, error or off");
ABSL_FLAG(std::string, log_format, "text", "text, or json: an object a line");
ABSL_FLAG(bool, log_requests, true, "a line for each request that is over");
ABSL_FLAG(bool, log_prompts, false, "with its prompt: what users wrote goes into the log");
ABSL_FLAG(double, trace_sample_ratio, 0, "share of requests whose spans are logged; 0: none");

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-gateway";

HttpFrontOptions HttpOptionsFromFlags() {
  HttpFrontOptions options;
  options.server.listen_address = absl::GetFlag(FLAGS_http_listen);
  options.server.threads = absl::GetFlag(FLAGS_http_threads);
  options.server.max_connections = absl::GetFlag(FLAGS_http_max_connections);
  HttpConnectionLimits& limits = options.server.limits;
  limits.read.max_header_bytes = absl::GetFlag(FLAGS_http_max_header_bytes);
  limits.read.max_body_bytes = absl::GetFlag(FLAGS_http_max_body_bytes);
  limits.header_timeout = absl::GetFlag(FLAGS_http_header_timeout);
  limits.body_timeout = absl::GetFlag(FLAGS_http_body_timeout);
  limits.idle_timeout = absl::GetFlag(FLAGS_http_idle_timeout);
  limits.write_timeout = absl::GetFlag(FLAGS_http_write_timeout);
  options.api.cors_origin = absl::GetFlag(FLAGS_http_cors_origin);
  return options;
}

int Main(int argc, char** argv) {
  const ProgramUsage usage = {
      "blockserve-gateway --model DIR --block-services LIST --token-services LIST\n"
      "Takes requests and drives the block and token tiers.",
      {"model",
       "block_services",
       "token_services",
       "listen",
       "health_listen",
       "stall_bound",
       "metrics_listen",
       "model_name",
       "tier_wait",
       "resolve_interval",
       "progress_bound",
       "audit_fraction",
       "audit_context_fraction",
       "audit_hold",
       "drain_time",
       "max_live_choices",
       "max_queued_requests",
       "max_starting_requests",
       "limits_file",
       "allow_long_contexts",
       "tls_cert",
       "tls_key",
       "tls_client_ca",
       "tier_tls_ca",
       "tier_tls_cert",
       "tier_tls_key",
       "tier_tls_name",
       "api_keys",
       "http_listen",
       "http_threads",
       "http_max_connections",
       "http_max_header_bytes",
       "http_max_body_bytes",
       "http_header_timeout",
       "http_body_timeout",
       "http_idle_timeout",
       "http_write_timeout",
       "http_cors_origin",
       "log_level",
       "log_format",
       "log_requests",
       "log_prompts",
       "trace_sample_ratio"}};
  const std::vector<std::string> rest = ParseProgramFlags(argc, argv, usage);
  const auto bad_usage = [](const std::string& message) {
    return ReportUsageError(kProgram, absl::InvalidArgumentError(message));
  };
  if (!rest.empty()) return bad_usage(absl::StrCat("unexpected argument \"", rest[0], "\""));
  GatewayConfig config;
  config.model_directory = absl::GetFlag(FLAGS_model);
  config.model_name = absl::GetFlag(FLAGS_model_name);
  config.block_services = absl::GetFlag(FLAGS_block_services);
  config.token_services = absl::GetFlag(FLAGS_token_services);
  config.tier_wait = absl::GetFlag(FLAGS_tier_wait);
  config.resolve_interval = absl::GetFlag(FLAGS_resolve_interval);
  config.progress_bound = absl::GetFlag(FLAGS_progress_bound);
  config.audit_fraction = absl::GetFlag(FLAGS_audit_fraction);
  config.audit_context_fraction = absl::GetFlag(FLAGS_audit_context_fraction);
  config.audit_hold = absl::GetFlag(FLAGS_audit_hold);
  config.max_live_choices = absl::GetFlag(FLAGS_max_live_choices);
  config.max_queued_requests = absl::GetFlag(FLAGS_max_queued_requests);
  config.max_starting_requests = absl::GetFlag(FLAGS_max_starting_requests);
  config.limits_file = absl::GetFlag(FLAGS_limits_file);
  config.log_requests = absl::GetFlag(FLAGS_log_requests);
  config.log_prompts = absl::GetFlag(FLAGS_log_prompts);
  config.trace_sample_ratio = absl::GetFlag(FLAGS_trace_sample_ratio);
  config.allow_beyond_positions = absl::GetFlag(FLAGS_allow_long_contexts);
  config.tier_tls.flags = "--tier-tls";
  config.tier_tls.ca = absl::GetFlag(FLAGS_tier_tls_ca);
  config.tier_tls.certificate = absl::GetFlag(FLAGS_tier_tls_cert);
  config.tier_tls.key = absl::GetFlag(FLAGS_tier_tls_key);
  config.tier_tls.server_name = absl::GetFlag(FLAGS_tier_tls_name);
  config.api_keys = absl::GetFlag(FLAGS_api_keys);
  ServerOptions options;
  options.listen_address = absl::GetFlag(FLAGS_listen);
  options.tls.certificate = absl::GetFlag(FLAGS_tls_cert);
  options.tls.key = absl::GetFlag(FLAGS_tls_key);
  options.tls.client_ca = absl::GetFlag(FLAGS_tls_client_ca);
  options.channelz = config.api_keys.empty();
  if (config.model_directory.empty()) return bad_usage("--model is missing");
  if (config.block_services.empty()) return bad_usage("--block-services is missing");
  if (config.token_services.empty()) return bad_usage("--token-services is missing");
  if (absl::GetFlag(FLAGS_stall_bound) <= absl::ZeroDuration()) {
    return bad_usage("--stall-bound must be above zero");
  }
  absl::Status valid = config.Validate();
  if (valid.ok()) valid = CheckTlsFiles(config.tier_tls);
  if (valid.ok()) valid = CheckTlsFiles(options.tls);
  HttpFrontOptions http_options = HttpOptionsFromFlags();
  http_options.tls = options.tls;
  if (valid.ok()) valid = http_options.Validate();
  if (!valid.ok()) return ReportUsageError(kProgram, valid);
  LoggingOptions logging;
  logging.program = std::string(kProgram);
  logging.level = absl::GetFlag(FLAGS_log_level);
  logging.format = absl::GetFlag(FLAGS_log_format);
  if (absl::Status status = ConfigureLogging(logging); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }

  // Before any thread is started.
  TerminationWaiter termination;
  MetricRegistry metrics;
  const std::shared_ptr<void> process_metrics = AddProcessMetrics(metrics);
  config.metrics = &metrics;
  absl::StatusOr<std::unique_ptr<HealthServer>> health =
      HealthServer::Start(absl::GetFlag(FLAGS_health_listen));
  if (!health.ok()) return ReportFailure(kProgram, health.status());
  absl::StatusOr<std::unique_ptr<Gateway>> gateway = Gateway::Create(config);
  if (!gateway.ok()) return ReportFailure(kProgram, gateway.status());
  absl::StatusOr<std::unique_ptr<RpcServer>> server =
      RpcServer::Start(options, {(*gateway)->service()});
  if (!server.ok()) return ReportFailure(kProgram, server.status());
  absl::StatusOr<std::unique_ptr<MetricsServer>> metrics_server =
      MetricsServer::StartIfAsked(absl::GetFlag(FLAGS_metrics_listen), metrics);
  if (!metrics_server.ok()) return ReportFailure(kProgram, metrics_server.status());
  std::unique_ptr<HttpFront> http;
  if (!http_options.server.listen_address.empty()) {
    http_options.api.metrics = [&metrics] { return metrics.RenderText(); };
    absl::StatusOr<std::unique_ptr<HttpFront>> started = HttpFront::Start(http_options, **gateway);
    if (!started.ok()) return ReportFailure(kProgram, started.status());
    http = *std::move(started);
    http->SetServing(true);
    LogInfo(absl::StrCat("HTTP on ", http->address()));
  }
  // Ready is what can answer: without workers that is UNAVAILABLE after the tier wait.
  (*server)->SetServing(true);
  (*health)->WatchProgress({(*gateway)->progress()}, absl::GetFlag(FLAGS_stall_bound));
  (*health)->SetReady();
  LogInfo(absl::StrCat("listening on ", (*server)->address()));

  const int signal = termination.Wait();
  LogInfo(absl::StrCat("signal ", signal, ": draining"));
  (*health)->SetDraining();
  (*server)->SetServing(false);
  (*gateway)->StartDraining();
  const absl::Time drained = (*gateway)->core().Now() + absl::GetFlag(FLAGS_drain_time);
  if (http != nullptr) http->StartDraining();
  (*server)->Shutdown(absl::GetFlag(FLAGS_drain_time));
  if (http != nullptr) http->Shutdown(drained - (*gateway)->core().Now());
  (*gateway)->Stop();
  return kExitOk;
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
