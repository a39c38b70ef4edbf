#include "rpc/connection_advice.h"

#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(ConnectionAdvice, NamesTheFlagForACertificateOfAnotherName) {
  ClientTlsFiles tls;
  tls.ca = "ca.crt";
  for (const char* words : {"Peer name 10.0.0.1 is not in peer certificate",
                            "Custom verification check failed with error: UNAUTHENTICATED: "
                            "Hostname Verification Check failed."}) {
    EXPECT_EQ(ConnectionAdvice(words, tls),
              " (the name in its certificate is needed as --tls-name)");
  }
}

}  // namespace
}  // namespace blockserve
