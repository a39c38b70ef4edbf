// Who may call: API keys, kept as hashes in a file that is read again when it changes.
//
// A key is "bsk_ID_SECRET": ID finds its line in the file and is no secret, SECRET is 256 random
// bits. The file has SHA-256(salt, key). A slow hash protects words that people choose; against 256
// random bits nobody can search, and every request would pay for it.
#ifndef BLOCKSERVE_GATEWAY_API_KEYS_H_
#define BLOCKSERVE_GATEWAY_API_KEYS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/mutex.h"

namespace blockserve {

// What one key may do, in each gateway process. 0, and a weight of 1: nothing is said, the
// gateway's other limits hold.
struct ApiKeyLimits {
  int32_t max_requests = 0;        // in flight: queued or running
  int64_t max_tokens = 0;          // in flight: prompts and all that may be generated
  double requests_per_second = 0;  // sustained
  int32_t burst = 0;               // at once, above the rate
  double weight = 1;               // share against other keys
  uint32_t highest_priority = 1;   // 1 high, 2 normal, 3 batch
  bool own_prefix_cache = false;   // its requests share KV among themselves alone

  bool operator==(const ApiKeyLimits&) const = default;
};

struct ApiKey {
  std::string
      name;  // for logs and limits; several keys may share it, for changing from one to the next
  ApiKeyLimits limits;
  std::string salt;  // [16] bytes
  std::string hash;  // [32] bytes: SHA-256 of salt and key
};

// The keys of one file: one JSON object a line, lines that begin with # and empty ones passed over.
//   {"id": "5f0c8e1a", "name": "alice", "salt": HEX, "sha256": HEX, "max_requests": 8, …}
class ApiKeyTable {
 public:
  // INVALID_ARGUMENT: "LINE: what is wrong". An empty table lets nobody in.
  static absl::StatusOr<ApiKeyTable> Parse(absl::string_view text);

  // The key; UNAUTHENTICATED, with the same words and in the same time, for all that is none.
  absl::StatusOr<const ApiKey*> Find(absl::string_view key) const;
  // Limits of a name: of its first line, but its prefix cache is its own if any line says so. Null:
  // there is no such name.
  const ApiKeyLimits* Limits(absl::string_view name) const;
  size_t size() const { return keys_.size(); }

 private:
  std::map<std::string, ApiKey, std::less<>> keys_;          // by id
  std::map<std::string, ApiKeyLimits, std::less<>> limits_;  // by name
};

// A new key and its line. Draws random bits. INVALID_ARGUMENT: "\"FIELD\" what is wrong".
struct NewApiKey {
  std::string key;   // to be given to its user, and kept nowhere
  std::string line;  // of the file
};
absl::StatusOr<NewApiKey> MakeApiKey(absl::string_view name, const ApiKeyLimits& limits);

// The table of a file that may change. Thread-safe.
class ApiKeys {
 public:
  // Errors: INVALID_ARGUMENT naming `flag`, the file and the line.
  static absl::StatusOr<std::unique_ptr<ApiKeys>> Load(const std::string& path,
                                                       absl::string_view flag);

  // The name of the key's owner; UNAUTHENTICATED. A file that has changed is read first (looked at
  // once a second at most); while it cannot be read, what was read last holds, and the log says so.
  absl::StatusOr<std::string> Authenticate(absl::string_view key);
  // The same from an Authorization header, "Bearer KEY"; an empty one is that of a request without.
  absl::StatusOr<std::string> AuthenticateHeader(absl::string_view authorization);
  // PERMISSION_DENIED where the name's keys may not ask for it.
  absl::Status CheckPriority(absl::string_view name, uint32_t priority);
  // Of a request that names none: normal, or the highest that the name's keys may ask for.
  uint32_t DefaultPriority(absl::string_view name);
  // Whether requests of the name share KV among themselves alone. Of one that is gone from the file
  // it is not known any more, and they do.
  bool OwnsPrefixCache(absl::string_view name);
  // Those of a name that is gone from the file have no limits: what runs goes on.
  ApiKeyLimits Limits(absl::string_view name);

 private:
  ApiKeys(std::string path, std::string flag) : path_(std::move(path)), flag_(std::move(flag)) {}
  std::shared_ptr<const ApiKeyTable> Current();
  // Of what the file holds, or why it cannot be read.
  absl::StatusOr<std::shared_ptr<const ApiKeyTable>> Parse(
      const absl::StatusOr<std::string>& text) const;

  const std::string path_;
  const std::string flag_;
  Mutex mutex_;
  std::shared_ptr<const ApiKeyTable> table_ ABSL_GUARDED_BY(mutex_);
  absl::StatusOr<std::string> text_ ABSL_GUARDED_BY(mutex_);  // that was read last
  absl::Time looked_at_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_API_KEYS_H_
