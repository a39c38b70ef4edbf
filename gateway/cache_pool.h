// Which requests may share KV of prompts that begin alike.
#ifndef BLOCKSERVE_GATEWAY_CACHE_POOL_H_
#define BLOCKSERVE_GATEWAY_CACHE_POOL_H_

#include "absl/numeric/int128.h"
#include "absl/strings/string_view.h"

namespace blockserve {

// The cache pool of a request (OpenSequence.cache_pool_* of block_decoder.proto), the same in every
// gateway: 0, the common one, without owner and salt; else the first 128 bits of a SHA-256 of both.
// `owner`: name of the key whose pools are its own; empty: of none. What is hashed tells where the
// owner's name ends and that there is one, so that no choice of salt makes a request one of another
// owner's, or of one without owner: that would take a second preimage of 128 bits.
absl::uint128 CachePoolOf(absl::string_view owner, absl::string_view salt);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CACHE_POOL_H_
