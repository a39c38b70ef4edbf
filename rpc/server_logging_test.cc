#include "rpc/server_logging.h"

#include <grpc/grpc.h>
#include <grpc/support/log.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

int LinesWith(const std::string& text, const std::string& words) {
  int lines = 0;
  for (size_t at = 0; (at = text.find(words, at)) != std::string::npos; at += words.size()) ++lines;
  return lines;
}

// A handshake that fails is one, and a stranger may make any number of them.
TEST(ServerLogging, ALineOfTheLibraryThatComesAgainAndAgainIsLeftOut) {
  grpc_init();  // before that it writes nothing
  testing::internal::CaptureStderr();
  ASSERT_TRUE(ConfigureServerLogging({.program = "p"}).ok());
  for (int i = 0; i < 1000; ++i) gpr_log(GPR_ERROR, "a stranger");
  gpr_log(GPR_ERROR, "another line");
  FlushLog();
  const std::string written = testing::internal::GetCapturedStderr();
  EXPECT_GE(LinesWith(written, "a stranger"), 1);
  EXPECT_LE(LinesWith(written, "a stranger"), 100);
  EXPECT_THAT(written, testing::HasSubstr("the next ones, for some seconds"));
  EXPECT_EQ(LinesWith(written, "another line"), 1);
  ASSERT_TRUE(ConfigureLogging({}).ok());
  grpc_shutdown();
}

}  // namespace
}  // namespace blockserve
