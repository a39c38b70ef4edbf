// The port on which a program shows its metrics to a scraper, beside the one that it serves on.
#ifndef BLOCKSERVE_RPC_METRICS_SERVER_H_
#define BLOCKSERVE_RPC_METRICS_SERVER_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "common/metrics.h"
#include "rpc/http/server.h"
#include "rpc/metrics_flags.h"
#include "rpc/tls.h"

namespace blockserve {

struct MetricsServerOptions {
  std::string listen_address;  // --metrics-listen, "host:port" or "[v6]:port"; port 0: any
  ServerTlsFiles tls;          // not enabled: plaintext
  bool plaintext_is_meant = false;
};

// GET /metrics in Prometheus' text format, on a thread of its own.
class MetricsServer {
 public:
  // `registry` must outlive the server. INVALID_ARGUMENT: the address is none, or the TLS files
  // cannot be used; FAILED_PRECONDITION: it cannot be listened on. Both name the flag.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const MetricsServerOptions& options,
                                                              MetricRegistry& registry);
  // For mains: null where the flags name no address; tells the log where it listens. `tls`: of the
  // program's own port. Callers need no certificate here, whatever they need there: scrapers
  // seldom have one of that authority.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> StartIfAsked(const MetricsFlags& flags,
                                                                     const ServerTlsFiles& tls,
                                                                     MetricRegistry& registry);

  // With the port that was found where 0 was asked for.
  const std::string& address() const { return server_->address(); }

 private:
  explicit MetricsServer(std::unique_ptr<HttpServer> server) : server_(std::move(server)) {}
  const std::unique_ptr<HttpServer> server_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_METRICS_SERVER_H_
