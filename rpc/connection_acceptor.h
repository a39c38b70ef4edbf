// Takes the connections of a gRPC server and hands them to it.
//
// gRPC 1.51 does that by itself, but closes its listening socket for good when the process has no
// descriptor left for a connection: whoever opened enough of them once would have ended the service
// for all. Here some descriptors are kept for the rest of the process, and connections beyond that
// are closed at once.
#ifndef BLOCKSERVE_RPC_CONNECTION_ACCEPTOR_H_
#define BLOCKSERVE_RPC_CONNECTION_ACCEPTOR_H_

#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "rpc/listen_address.h"

namespace blockserve {

// Lets the process have 32,768 open files and sockets, or as many as it may have. The limit that it
// is started with is often 1024, for the sake of programs that use select(). For main, before there
// are servers.
void RaiseDescriptorLimit();

// What connections of clients may take of the descriptors: one of this number or above is closed
// at once. The rest is for connections to the tiers, files that are read again, scrapers.
int DescriptorsForConnections();

class ConnectionAcceptor {
 public:
  // Binds "host:port" or "unix:PATH" and adds it to `builder`. Errors: those of BindSockets.
  static absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> Bind(
      absl::string_view flag, const std::string& address, PortUse use,
      const std::shared_ptr<grpc::ServerCredentials>& credentials, grpc::ServerBuilder& builder);
  // As Stop.
  ~ConnectionAcceptor();
  ConnectionAcceptor(const ConnectionAcceptor&) = delete;
  ConnectionAcceptor& operator=(const ConnectionAcceptor&) = delete;

  // Once the server has been built and started. FAILED_PRECONDITION naming the flag: it was not, or
  // the address cannot be listened on.
  absl::Status Start(bool server_started);
  // Takes no further connection. To be called before the server's Shutdown. Idempotent.
  void Stop();

  // As bound, port 0 resolved; after Start.
  const std::string& address() const { return address_; }

 private:
  ConnectionAcceptor(absl::string_view flag, std::string address)
      : flag_(flag), address_(std::move(address)) {}
  void Run();

  const std::string flag_;
  std::string address_;
  std::vector<int> sockets_;  // none where gRPC listens itself
  int wake_ = -1;             // an eventfd
  int unix_port_ = 0;         // set by gRPC
  int descriptors_ = 0;       // that connections may take
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> server_;
  std::thread thread_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_CONNECTION_ACCEPTOR_H_
