#include "gateway/connect_failures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

namespace blockserve {
namespace {

using ::testing::HasSubstr;

const absl::Status kRefused = absl::UnavailableError(
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect "
    "to remote host: Connection refused");

struct Failures {
  std::string Lost(const absl::Status& status) {
    return failures.Lost("block service", "host:1", status, left, now);
  }
  ConnectFailures failures;
  bool left = false;
  absl::Time now = absl::FromUnixSeconds(1000);
};

TEST(ConnectFailures, AReasonIsToldAfterAFewSecondsAndThenOnceAMinute) {
  Failures worker;
  const absl::Time begin = worker.now;
  std::vector<int64_t> told;
  for (; worker.now < begin + absl::Seconds(130); worker.now += absl::Seconds(1)) {
    const std::string line = worker.Lost(kRefused);
    if (line.empty()) continue;
    EXPECT_EQ(line,
              "block service at host:1 cannot be reached: UNKNOWN: ipv4:127.0.0.1:1: Failed to "
              "connect to remote host: Connection refused");
    told.push_back(absl::ToInt64Seconds(worker.now - begin));
  }
  EXPECT_EQ(told, (std::vector<int64_t>{5, 65, 125}));
}

TEST(ConnectFailures, AnotherReasonIsToldAtOnceAndTwoByTurnsNoMoreOften) {
  Failures worker;
  worker.Lost(kRefused);
  worker.now += ConnectFailures::kQuiet;
  EXPECT_NE(worker.Lost(kRefused), "");
  EXPECT_THAT(worker.Lost(absl::UnavailableError("bad certificate")), HasSubstr("certificate"));
  for (int i = 0; i < 10; ++i) {
    worker.now += absl::Seconds(2);
    EXPECT_EQ(worker.Lost(kRefused), "");
    EXPECT_EQ(worker.Lost(absl::UnavailableError("bad certificate")), "");
  }
}

TEST(ConnectFailures, ReasonsThatAreNeverTheSameAreBounded) {
  Failures worker;
  worker.Lost(kRefused);
  worker.now += ConnectFailures::kQuiet;
  size_t told = 0;
  for (int i = 0; i < 20; ++i) {
    told += worker.Lost(absl::UnavailableError(std::string(1, static_cast<char>('a' + i)))) != "";
  }
  EXPECT_EQ(told, ConnectFailures::kMostLines);
}

TEST(ConnectFailures, NothingIsToldOfAWorkerThatIsSoonBack) {
  Failures worker;
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(worker.Lost(absl::UnavailableError("Socket closed")), "");
    worker.now += ConnectFailures::kQuiet - absl::Seconds(1);
    EXPECT_EQ(worker.Lost(kRefused), "");
    worker.failures.Connected();
    worker.now += absl::Seconds(1);
  }
}

TEST(ConnectFailures, NobodyIsMissedWhereOneHasLeftButWhoIsThereIsTold) {
  Failures worker;
  worker.left = true;
  worker.Lost(absl::OkStatus());
  worker.now += absl::Hours(1);
  EXPECT_EQ(worker.Lost(kRefused), "");
  EXPECT_THAT(worker.Lost(absl::UnavailableError("bad certificate")), HasSubstr("certificate"));
}

TEST(ConnectFailures, AnotherServiceIsNamedAsSuch) {
  Failures worker;
  const absl::Status status = absl::UnimplementedError("");
  worker.Lost(status);
  worker.now += ConnectFailures::kQuiet;
  EXPECT_EQ(worker.Lost(status), "what listens at host:1 is no block service");
  EXPECT_EQ(worker.Lost(absl::UnimplementedError("status: 404")),
            "what listens at host:1 is no block service: status: 404");
}

TEST(ConnectFailures, ItIsOneBoundedLine) {
  Failures worker;
  worker.Lost(kRefused);
  worker.now += ConnectFailures::kQuiet;
  EXPECT_THAT(worker.Lost(absl::UnknownError("one\r\n\ttwo\x1b[0m \xff")),
              HasSubstr(": one two?[0m ?"));
  EXPECT_LT(worker.Lost(absl::UnknownError(std::string(100000, 'x'))).size(), 400u);
  EXPECT_THAT(worker.Lost(absl::UnknownError("")), HasSubstr(": UNKNOWN"));
}

}  // namespace
}  // namespace blockserve
