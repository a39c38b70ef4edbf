#include "rpc/connection_acceptor.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/logging.h"
#include "common/thread_name.h"

namespace blockserve {
namespace {

// More than a gateway has requests (--max-live-choices), and few enough that idle connections, some
// 20 KB each, do not fill the memory.
constexpr rlim_t kDescriptors = 32768;
constexpr int kReservedDescriptors = 64;
// Without a descriptor nothing can be done about a connection that waits.
constexpr int kPauseMs = 100;
constexpr absl::Duration kBetweenWarnings = absl::Seconds(10);

}  // namespace

int DescriptorsForConnections() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = 1024;
  const int most = static_cast<int>(std::min<rlim_t>(limit.rlim_cur, 1 << 30));
  return most - std::min(kReservedDescriptors, most / 4);
}

void RaiseDescriptorLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::min(limit.rlim_max, std::max(limit.rlim_cur, kDescriptors));
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> ConnectionAcceptor::Bind(
    absl::string_view flag, const std::string& address, PortUse use,
    const std::shared_ptr<grpc::ServerCredentials>& credentials, grpc::ServerBuilder& builder) {
  std::unique_ptr<ConnectionAcceptor> result(new ConnectionAcceptor(flag, address));
  if (IsUnixAddress(address)) {
    builder.AddListeningPort(address, credentials, &result->unix_port_);
    return result;
  }
  absl::StatusOr<std::vector<int>> sockets = BindSockets(flag, address, use);
  if (!sockets.ok()) return sockets.status();
  result->sockets_ = *std::move(sockets);
  using Type = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  result->server_ =
      builder.experimental().AddExternalConnectionAcceptor(Type::FROM_FD, credentials);
  return result;
}

ConnectionAcceptor::~ConnectionAcceptor() { Stop(); }

absl::Status ConnectionAcceptor::Start(bool server_started) {
  if (!server_started || (sockets_.empty() && unix_port_ == 0)) {
    return CannotListen(flag_, address_, "gRPC refuses it");
  }
  if (sockets_.empty()) return absl::OkStatus();
  wake_ = eventfd(0, EFD_CLOEXEC);
  if (wake_ < 0) return CannotListen(flag_, address_, std::strerror(errno));
  for (const int fd : sockets_) {
    const int on = 1;  // of each connection, which takes it over
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (listen(fd, SOMAXCONN) != 0) return CannotListen(flag_, address_, std::strerror(errno));
  }
  address_ = BoundAddress(address_, PortOf(sockets_.front()));
  descriptors_ = DescriptorsForConnections();
  thread_ = std::thread([this] { Run(); });
  return absl::OkStatus();
}

void ConnectionAcceptor::Stop() {
  if (thread_.joinable()) {
    eventfd_write(wake_, 1);
    thread_.join();
  }
  for (const int fd : sockets_) close(fd);
  sockets_.clear();
  if (wake_ >= 0) close(std::exchange(wake_, -1));
}

void ConnectionAcceptor::Run() {
  SetThreadName("grpc-accept");
  std::vector<pollfd> polled = {{wake_, POLLIN, 0}};
  for (const int fd : sockets_) polled.push_back({fd, POLLIN, 0});
  const SteadyClock clock;
  absl::Time next_warning = absl::InfinitePast();
  const auto warn = [&](absl::string_view what) {
    if (clock.Now() < next_warning) return;
    next_warning = clock.Now() + kBetweenWarnings;
    LogWarning(absl::StrCat(flag_, " ", address_, ": ", what));
  };
  while (true) {
    poll(polled.data(), polled.size(), -1);
    if (polled.front().revents != 0) return;
    for (size_t i = 1; i < polled.size(); ++i) {
      if (polled[i].revents == 0) continue;
      const int fd = accept4(polled[i].fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (fd >= descriptors_) {
        close(fd);
        warn("too many connections: new ones are closed (ulimit -n)");
      } else if (fd >= 0) {
        grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
        connection.listener_fd = polled[i].fd;
        connection.fd = fd;
        server_->HandleNewConnection(&connection);
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        warn(absl::StrCat("a connection cannot be taken: ", std::strerror(errno)));
        if (poll(polled.data(), 1, kPauseMs) > 0) return;
      }
    }
  }
}

}  // namespace blockserve
