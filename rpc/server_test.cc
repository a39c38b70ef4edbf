#include "rpc/server.h"

#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using testing::HasSubstr;

grpc::ByteBuffer ToBuffer(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

std::string ToString(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  buffer.Dump(&slices);
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// A unary call without generated code (grpc.health's is not installed).
grpc::Status Call(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                  const std::string& request, std::string& response) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  const grpc::ByteBuffer in = ToBuffer(request);
  grpc::ByteBuffer out;
  grpc::Status status;
  absl::Notification done;
  stub.UnaryCall(&context, method, grpc::StubOptions(), &in, &out, [&](grpc::Status result) {
    status = std::move(result);
    done.Notify();
  });
  done.WaitForNotification();
  if (status.ok()) response = ToString(out);
  return status;
}

enum class Health { kUnknown, kServing, kNotServing, kNoAnswer };

Health Check(const std::shared_ptr<grpc::Channel>& channel, const std::string& scope = "") {
  std::string request;
  if (!scope.empty()) request = absl::StrCat("\x0a", std::string(1, char(scope.size())), scope);
  std::string response;
  if (!Call(channel, "/grpc.health.v1.Health/Check", request, response).ok()) {
    return Health::kNoAnswer;
  }
  if (response == std::string("\x08\x01")) return Health::kServing;
  if (response == std::string("\x08\x02")) return Health::kNotServing;
  return Health::kUnknown;
}

std::shared_ptr<grpc::Channel> Dial(const std::string& address) {
  return grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
}

// What reflection lists, as the bytes of its answer.
std::string ListServices(const std::shared_ptr<grpc::Channel>& channel) {
  grpc::GenericStub stub(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
  grpc::CompletionQueue queue;
  auto call = stub.PrepareCall(&context,
                               "/grpc.reflection.v1alpha.ServerReflection/"
                               "ServerReflectionInfo",
                               &queue);
  const auto step = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  std::string listed;
  grpc::ByteBuffer response;
  if (step()) {
    call->Write(ToBuffer(std::string("\x3a\x00", 2)), nullptr);  // list_services: ""
    if (step()) {
      call->Read(&response, nullptr);
      if (step()) listed = ToString(response);
    }
  }
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  step();
  queue.Shutdown();
  return listed;
}

TEST(RpcServer, TheHealthPortServesHealthAlone) {
  // First in this file: gRPC's plugins are the process's, and this is what a program does first.
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  options.health_listen = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto health = Dial((*server)->health_address());
  EXPECT_EQ(Check(health), Health::kNotServing);
  (*server)->SetServing(true);
  EXPECT_EQ(Check(health), Health::kServing);
  std::string response;
  EXPECT_EQ(Call(health, "/grpc.channelz.v1.Channelz/GetServers", "", response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(
      Call(Dial((*server)->address()), "/grpc.channelz.v1.Channelz/GetServers", "", response).ok());
}

TEST(RpcServer, ListensWhereItSaysAndTellsItsHealth) {
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT((*server)->address(), testing::MatchesRegex("127\\.0\\.0\\.1:[1-9][0-9]*"));
  const auto channel = Dial((*server)->address());
  EXPECT_EQ(Check(channel), Health::kNotServing);
  (*server)->SetServing(true);
  EXPECT_EQ(Check(channel), Health::kServing);
  (*server)->SetServing("wide", false);
  EXPECT_EQ(Check(channel, "wide"), Health::kNotServing);
  EXPECT_EQ(Check(channel), Health::kServing) << "a scope is apart from the process";
  EXPECT_THAT(ListServices(channel), HasSubstr("grpc.health.v1.Health"));
}

TEST(RpcServer, APortInUseIsAnErrorThatNamesIt) {
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto first = RpcServer::Start(options, {});
  ASSERT_TRUE(first.ok());
  ServerOptions same;
  same.listen_address = (*first)->address();
  const auto second = RpcServer::Start(same, {});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("--listen ", (*first)->address())));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("in use"));
  ServerOptions health;
  health.listen_address = "127.0.0.1:0";
  health.health_listen = (*first)->address();
  const auto third = RpcServer::Start(health, {});
  ASSERT_FALSE(third.ok());
  EXPECT_THAT(std::string(third.status().message()), HasSubstr("--health-listen"));
}

TEST(RpcServer, AddressesWithoutAPortAreRefused) {
  for (const std::string address : {"localhost", "localhost:", ":80", "localhost:x", "h:70000"}) {
    ServerOptions options;
    options.listen_address = address;
    const auto server = RpcServer::Start(options, {});
    EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(std::string(server.status().message()), HasSubstr("host:port")) << address;
  }
}

TEST(RpcServer, WorksWithoutASocket) {
  auto server = RpcServer::Start({}, {});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ((*server)->address(), "");
  (*server)->SetServing(true);
  EXPECT_EQ(Check((*server)->InProcessChannel()), Health::kServing);
  (*server)->Shutdown(absl::ZeroDuration());
  (*server)->Shutdown(absl::ZeroDuration());
}

}  // namespace
}  // namespace blockserve
