#include "rpc/health_server.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "rpc/health_probe_for_test.h"
#include "rpc/server.h"

namespace blockserve {
namespace {

using testing::HasSubstr;

constexpr char kAnyPort[] = "127.0.0.1:0";

// Asks until the answer is `wanted`; false after a minute.
bool Becomes(const std::shared_ptr<grpc::Channel>& channel, const std::string& service,
             Health wanted) {
  const absl::Time limit = absl::Now() + absl::Minutes(1);
  while (Check(channel, service) != wanted) {
    if (absl::Now() > limit) return false;
  }
  return true;
}

TEST(HealthServer, ServesHealthAloneWhateverOtherServersServe) {
  auto health = HealthServer::Start(kAnyPort);
  ASSERT_TRUE(health.ok()) << health.status();
  ServerOptions options;
  options.listen_address = kAnyPort;
  auto server = RpcServer::Start(options, {});
  ASSERT_TRUE(server.ok()) << server.status();
  std::string response;
  const std::string method = "/grpc.channelz.v1.Channelz/GetServers";
  EXPECT_EQ(Call(Dial((*health)->address()), method, "", response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(Call(Dial((*server)->address()), method, "", response).ok());
}

TEST(HealthServer, LoadingIsLiveButNeitherStartedNorReady) {
  auto health = HealthServer::Start(kAnyPort);
  ASSERT_TRUE(health.ok()) << health.status();
  const auto channel = Dial((*health)->address());
  EXPECT_EQ(Check(channel, kStartupService), Health::kNotServing);
  EXPECT_EQ(Check(channel, kReadinessService), Health::kNotServing);
  EXPECT_EQ(Check(channel), Health::kNotServing);
  EXPECT_EQ(Check(channel, kLivenessService), Health::kServing);
  EXPECT_EQ(Check(channel, "no-such-service"), Health::kNoAnswer);
}

TEST(HealthServer, DrainingIsStartedAndLiveButNotReady) {
  auto health = HealthServer::Start(kAnyPort);
  ASSERT_TRUE(health.ok()) << health.status();
  const auto channel = Dial((*health)->address());
  (*health)->SetReady();
  for (const char* service : {kStartupService, kReadinessService, kLivenessService, ""}) {
    EXPECT_EQ(Check(channel, service), Health::kServing) << service;
  }
  (*health)->SetDraining();
  EXPECT_EQ(Check(channel, kStartupService), Health::kServing);
  EXPECT_EQ(Check(channel, kReadinessService), Health::kNotServing);
  EXPECT_EQ(Check(channel), Health::kNotServing);
  EXPECT_EQ(Check(channel, kLivenessService), Health::kServing);
}

TEST(HealthServer, AStuckThreadEndsLivenessAloneAndAMoveBringsItBack) {
  auto health = HealthServer::Start(kAnyPort);
  ASSERT_TRUE(health.ok()) << health.status();
  const auto channel = Dial((*health)->address());
  const auto idle = std::make_shared<Progress>();
  const auto stuck = std::make_shared<Progress>();
  (*health)->WatchProgress({idle, stuck}, absl::Milliseconds(20));
  (*health)->SetReady();
  stuck->Add(2);
  EXPECT_TRUE(Becomes(channel, kLivenessService, Health::kNotServing));
  EXPECT_EQ(Check(channel, kReadinessService), Health::kServing);
  EXPECT_EQ(Check(channel, kStartupService), Health::kServing);
  stuck->Done(2);
  EXPECT_TRUE(Becomes(channel, kLivenessService, Health::kServing));
}

TEST(HealthServer, NoAddressIsNoPort) {
  auto health = HealthServer::Start("");
  ASSERT_TRUE(health.ok()) << health.status();
  EXPECT_EQ((*health)->address(), "");
  (*health)->WatchProgress({std::make_shared<Progress>()}, absl::Seconds(1));
  (*health)->SetReady();
  (*health)->SetDraining();
}

TEST(HealthServer, AnAddressThatCannotBeHadIsAnErrorThatNamesTheFlag) {
  auto first = HealthServer::Start(kAnyPort);
  ASSERT_TRUE(first.ok()) << first.status();
  const auto taken = HealthServer::Start((*first)->address());
  ASSERT_FALSE(taken.ok());
  EXPECT_THAT(std::string(taken.status().message()),
              HasSubstr(absl::StrCat("--health-listen ", (*first)->address())));
  EXPECT_EQ(HealthServer::Start("nowhere").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace blockserve
