#include "common/metrics_server.h"

#include <prometheus/exposer.h>

#include <exception>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_catalogue.h"

namespace blockserve {
namespace {

bool IsAddressPart(absl::string_view host) {
  const absl::string_view allowed =
      absl::StartsWith(host, "[") ? "[]:.0123456789abcdefABCDEF" : ".0123456789";
  return !host.empty() && host.find_first_not_of(allowed) == absl::string_view::npos;
}

}  // namespace

struct MetricsServer::Impl {
  explicit Impl(const std::string& address)
      : exposer({"listening_ports", address, "num_threads", "2", "request_timeout_ms", "5000"}) {}
  prometheus::Exposer exposer;
};

MetricsServer::MetricsServer(std::unique_ptr<Impl> impl, std::string address)
    : impl_(std::move(impl)), address_(std::move(address)) {}

MetricsServer::~MetricsServer() = default;

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(absl::string_view address,
                                                                    MetricRegistry& registry) {
  const size_t colon = address.rfind(':');
  std::string host(address.substr(0, colon));
  if (host == "localhost") host = "127.0.0.1";
  int32_t port = -1;
  if (colon == absl::string_view::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 0 || port > 65535 || !IsAddressPart(host)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is no address of the form 127.0.0.1:9100 or [::1]:9100"));
  }
  try {
    auto impl = std::make_unique<Impl>(absl::StrCat(host, ":", port));
    impl->exposer.RegisterCollectable(registry.collectable());
    const std::vector<int> ports = impl->exposer.GetListeningPorts();
    std::string bound = absl::StrCat(host, ":", ports.empty() ? port : ports.front());
    return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(impl), std::move(bound)));
  } catch (const std::exception& error) {  // of the exposer's web server
    return absl::FailedPreconditionError(
        absl::StrCat("cannot listen on ", address, " for metrics: ", error.what()));
  }
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::StartIfAsked(
    absl::string_view address, MetricRegistry& registry) {
  if (address.empty()) return std::unique_ptr<MetricsServer>();
  absl::StatusOr<std::unique_ptr<MetricsServer>> server = Start(address, registry);
  if (!server.ok()) return Annotate(server.status(), "--metrics-listen");
  LogInfo(absl::StrCat("metrics on ", (*server)->address()));
  return server;
}

}  // namespace blockserve
