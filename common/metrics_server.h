// The plaintext port on which a program without an HTTP front of its own shows its metrics.
#ifndef BLOCKSERVE_COMMON_METRICS_SERVER_H_
#define BLOCKSERVE_COMMON_METRICS_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/metrics.h"

namespace blockserve {

// GET /metrics, on two threads of its own.
class MetricsServer {
 public:
  // `address`: an IP address (or localhost) and a port, as "127.0.0.1:9100" or "[::1]:9100"; port
  // 0: any. `registry` must outlive the server. INVALID_ARGUMENT: the address is none;
  // FAILED_PRECONDITION: it cannot be listened on.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(absl::string_view address,
                                                              MetricRegistry& registry);
  // For mains: null where `address` (--metrics-listen) is empty; tells the log where it listens.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> StartIfAsked(absl::string_view address,
                                                                     MetricRegistry& registry);
  ~MetricsServer();

  // With the port that was found where 0 was asked for.
  const std::string& address() const { return address_; }

 private:
  struct Impl;
  MetricsServer(std::unique_ptr<Impl> impl, std::string address);
  const std::unique_ptr<Impl> impl_;
  const std::string address_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_METRICS_SERVER_H_
