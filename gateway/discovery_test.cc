#include "gateway/discovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "gateway/manual_loop.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A name server and a record of what was announced.
class DiscoveryTest : public ::testing::Test {
 protected:
  std::unique_ptr<Discovery> Make(const std::string& list) {
    absl::StatusOr<std::vector<DiscoveryTarget>> targets = ParseTargets(list, "--token-services");
    EXPECT_TRUE(targets.ok()) << targets.status();
    return std::make_unique<Discovery>(
        loop_, "--token-services", *targets, absl::Seconds(2),
        [this](const std::string& host, auto done) {
          ++lookups_;
          done(names_[host]);
        },
        Discovery::Listener{[this](const std::string& a) { events_.push_back("+" + a); },
                            [this](const std::string& a) { events_.push_back("-" + a); }});
  }
  std::vector<std::string> Events() { return std::exchange(events_, {}); }

  ManualLoop loop_;
  std::map<std::string, absl::StatusOr<std::vector<std::string>>> names_;
  std::vector<std::string> events_;
  int lookups_ = 0;
};

TEST_F(DiscoveryTest, FixedAddressesAreAnnouncedOnceAndNotLookedUp) {
  const auto discovery = Make("10.0.0.1:5, [::1]:6,inproc:token");
  discovery->Start();
  loop_.Advance(absl::Seconds(10));
  EXPECT_THAT(Events(), ElementsAre("+10.0.0.1:5", "+[::1]:6", "+inproc:token"));
  EXPECT_EQ(lookups_, 0);
}

TEST_F(DiscoveryTest, EveryAddressOfANameIsAWorkerAndChangesAreSeen) {
  names_["tokens"] = std::vector<std::string>{"10.0.0.1", "10.0.0.2"};
  const auto discovery = Make("tokens:7000");
  discovery->Start();
  EXPECT_THAT(Events(), ElementsAre("+10.0.0.1:7000", "+10.0.0.2:7000"));
  loop_.Advance(absl::Seconds(5));
  EXPECT_THAT(Events(), IsEmpty());
  names_["tokens"] = std::vector<std::string>{"10.0.0.2", "10.0.0.3"};
  loop_.Advance(absl::Seconds(2));
  EXPECT_THAT(Events(), ElementsAre("+10.0.0.3:7000", "-10.0.0.1:7000"));
}

TEST_F(DiscoveryTest, AFailingNameServerTakesNothingAway) {
  names_["tokens"] = std::vector<std::string>{"10.0.0.1"};
  const auto discovery = Make("tokens:7000");
  discovery->Start();
  Events();
  names_["tokens"] = absl::UnavailableError("no answer");
  loop_.Advance(absl::Seconds(10));
  EXPECT_THAT(Events(), IsEmpty());
  names_["tokens"] = std::vector<std::string>{"10.0.0.9"};
  loop_.Advance(absl::Seconds(2));
  EXPECT_THAT(Events(), ElementsAre("+10.0.0.9:7000", "-10.0.0.1:7000"));
}

TEST_F(DiscoveryTest, TwoNamesOfOneAddressAreOneWorker) {
  names_["a"] = std::vector<std::string>{"10.0.0.1"};
  names_["b"] = std::vector<std::string>{"10.0.0.1"};
  const auto discovery = Make("a:1,b:1");
  discovery->Start();
  EXPECT_THAT(Events(), ElementsAre("+10.0.0.1:1"));
  names_["a"] = std::vector<std::string>{};
  loop_.Advance(absl::Seconds(2));
  EXPECT_THAT(Events(), IsEmpty());
  names_["b"] = std::vector<std::string>{};
  loop_.Advance(absl::Seconds(2));
  EXPECT_THAT(Events(), ElementsAre("-10.0.0.1:1"));
}

TEST_F(DiscoveryTest, StopsWhenDestroyed) {
  names_["a"] = std::vector<std::string>{"10.0.0.1"};
  auto discovery = Make("a:1");
  discovery->Start();
  discovery.reset();
  const int before = lookups_;
  loop_.Advance(absl::Seconds(10));
  EXPECT_EQ(lookups_, before);
}

TEST(ParseTargets, NamesTheFlagAndTheEntry) {
  for (const char* const bad :
       {"", "host", "host:", "host:0", "host:70000", ":5", "::1:5", "a:1,,b:2", "host:x"}) {
    const auto targets = ParseTargets(bad, "--block-services");
    EXPECT_EQ(targets.status().code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(targets.status().message(), HasSubstr("--block-services")) << bad;
  }
}

}  // namespace
}  // namespace blockserve
