#include "rpc/listen_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

// Sockets of one address, while this is there.
class Bound {
 public:
  explicit Bound(absl::string_view address, PortUse use = PortUse::kAlone)
      : sockets_(BindSockets("--listen", address, use)) {}
  ~Bound() {
    if (!sockets_.ok()) return;
    for (const int fd : *sockets_) close(fd);
  }
  const absl::StatusOr<std::vector<int>>& sockets() const { return sockets_; }
  int port() const { return PortOf(sockets_->front()); }
  std::string address() const { return absl::StrCat("127.0.0.1:", port()); }

 private:
  const absl::StatusOr<std::vector<int>> sockets_;
};

TEST(BindSockets, SaysWhatIsNoAddress) {
  for (const char* address :
       {"", "80", ":80", "a", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:65536",
        "127.0.0.1:99999999999", "127.0.0.1:+80", "127.0.0.1: 80"}) {
    const absl::Status status = Bound(address).sockets().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_EQ(status.message(),
              absl::StrCat("--listen is \"", address, "\"; it must be host:port"));
  }
  const std::string no_host = absl::StrCat(std::string(64, 'x'), ":1");  // too long for any
  const absl::Status status = Bound(no_host).sockets().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              StartsWith(absl::StrCat("--listen ", no_host, ": cannot listen there: ")));
}

TEST(BindSockets, BindsEveryAddressOfAHostToOnePort) {
  for (const char* address : {"127.0.0.1:0", "localhost:0", "0.0.0.0:0", "[::]:0"}) {
    const Bound bound(address);
    ASSERT_TRUE(bound.sockets().ok()) << bound.sockets().status();
    ASSERT_FALSE(bound.sockets()->empty());
    EXPECT_GT(bound.port(), 0);
    for (const int fd : *bound.sockets()) EXPECT_EQ(PortOf(fd), bound.port()) << address;
  }
  EXPECT_EQ(FamilyOf(Bound("127.0.0.1:0").sockets()->front()), AF_INET);
}

TEST(BindSockets, APortHasOneOwnerUnlessAllShareIt) {
  const Bound alone("127.0.0.1:0");
  ASSERT_EQ(listen(alone.sockets()->front(), 1), 0);
  for (const PortUse use : {PortUse::kAlone, PortUse::kShared}) {
    const absl::Status status = Bound(alone.address(), use).sockets().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("in use"));
  }
  const Bound first("127.0.0.1:0", PortUse::kShared);
  ASSERT_EQ(listen(first.sockets()->front(), 1), 0);
  EXPECT_TRUE(Bound(first.address(), PortUse::kShared).sockets().ok());
  EXPECT_FALSE(Bound(first.address(), PortUse::kAlone).sockets().ok());
}

TEST(CheckListenAddresses, FindsTwoThatWouldHaveOnePort) {
  std::string free;
  {
    const Bound bound("127.0.0.1:0");
    free = bound.address();
  }
  EXPECT_TRUE(CheckListenAddresses({{"--a", free}, {"--b", ""}, {"--c", "unix:/x"}}).ok());
  EXPECT_TRUE(CheckListenAddresses({{"--a", free}}).ok()) << "nothing stays bound";
  const absl::Status status = CheckListenAddresses({{"--a", free}, {"--b", free}});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), StartsWith(absl::StrCat("--b ", free)));
  EXPECT_TRUE(
      CheckListenAddresses({{"--a", free, PortUse::kShared}, {"--b", free, PortUse::kShared}})
          .ok());
  EXPECT_THAT(std::string(CheckListenAddresses({{"--a", free}, {"--b", "80"}}).message()),
              StartsWith("--b is \"80\""));
}

TEST(BoundAddress, HasThePortThatWasBound) {
  EXPECT_EQ(BoundAddress("127.0.0.1:0", 17), "127.0.0.1:17");
  EXPECT_EQ(BoundAddress("[::1]:0", 17), "[::1]:17");
  EXPECT_EQ(BoundAddress("unix:/a:1", 17), "unix:/a:1");
}

TEST(IsLoopback, IsWhatNoOtherMachineReaches) {
  for (const char* address : {"127.0.0.1:1", "127.1.2.3:1", "localhost:1", "[::1]:1", "unix:/a"}) {
    EXPECT_TRUE(IsLoopback(address)) << address;
  }
  for (const char* address : {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "host:1", "1127.0.0.1:1"}) {
    EXPECT_FALSE(IsLoopback(address)) << address;
  }
}

}  // namespace
}  // namespace blockserve
