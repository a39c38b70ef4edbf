#include "gateway/dns_resolver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rpc/asio_loop.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using Addresses = absl::StatusOr<std::vector<std::string>>;

// What `resolver` answers on its loop.
Addresses Ask(const Discovery::Resolver& resolver, const std::string& host) {
  std::promise<Addresses> answer;
  resolver(host, [&](Addresses addresses) { answer.set_value(std::move(addresses)); });
  return answer.get_future().get();
}

TEST(DnsResolverTest, ANameServerThatIsSilentKeepsNobodyWaiting) {
  // Both outlive the test's objects, as a look-up may.
  const auto silent = std::make_shared<std::promise<void>>();
  const auto over = std::make_shared<std::promise<void>>();
  const HostLookup lookup = [silence = silent->get_future().share(), over](
                                const std::string& host, int /*family*/) -> Addresses {
    if (host != "silent.test") return std::vector<std::string>{"10.0.0.1"};
    silence.wait();
    over->set_value();
    return std::vector<std::string>{"10.0.0.2"};
  };
  auto loop = std::make_unique<AsioLoop>("test");
  Discovery::Resolver resolver = MakeDnsResolver(*loop, lookup);
  resolver("silent.test", [](const Addresses&) { FAIL() << "nobody is there to hear it"; });
  // The other name is answered, and all is taken down, before the silent one is.
  EXPECT_THAT(*Ask(resolver, "other.test"), ElementsAre("10.0.0.1"));
  resolver = nullptr;
  loop.reset();
  silent->set_value();
  over->get_future().wait();
}

TEST(DnsResolverTest, IPv6IsAskedForOnlyWhereTheServerSaysThatThereIsNoIPv4) {
  Addresses v4 = absl::NotFoundError("no A record");
  const HostLookup lookup = [&](const std::string& /*host*/, int family) -> Addresses {
    return family == AF_INET ? v4 : Addresses(std::vector<std::string>{"[fd00::1]"});
  };
  AsioLoop loop("test");
  const Discovery::Resolver resolver = MakeDnsResolver(loop, lookup);
  EXPECT_THAT(*Ask(resolver, "worker.test"), ElementsAre("[fd00::1]"));
  v4 = std::vector<std::string>{"10.0.0.1"};
  EXPECT_THAT(*Ask(resolver, "worker.test"), ElementsAre("10.0.0.1"));
  // The question for A was lost: that is no word on whether the workers have left their addresses.
  v4 = absl::UnavailableError("temporary failure");
  EXPECT_EQ(Ask(resolver, "worker.test").status().code(), absl::StatusCode::kUnavailable);
}

TEST(DnsResolverTest, TheSystemsLookUpKnowsThisMachine) {
  EXPECT_THAT(*LookUpHost("localhost", AF_INET), ElementsAre("127.0.0.1"));
  EXPECT_EQ(LookUpHost("no-such-host.invalid", AF_INET).ok(), false);
}

}  // namespace
}  // namespace blockserve
