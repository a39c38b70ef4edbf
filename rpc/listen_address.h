// Addresses that servers listen on: bound by ourselves, so that errors say why.
#ifndef BLOCKSERVE_RPC_LISTEN_ADDRESS_H_
#define BLOCKSERVE_RPC_LISTEN_ADDRESS_H_

#include <grpcpp/server_builder.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

// Whether a port may have other listeners: processes of the same user that share it too. The system
// then gives each new connection to one of them.
enum class PortUse { kAlone, kShared };

// Of a socket that is not bound yet.
void SetPortUse(int socket, PortUse use);

// Whether it is "unix:PATH": that is left to gRPC.
bool IsUnixAddress(absl::string_view address);

// Stream sockets bound to "host:port", one for each address of the host, all of one port; "0.0.0.0"
// and "[::]" are every address of the machine, of both families. The caller closes them.
// INVALID_ARGUMENT (no address) or FAILED_PRECONDITION (in use, not ours, …), naming `flag`.
absl::StatusOr<std::vector<int>> BindSockets(absl::string_view flag, absl::string_view address,
                                             PortUse use);

// AF_INET or AF_INET6, and the port, that a socket is bound to; port 0: none.
int FamilyOf(int socket);
int PortOf(int socket);

struct ListenAddress {
  absl::string_view flag;
  absl::string_view address;
  PortUse use = PortUse::kAlone;
};
// Whether BindSockets would take all of them now, each beside the others; empty ones are passed
// over, "unix:PATH" is taken as it is.
absl::Status CheckListenAddresses(const std::vector<ListenAddress>& addresses);
absl::Status CannotListen(absl::string_view flag, absl::string_view address, absl::string_view why);

// Whether only this machine reaches it, as far as the address tells.
bool IsLoopback(absl::string_view address);
// What the log says of a plaintext port that other machines reach; `remedy`: the flag against it.
std::string NotEncrypted(absl::string_view flag, absl::string_view address,
                         absl::string_view remedy);

// `address` with the port that was bound in place of its own.
std::string BoundAddress(const std::string& address, int bound_port);

// Calls that one connection may have open at a time.
inline constexpr int kMaxCallsOfConnection = 4096;

// Keepalive and the like: what all servers of our programs have in common.
void SetServerArguments(grpc::ServerBuilder& builder);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_LISTEN_ADDRESS_H_
