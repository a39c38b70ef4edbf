#include "rpc/listen_address.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
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
  const absl::string_view digits = address.substr(colon + 1);
  return absl::c_all_of(digits, absl::ascii_isdigit) && absl::SimpleAtoi(digits, &port) &&
         port <= 65535;
}

void SetPort(sockaddr* address, int port) {
  const auto number = htons(static_cast<uint16_t>(port));
  if (address->sa_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = number;
  } else {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = number;
  }
}

// -1, with errno: it cannot be bound.
int BindSocket(const sockaddr* address, socklen_t size, PortUse use) {
  const int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return -1;
  const int on = 1;
  const int off = 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address->sa_family == AF_INET6) {
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  SetPortUse(fd, use);
  if (bind(fd, address, size) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

// Every address of the machine, of both families; -1 where that cannot be had.
int BindWildcard(int port, PortUse use) {
  sockaddr_in6 any = {};
  any.sin6_family = AF_INET6;
  any.sin6_addr = in6addr_any;
  any.sin6_port = htons(static_cast<uint16_t>(port));
  return BindSocket(reinterpret_cast<const sockaddr*>(&any), sizeof(any), use);
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

bool IsUnixAddress(absl::string_view address) { return absl::StartsWith(address, "unix:"); }

int FamilyOf(int socket) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size);
  return address.ss_family;
}

int PortOf(int socket) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) return 0;
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6*>(&address)->sin6_port
                   : reinterpret_cast<const sockaddr_in*>(&address)->sin_port);
}

absl::StatusOr<std::vector<int>> BindSockets(absl::string_view flag, absl::string_view address,
                                             PortUse use) {
  absl::string_view host;
  int port = 0;
  if (!SplitPort(address, host, port)) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is \"", address, "\"; it must be host:port"));
  }
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  if (host == "0.0.0.0" || host == "::") {
    if (const int fd = BindWildcard(port, use); fd >= 0) return std::vector<int>{fd};
  }
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int failed =
      getaddrinfo(std::string(host).c_str(), absl::StrCat(port).c_str(), &hints, &found);
  if (failed != 0) return CannotListen(flag, address, gai_strerror(failed));
  int error = 0;
  std::vector<int> sockets;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    if (!sockets.empty()) SetPort(one->ai_addr, PortOf(sockets.front()));
    const int fd = BindSocket(one->ai_addr, one->ai_addrlen, use);
    if (fd >= 0) {
      sockets.push_back(fd);
    } else {
      error = errno;
    }
  }
  freeaddrinfo(found);
  if (sockets.empty()) return CannotListen(flag, address, std::strerror(error));
  return sockets;
}

absl::Status CheckListenAddresses(const std::vector<ListenAddress>& addresses) {
  std::vector<int> held;
  absl::Status status;
  for (const auto& [flag, address, use] : addresses) {
    if (address.empty() || IsUnixAddress(address)) continue;
    absl::StatusOr<std::vector<int>> sockets = BindSockets(flag, address, use);
    status = sockets.status();
    if (!status.ok()) break;
    held.insert(held.end(), sockets->begin(), sockets->end());
    if (use == PortUse::kShared) continue;  // a connection might come that is for another process
    // Two that only are bound may have one port.
    for (const int fd : *sockets) {
      if (listen(fd, 1) != 0) status = CannotListen(flag, address, std::strerror(errno));
    }
    if (!status.ok()) break;
  }
  for (const int fd : held) close(fd);
  return status;
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
  if (IsUnixAddress(address) || !SplitPort(address, host, port)) return address;
  return absl::StrCat(host, ":", bound_port);
}

void SetServerArguments(grpc::ServerBuilder& builder) {
  // Each takes some 13 KB from its first byte on. Clients keep further calls back by themselves.
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxCallsOfConnection);
  // Clients that vanish without a word are noticed within 15 s; clients may ask as often.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
}

}  // namespace blockserve
