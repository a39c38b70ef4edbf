// The plaintext port of an orchestrator's probes, who can show no certificate: grpc.health.v1
// alone.
#ifndef BLOCKSERVE_RPC_HEALTH_SERVER_H_
#define BLOCKSERVE_RPC_HEALTH_SERVER_H_

#include <grpcpp/server.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/progress.h"
#include "rpc/connection_acceptor.h"

namespace blockserve {

// The services that grpc.health.v1 is asked for on that port. Each answers SERVING or NOT_SERVING.
//   startup    SERVING once the model is loaded and calls are taken, and ever after. However long
//              loading takes, nothing else is wrong.
//   readiness  SERVING while new work is welcome: not before startup, not after SIGTERM. Overload
//              leaves it SERVING: a full queue answers for itself, and work sent to fewer processes
//              would only overload those. The empty name asks for the same.
//   liveness   SERVING from the first moment, and NOT_SERVING when the thread that does the work
//   has
//              had some for the stall bound without having dealt with any of it: only a restart
//              helps. Neither loading nor draining nor a long queue makes it so.
inline constexpr char kStartupService[] = "startup";
inline constexpr char kReadinessService[] = "readiness";
inline constexpr char kLivenessService[] = "liveness";

// Thread-safe. To be started before the model is loaded, and before any RpcServer (gRPC's plugins,
// once there, are served by every later server of the process), and to end after it.
class HealthServer {
 public:
  // "host:port", port 0: any. An empty address: no port, and the calls below do nothing.
  // Errors: INVALID_ARGUMENT or FAILED_PRECONDITION naming --health-listen.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const std::string& listen_address);
  ~HealthServer();
  HealthServer(const HealthServer&) = delete;
  HealthServer& operator=(const HealthServer&) = delete;

  // host:port as bound; empty without a port.
  const std::string& address() const { return address_; }

  // Loaded, and taking calls: startup and readiness.
  void SetReady();
  // SIGTERM has come: readiness ends, the two others stay.
  void SetDraining();
  // From now on liveness follows the progress of these threads; once in the life of the server.
  void WatchProgress(std::vector<std::shared_ptr<const Progress>> threads,
                     absl::Duration stall_bound);

 private:
  HealthServer() = default;
  void Set(const char* service, bool serving);
  void Watch(const std::vector<std::shared_ptr<const Progress>>& threads,
             absl::Duration stall_bound);

  std::unique_ptr<ConnectionAcceptor> acceptor_;  // both null without an address
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  Mutex mutex_;
  CondVar changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watcher_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HEALTH_SERVER_H_
