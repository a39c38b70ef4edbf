#include "rpc/server.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

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

absl::Status CannotListen(absl::string_view flag, absl::string_view address,
                          absl::string_view why) {
  return absl::FailedPreconditionError(
      absl::StrCat(flag, " ", address, ": cannot listen there: ", why));
}

// Tries whether the address can be bound. gRPC does not say why it could not, but in its own log.
absl::Status TryToBind(absl::string_view flag, absl::string_view address, absl::string_view host,
                       int port) {
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
    bound = bind(fd, one->ai_addr, one->ai_addrlen) == 0;
    if (!bound) error = errno;
    close(fd);
  }
  freeaddrinfo(found);
  return bound ? absl::OkStatus() : CannotListen(flag, address, std::strerror(error));
}

absl::Status CheckAddress(absl::string_view flag, absl::string_view address) {
  if (absl::StartsWith(address, "unix:")) return absl::OkStatus();
  absl::string_view host;
  int port = 0;
  if (!SplitPort(address, host, port)) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is \"", address, "\"; it must be host:port"));
  }
  return TryToBind(flag, address, host, port);
}

std::string BoundAddress(const std::string& address, int bound_port) {
  absl::string_view host;
  int port = 0;
  if (absl::StartsWith(address, "unix:") || !SplitPort(address, host, port)) return address;
  return absl::StrCat(host, ":", bound_port);
}

// What both servers of a process have in common.
void SetCommonArguments(grpc::ServerBuilder& builder) {
  // A port that another process listens on must be an error, not a shared port.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Clients that vanish without a word are noticed within 15 s; clients may ask as often.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1'000);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
}

absl::StatusOr<std::unique_ptr<grpc::Server>> StartHealthServer(const std::string& listen,
                                                                std::string& bound) {
  if (absl::Status status = CheckAddress("--health-listen", listen); !status.ok()) return status;
  grpc::ServerBuilder builder;
  SetCommonArguments(builder);
  int port = 0;
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0)
    return CannotListen("--health-listen", listen, "gRPC refuses it");
  bound = BoundAddress(listen, port);
  return server;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const ServerOptions& options, const std::vector<grpc::Service*>& services) {
  grpc::EnableDefaultHealthCheckService(true);
  std::unique_ptr<RpcServer> result(new RpcServer);
  result->max_message_bytes_ = options.max_message_bytes;
  // Before the plugins: gRPC puts them into every later server of the process, and this one is to
  // serve health alone.
  if (!options.health_listen.empty()) {
    absl::StatusOr<std::unique_ptr<grpc::Server>> health =
        StartHealthServer(options.health_listen, result->health_address_);
    if (!health.ok()) return health.status();
    result->health_server_ = *std::move(health);
  }
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::channelz::experimental::InitChannelzService();

  grpc::ServerBuilder builder;
  SetCommonArguments(builder);
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(options.max_message_bytes);
  int port = 0;
  if (!options.listen_address.empty()) {
    if (absl::Status status = CheckAddress(options.listen_flag, options.listen_address);
        !status.ok()) {
      return status;
    }
    builder.AddListeningPort(options.listen_address, grpc::InsecureServerCredentials(), &port);
  }
  for (grpc::Service* service : services) builder.RegisterService(service);
  result->server_ = builder.BuildAndStart();
  if (result->server_ == nullptr || (!options.listen_address.empty() && port == 0)) {
    return CannotListen(options.listen_flag, options.listen_address, "gRPC refuses it");
  }
  if (!options.listen_address.empty()) {
    result->address_ = BoundAddress(options.listen_address, port);
  }
  result->SetServing(false);
  return result;
}

RpcServer::~RpcServer() { Shutdown(absl::ZeroDuration()); }

void RpcServer::SetServing(bool serving) { SetServing("", serving); }

void RpcServer::SetServing(absl::string_view scope, bool serving) {
  for (grpc::Server* server : {server_.get(), health_server_.get()}) {
    if (server == nullptr) continue;
    if (grpc::HealthCheckServiceInterface* health = server->GetHealthCheckService()) {
      health->SetServingStatus(std::string(scope), serving);
    }
  }
}

std::shared_ptr<grpc::Channel> RpcServer::InProcessChannel() {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(max_message_bytes_);
  arguments.SetMaxSendMessageSize(max_message_bytes_);
  return server_->InProcessChannel(arguments);
}

void RpcServer::Shutdown(absl::Duration grace) {
  if (shut_down_) return;
  shut_down_ = true;
  if (server_ != nullptr) {
    SetServing(false);
    server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
    server_->Wait();
  }
  // Last, so that probes hear NOT_SERVING during the grace rather than nothing.
  if (health_server_ != nullptr) {
    health_server_->Shutdown(absl::ToChronoTime(absl::Now()));
    health_server_->Wait();
  }
}

}  // namespace blockserve
