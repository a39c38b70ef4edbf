#include "gateway/cache_pool.h"

#include <string>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "model/fingerprint.h"

namespace blockserve {

absl::uint128 CachePoolOf(absl::string_view owner, absl::string_view salt) {
  if (owner.empty() && salt.empty()) return 0;
  Sha256 hash;
  hash.Update(absl::StrCat("blockserve cache pool 1\n", owner.size(), "\n"));
  hash.Update(owner);
  hash.Update(salt);
  absl::uint128 pool = 0;
  for (const char byte : absl::HexStringToBytes(hash.Hex().substr(0, 32))) {
    pool = (pool << 8) | static_cast<unsigned char>(byte);
  }
  return pool;
}

}  // namespace blockserve
