#include "rpc/metrics_server.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "rpc/http/tls.h"

namespace blockserve {
namespace {

// A scraper or two, and a person who looks.
constexpr int32_t kMaxConnections = 32;

HttpResponse Plain(int status, std::string body) {
  HttpResponse response;
  response.status = status;
  response.content_type = "text/plain; charset=utf-8";
  response.body = std::move(body);
  return response;
}

HttpResponse Answer(const HttpRequest& request, MetricRegistry& registry) {
  if (request.path != "/metrics") return Plain(404, "there is only /metrics here\n");
  if (request.method != "GET" && request.method != "HEAD") {
    HttpResponse refusal = Plain(405, "/metrics takes GET\n");
    refusal.headers.emplace_back("Allow", "GET, HEAD");
    return refusal;
  }
  HttpResponse metrics = Plain(200, registry.RenderText());
  metrics.content_type = std::string(kMetricsContentType);
  return metrics;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const MetricsServerOptions& options, MetricRegistry& registry) {
  HttpServerOptions http;
  http.listen_address = options.listen_address;
  http.listen_flag = kMetricsListenFlag;
  http.thread_name = "metrics";
  http.plaintext_is_meant = options.plaintext_is_meant;
  http.max_connections = kMaxConnections;
  http.limits.read.max_body_bytes = 1024;
  if (options.tls.enabled()) {
    absl::StatusOr<std::shared_ptr<HttpTls>> tls = HttpTls::Load(options.tls);
    if (!tls.ok()) return tls.status();
    http.tls = [tls = *std::move(tls)] { return tls->Current(); };
  }
  absl::StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Start(
      http,
      [&registry](const std::shared_ptr<HttpExchange>& exchange) {
        exchange->Respond(Answer(exchange->request(), registry));
      },
      [](int status, const std::string& message) {
        return Plain(status, absl::StrCat(message, "\n"));
      });
  if (!server.ok()) return server.status();
  return std::unique_ptr<MetricsServer>(new MetricsServer(*std::move(server)));
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::StartIfAsked(
    const MetricsFlags& flags, const ServerTlsFiles& tls, MetricRegistry& registry) {
  if (flags.listen_address.empty()) return std::unique_ptr<MetricsServer>();
  MetricsServerOptions options;
  options.listen_address = flags.listen_address;
  options.plaintext_is_meant = flags.plaintext;
  if (!flags.plaintext) options.tls = tls;
  options.tls.client_ca.clear();
  absl::StatusOr<std::unique_ptr<MetricsServer>> server = Start(options, registry);
  if (!server.ok()) return server;
  LogInfo(absl::StrCat("metrics on ", (*server)->address(), options.tls.enabled() ? ", TLS" : ""));
  return server;
}

}  // namespace blockserve
