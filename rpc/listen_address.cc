#include "rpc/listen_address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

// Splits off the port; false when there is none or it is no port. Addresses of other schemes
// ("unix:PATH") are left to gRPC.
bool SplitPort(absl::string_view address, absl::string_view& host, int& port) {
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return false;
  host = address.substr(0, colon);
  return absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 0 && port <= 65535;
}

// Tries whether the address can be bound. gRPC does not say why it could not, but in its own log.
absl::Status TryToBind(absl::string_view flag, absl::string_view address, absl::string_view host,
                       int port, PortUse use) {
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int failed =
      getaddrinfo(std::string(host).c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (failed != 0) return CannotListen(flag, address, gai_strerror(failed));
  int error = 0;
  bool bound = false;
  for (const addrinfo* one = found; one != nullptr && !bound; one = one->ai_next) {
    const int fd = socket(one->ai_family, one->ai_socktype | SOCK_CLOEXEC, one->ai_protocol);
    if (fd < 0) {
      error = errno;
      continue;
    }
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    SetPortUse(fd, use);
    bound = bind(fd, one->ai_addr, one->ai_addrlen) == 0;
    if (!bound) error = errno;
    close(fd);
  }
  freeaddrinfo(found);
  return bound ? absl::OkStatus() : CannotListen(flag, address, std::strerror(error));
}

}  // namespace

absl::Status CannotListen(absl::string_view flag, absl::string_view address,
                          absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat(flag, " ", address, ": cannot listen there: ", why));
}

void SetPortUse(int socket, PortUse use) {
  const int on = use == PortUse::kShared ? 1 : 0;
  // Where it cannot be, binding a port that others listen on says so.
  setsockopt(socket, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on));
}

absl::Status CheckListenAddress(absl::string_view flag, absl::string_view address, PortUse use) {
  if (absl::StartsWith(address, "unix:")) return absl::OkStatus();
  absl::string_view host;
  int port = 0;
  if (!SplitPort(address, host, port)) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is \"", address, "\"; it must be host:port"));
  }
  return TryToBind(flag, address, host, port, use);
}

bool IsLoopback(absl::string_view address) {
  for (const absl::string_view start : {"127.", "localhost:", "[::1]:", "unix:"}) {
    if (absl::StartsWith(address, start)) return true;
  }
  return false;
}

std::string NotEncrypted(absl::string_view flag, absl::string_view address,
                         absl::string_view remedy) {
  return absl::StrCat(flag, " ", address, ": other machines reach it, and it is not encrypted (",
                      remedy, ")");
}

std::string BoundAddress(const std::string& address, int bound_port) {
  absl::string_view host;
  int port = 0;
  if (absl::StartsWith(address, "unix:") || !SplitPort(address, host, port)) return address;
  return absl::StrCat(host, ":", bound_port);
}

void SetServerArguments(grpc::ServerBuilder& builder, PortUse use) {
  // gRPC would share it unasked: a port that another process listens on must be an error.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, use == PortUse::kShared ? 1 : 0);
  // Clients that vanish without a word are noticed within 15 s; clients may ask as often.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
}

}  // namespace blockserve
