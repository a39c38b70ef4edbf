#include "rpc/server.h"

#include <grpcpp/ext/channelz_service_plugin.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>
#include <grpcpp/support/channel_arguments.h>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "rpc/deadline.h"
#include "rpc/listen_address.h"

namespace blockserve {
namespace {

constexpr int kMaxSyncThreads = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<RpcServer>> RpcServer::Start(
    const ServerOptions& options, const std::vector<grpc::Service*>& services) {
  grpc::EnableDefaultHealthCheckService(true);
  std::unique_ptr<RpcServer> result(new RpcServer);
  result->max_message_bytes_ = options.max_message_bytes;
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  if (options.channelz) grpc::channelz::experimental::InitChannelzService();

  grpc::ServerBuilder builder;
  SetServerArguments(builder);
  if (options.max_connection_age < absl::InfiniteDuration()) {
    // gRPC spreads it, and lets calls end in their own time.
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONNECTION_AGE_MS,
        static_cast<int>(absl::ToInt64Milliseconds(options.max_connection_age)));
  }
  builder.SetMaxReceiveMessageSize(options.max_message_bytes);
  builder.SetMaxSendMessageSize(options.max_message_bytes);
  if (!options.listen_address.empty()) {
    absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> credentials =
        MakeServerCredentials(options.tls);
    if (!credentials.ok()) return credentials.status();
    absl::StatusOr<std::unique_ptr<ConnectionAcceptor>> acceptor = ConnectionAcceptor::Bind(
        options.listen_flag, options.listen_address, options.port_use, *credentials, builder);
    if (!acceptor.ok()) return acceptor.status();
    if (!options.tls.enabled() && !IsLoopback(options.listen_address)) {
      LogWarning(NotEncrypted(options.listen_flag, options.listen_address,
                              absl::StrCat(options.tls.flags, "-cert")));
    }
    // Calls of reflection and channelz, and no others, take a thread for as long as they are open.
    builder.SetResourceQuota(grpc::ResourceQuota(options.listen_flag)
                                 .Resize(static_cast<size_t>(options.max_memory_bytes))
                                 .SetMaxThreads(kMaxSyncThreads));
    result->credentials_ = *std::move(credentials);
    result->acceptor_ = *std::move(acceptor);
  }
  for (grpc::Service* service : services) builder.RegisterService(service);
  result->server_ = builder.BuildAndStart();
  if (result->acceptor_ != nullptr) {
    if (absl::Status status = result->acceptor_->Start(result->server_ != nullptr); !status.ok()) {
      return status;
    }
    result->address_ = result->acceptor_->address();
  } else if (result->server_ == nullptr) {
    return absl::InternalError("gRPC does not start a server");
  }
  result->SetServing(false);
  return result;
}

RpcServer::~RpcServer() { Shutdown(absl::ZeroDuration()); }

void RpcServer::SetServing(bool serving) { SetServing("", serving); }

void RpcServer::SetServing(absl::string_view scope, bool serving) {
  if (grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService()) {
    health->SetServingStatus(std::string(scope), serving);
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
  if (acceptor_ != nullptr) acceptor_->Stop();
  if (server_ != nullptr) {
    SetServing(false);
    server_->Shutdown(GrpcDeadlineIn(grace));
    server_->Wait();
  }
}

}  // namespace blockserve
