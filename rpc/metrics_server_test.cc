#include "rpc/metrics_server.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "rpc/http/server.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

constexpr MetricDefinition kSteps = {MetricKind::kCounter, "test_steps_total", "Steps done."};

// A socket, and whether it is connected.
std::pair<int, bool> Connect(absl::string_view address) {
  sockaddr_in peer = {};
  peer.sin_family = AF_INET;
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  peer.sin_port = htons(static_cast<uint16_t>(port));
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  return {socket, ::connect(socket, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) == 0};
}

// The whole answer to a request of this first line; empty where the connection fails.
std::string Ask(absl::string_view address, const std::string& line) {
  const auto [socket, connected] = Connect(address);
  std::string answer;
  const std::string request = line + "\r\n\r\n";
  if (connected &&
      ::send(socket, request.data(), request.size(), 0) == static_cast<ssize_t>(request.size())) {
    char buffer[4096];
    for (ssize_t got; (got = ::recv(socket, buffer, sizeof(buffer), 0)) > 0;) {
      answer.append(buffer, static_cast<size_t>(got));
    }
  }
  ::close(socket);
  return answer;
}

TEST(MetricsServer, ShowsTheRegistry) {
  MetricRegistry registry;
  registry.Counter(kSteps).Add(3);
  auto server = MetricsServer::Start({"127.0.0.1:0", {}}, registry);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(Ask((*server)->address(), "GET /metrics HTTP/1.0"),
              HasSubstr("test_steps_total 3\n"));
}

TEST(MetricsServer, OutlivesAFieldThatNoParserHolds) {
  MetricRegistry registry;
  auto server = MetricsServer::Start({"127.0.0.1:0", {}}, registry);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string chunked =
      "POST /metrics HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
  EXPECT_THAT(Ask((*server)->address(), chunked + "0\r\nX: " + std::string(70'000, 'a')),
              HasSubstr("HTTP/1.1 431 "));
  EXPECT_THAT(Ask((*server)->address(), "GET /metrics HTTP/1.0"), HasSubstr("HTTP/1.1 200 "));
}

TEST(HttpServer, LeavesTheLastDescriptorsToTheRestOfTheProcess) {
  rlimit before = {};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few = {100, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  HttpServerOptions options;
  options.listen_address = "127.0.0.1:0";
  options.keeps_reserve = true;
  auto server = HttpServer::Start(
      options, [](const std::shared_ptr<HttpExchange>& exchange) { exchange->Respond({}); },
      [](int status, const std::string&) {
        HttpResponse response;
        response.status = status;
        return response;
      });
  ASSERT_TRUE(server.ok()) << server.status();
  std::vector<int> sockets;
  const std::string request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
  bool closed = false;
  while (!closed) {
    const auto [socket, connected] = Connect((*server)->address());
    ASSERT_TRUE(connected) << "after " << sockets.size();
    sockets.push_back(socket);
    char answer;
    closed = ::send(socket, request.data(), request.size(), MSG_NOSIGNAL) < 0 ||
             ::recv(socket, &answer, 1, 0) <= 0;
  }
  EXPECT_GT(sockets.size(), 20u);
  const int file = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  EXPECT_GE(file, 0);
  ::close(file);
  for (const int socket : sockets) ::close(socket);
  setrlimit(RLIMIT_NOFILE, &before);
}

TEST(MetricsServer, SaysWhyItCannotListen) {
  MetricRegistry registry;
  auto first = MetricsServer::Start({"localhost:0", {}}, registry);
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::Status taken = MetricsServer::Start({(*first)->address(), {}}, registry).status();
  EXPECT_EQ(taken.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(taken.message(), HasSubstr("--metrics-listen"));
  for (const char* bad : {"", "9100", "127.0.0.1:", "127.0.0.1:70000", ":9100,80"}) {
    const absl::Status status = MetricsServer::Start({bad, {}}, registry).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(status.message(), HasSubstr("--metrics-listen")) << bad;
  }
}

TEST(MetricsServer, SaysWhichTlsFileItCannotUse) {
  MetricRegistry registry;
  MetricsServerOptions options;
  options.listen_address = "127.0.0.1:0";
  options.tls.certificate = "/nowhere/server.crt";
  options.tls.key = "/nowhere/server.key";
  const absl::Status status = MetricsServer::Start(options, registry).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("--tls-cert /nowhere/server.crt"));
}

TEST(MetricsServer, HasNothingElse) {
  MetricRegistry registry;
  auto server = MetricsServer::Start({"127.0.0.1:0", {}}, registry);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(Ask((*server)->address(), "GET / HTTP/1.0"), HasSubstr("404"));
  EXPECT_THAT(Ask((*server)->address(), "POST /metrics HTTP/1.0"), HasSubstr("405"));
}

}  // namespace
}  // namespace blockserve
