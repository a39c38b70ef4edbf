// What both tiers and the gateway must agree on beyond the messages.
#ifndef BLOCKSERVE_RPC_TIER_PROTOCOL_H_
#define BLOCKSERVE_RPC_TIER_PROTOCOL_H_

#include <cstdint>

namespace blockserve {

// Versions N and N - 1 of the tier protocols work together: the newer side keeps to the older.
inline constexpr uint32_t kTierProtocolVersion = 1;

// Whether a peer of this version can be talked to. 0 is not a version.
constexpr bool WorksWithTierProtocol(uint32_t version) {
  return version > 0 && version + 1 >= kTierProtocolVersion && version <= kTierProtocolVersion + 1;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TIER_PROTOCOL_H_
