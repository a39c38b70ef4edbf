// Life of a gRPC server: listening, health, reflection, channelz, and an end with a grace.
#ifndef BLOCKSERVE_RPC_SERVER_H_
#define BLOCKSERVE_RPC_SERVER_H_

#include <grpcpp/channel.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "rpc/connection_acceptor.h"
#include "rpc/listen_address.h"
#include "rpc/tls.h"

namespace blockserve {

// Largest message of the internal protocols, either way: 16 MiB.
inline constexpr int kMaxTierMessageBytes = 16 << 20;

// What the connections of a server hold together: messages that are being read above all. gRPC
// reads a message whole before it looks at its size, and before it is known who sends it.
inline constexpr int64_t kMaxServerMemoryBytes = int64_t{512} << 20;

struct ServerOptions {
  // "host:port", "[v6]:port" or "unix:PATH"; port 0 lets the system choose. Empty: no socket at
  // all, reached by InProcessChannel alone.
  std::string listen_address;
  std::string listen_flag = "--listen";  // what messages call it
  PortUse port_use = PortUse::kAlone;
  int max_message_bytes = kMaxTierMessageBytes;
  // Beyond it gRPC reads more slowly, and breaks off calls, of whoever, until there is room.
  int64_t max_memory_bytes = kMaxServerMemoryBytes;
  // Of listen_address alone: the port of --health-listen is for probes, which have no certificate.
  ServerTlsFiles tls;
  // Channelz tells who is connected: not for a port that strangers reach.
  bool channelz = true;
  // A connection that is about so old (a tenth more or less) is told to take no new call: its
  // client connects anew, perhaps elsewhere. Calls that run go on.
  absl::Duration max_connection_age = absl::InfiniteDuration();
};

// Every server has grpc.health.v1, reflection and (unless left out) channelz beside its services.
// Thread-safe.
class RpcServer {
 public:
  // The services must outlive the server. The server starts serving, with health NOT_SERVING until
  // SetServing(true). Errors: INVALID_ARGUMENT or FAILED_PRECONDITION naming the flag and the
  // address that cannot be listened on, or the TLS file that cannot be used.
  static absl::StatusOr<std::unique_ptr<RpcServer>> Start(
      const ServerOptions& options, const std::vector<grpc::Service*>& services);
  // As Shutdown with no grace.
  ~RpcServer();
  RpcServer(const RpcServer&) = delete;
  RpcServer& operator=(const RpcServer&) = delete;

  // host:port as bound, port 0 resolved; empty without a socket.
  const std::string& address() const { return address_; }

  // What health says of the process (the empty service name).
  void SetServing(bool serving);
  // What health says of one scope, e.g. of the wide check of a gateway.
  void SetServing(absl::string_view scope, bool serving);

  std::shared_ptr<grpc::Channel> InProcessChannel();

  // Health says NOT_SERVING, no new call is taken, and those that run may take `grace` before they
  // are cancelled. Returns when all have ended. Further calls do nothing.
  void Shutdown(absl::Duration grace);

 private:
  RpcServer() = default;

  std::shared_ptr<grpc::ServerCredentials> credentials_;  // read its certificates anew
  std::unique_ptr<ConnectionAcceptor> acceptor_;          // null without a socket
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
  int max_message_bytes_ = 0;
  bool shut_down_ = false;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_SERVER_H_
