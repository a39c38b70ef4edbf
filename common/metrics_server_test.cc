#include "common/metrics_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

constexpr MetricDefinition kSteps = {MetricKind::kCounter, "test_steps_total", "Steps done."};

// The whole answer to a GET of /metrics; empty where the connection fails.
std::string Scrape(absl::string_view address) {
  sockaddr_in peer = {};
  peer.sin_family = AF_INET;
  peer.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int port = 0;
  if (!absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) return "";
  peer.sin_port = htons(static_cast<uint16_t>(port));
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  std::string answer;
  const absl::string_view request = "GET /metrics HTTP/1.0\r\n\r\n";
  if (::connect(socket, reinterpret_cast<sockaddr*>(&peer), sizeof(peer)) == 0 &&
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
  auto server = MetricsServer::Start("127.0.0.1:0", registry);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(Scrape((*server)->address()), HasSubstr("test_steps_total 3\n"));
}

TEST(MetricsServer, SaysWhyItCannotListen) {
  MetricRegistry registry;
  auto first = MetricsServer::Start("localhost:0", registry);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(MetricsServer::Start((*first)->address(), registry).status().code(),
            absl::StatusCode::kFailedPrecondition);
  for (const absl::string_view bad : {"", "9100", "127.0.0.1:", "127.0.0.1:70000", "9100s,80"}) {
    EXPECT_EQ(MetricsServer::Start(bad, registry).status().code(),
              absl::StatusCode::kInvalidArgument)
        << bad;
  }
}

}  // namespace
}  // namespace blockserve
