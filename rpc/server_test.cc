#include "rpc/server.h"

#include <fcntl.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rpc/health_probe_for_test.h"
#include "rpc/tier_stream.h"

namespace blockserve {
namespace {

using testing::HasSubstr;
using testing::Not;

// A call of reflection, open until this ends.
class Reflection {
 public:
  explicit Reflection(const std::shared_ptr<grpc::Channel>& channel) : stub_(channel) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    call_ = stub_.PrepareCall(&context_,
                              "/grpc.reflection.v1alpha.ServerReflection/"
                              "ServerReflectionInfo",
                              &queue_);
    call_->StartCall(nullptr);
    Step();
  }
  ~Reflection() {
    context_.TryCancel();
    grpc::Status status;
    call_->Finish(&status, nullptr);
    Step();
    queue_.Shutdown();
  }

  // What it lists, as the bytes of its answer; empty: the call is over.
  std::string ListServices() {
    grpc::ByteBuffer response;
    call_->Write(ToBuffer(std::string("\x3a\x00", 2)), nullptr);  // list_services: ""
    if (!Step()) return "";
    call_->Read(&response, nullptr);
    return Step() ? ToString(response) : "";
  }

 private:
  bool Step() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

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
  EXPECT_THAT(Reflection(channel).ListServices(), HasSubstr("grpc.health.v1.Health"));
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
}

TEST(RpcServer, APortIsSharedByThoseAloneWhoSaySo) {
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  options.port_use = PortUse::kShared;
  auto first = RpcServer::Start(options, {});
  ASSERT_TRUE(first.ok()) << first.status();
  options.listen_address = (*first)->address();
  auto second = RpcServer::Start(options, {});
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ((*second)->address(), (*first)->address());
  options.port_use = PortUse::kAlone;
  EXPECT_THAT(std::string(RpcServer::Start(options, {}).status().message()), HasSubstr("in use"));
}

int ConnectTo(const std::string& address) {
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  to.sin_port = htons(static_cast<uint16_t>(port));
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd >= 0 && connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)) == 0) return fd;
  if (fd >= 0) close(fd);
  return -1;
}

// Whether the other side has closed it; waits for it to do something.
bool IsClosed(int fd) {
  char byte;
  return recv(fd, &byte, 1, 0) <= 0;
}

// Of HTTP/2's settings (RFC 9113, 6.5.2), as the server tells them first; 0: not told.
uint32_t SettingOf(const std::string& address, uint16_t setting) {
  const int fd = ConnectTo(address);
  const std::string hello =
      absl::StrCat("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", absl::string_view("\0\0\0\4\0\0\0\0\0", 9));
  EXPECT_EQ(send(fd, hello.data(), hello.size(), 0), static_cast<ssize_t>(hello.size()));
  unsigned char head[9] = {};
  EXPECT_EQ(recv(fd, head, sizeof(head), MSG_WAITALL), 9);
  EXPECT_EQ(head[3], 4) << "a SETTINGS frame";
  std::vector<unsigned char> settings(head[0] << 16 | head[1] << 8 | head[2]);
  EXPECT_EQ(recv(fd, settings.data(), settings.size(), MSG_WAITALL),
            static_cast<ssize_t>(settings.size()));
  close(fd);
  for (size_t i = 0; i + 6 <= settings.size(); i += 6) {
    if ((settings[i] << 8 | settings[i + 1]) != setting) continue;
    return uint32_t{settings[i + 2]} << 24 | uint32_t{settings[i + 3]} << 16 |
           uint32_t{settings[i + 4]} << 8 | settings[i + 5];
  }
  return 0;
}

TEST(RpcServer, CallsOfReflectionTakeFewThreads) {
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = Dial((*server)->address());
  std::vector<std::unique_ptr<Reflection>> open;
  size_t answered = 0;
  for (int i = 0; i < 64; ++i) {
    open.push_back(std::make_unique<Reflection>(channel));
    answered += open.back()->ListServices().empty() ? 0 : 1;
  }
  EXPECT_GE(answered, 1u);
  EXPECT_LE(answered, 16u) << "each has a thread for as long as it is open";
  open.clear();
  (*server)->SetServing(true);
  EXPECT_EQ(Check(channel), Health::kServing);
  while (Reflection(channel).ListServices().empty()) {
  }
}

TEST(RpcServer, BoundsTheCallsOfAConnection) {
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  constexpr uint16_t kMaxConcurrentStreams = 3;
  EXPECT_EQ(SettingOf((*server)->address(), kMaxConcurrentStreams), 4096u);
}

TEST(RpcServer, ServesAgainAfterMoreConnectionsThanDescriptors) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  rlimit few = before;
  few.rlim_cur = 200;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  (*server)->SetServing(true);
  // Both ends are in this process. Some are kept for other things.
  std::vector<int> connections;
  while (connections.empty() || !IsClosed(connections.back())) {
    connections.push_back(ConnectTo((*server)->address()));
    ASSERT_GE(connections.back(), 0);
  }
  const int free = open("/dev/null", O_RDONLY | O_CLOEXEC);
  EXPECT_GE(free, 0);
  close(free);
  // Then all of them are taken.
  for (int fd = 0; fd >= 0;) {
    fd = ConnectTo((*server)->address());
    if (fd >= 0) connections.push_back(fd);
  }
  EXPECT_EQ(errno, EMFILE);
  for (const int fd : connections) close(fd);
  EXPECT_EQ(Check(Dial((*server)->address())), Health::kServing);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST(RpcServer, AMessageThatIsLargerThanAllConnectionsMayHoldIsNotReadToItsEnd) {
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  options.max_memory_bytes = 16 << 20;
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  (*server)->SetServing(true);
  std::string response;
  const grpc::Status status = Call(Dial((*server)->address()), "/grpc.health.v1.Health/Check",
                                   std::string(256 << 20, 'x'), response);
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.error_message(), Not(HasSubstr("larger than max"))) << "it was read";
  EXPECT_EQ(Check(Dial((*server)->address())), Health::kServing);
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

// Clusters put the variables into every pod; what is beside a gateway is no business of theirs.
TEST(TierChannel, DoesNotGoThroughAProxyOfTheEnvironment) {
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  (*server)->SetServing(true);
  setenv("grpc_proxy", "http://127.0.0.1:1", /*overwrite=*/1);  // where nobody listens
  const std::shared_ptr<grpc::Channel> channel = MakeTierChannel((*server)->address());
  EXPECT_EQ(Check(channel), Health::kServing);
  unsetenv("grpc_proxy");
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
