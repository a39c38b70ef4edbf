// A tier's check of the hello that begins a gateway's stream.
#ifndef BLOCKSERVE_RPC_TIER_HELLO_H_
#define BLOCKSERVE_RPC_TIER_HELLO_H_

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "blockserve/v1/tier.pb.h"
#include "rpc/tier_protocol.h"

namespace blockserve {

// FAILED_PRECONDITION naming what differs; empty hashes of the gateway are not checked.
inline absl::Status CheckGatewayHello(const v1::GatewayHello& hello, absl::string_view config_hash,
                                      absl::string_view tokenizer_hash) {
  if (!WorksWithTierProtocol(hello.protocol_version())) {
    return absl::FailedPreconditionError(
        absl::StrCat("protocol_version is ", hello.protocol_version(), " in the gateway and ",
                     kTierProtocolVersion, " here"));
  }
  if (!hello.config_hash().empty() && hello.config_hash() != config_hash) {
    return absl::FailedPreconditionError(
        absl::StrCat("config_hash is ", hello.config_hash().substr(0, 64), " in the gateway and ",
                     config_hash, " here: another model"));
  }
  if (!hello.tokenizer_hash().empty() && hello.tokenizer_hash() != tokenizer_hash) {
    return absl::FailedPreconditionError(
        absl::StrCat("tokenizer_hash is ", hello.tokenizer_hash().substr(0, 64),
                     " in the gateway and ", tokenizer_hash, " here: another tokenizer"));
  }
  return absl::OkStatus();
}

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TIER_HELLO_H_
