// Who a worker is, whether it fits this gateway's model, and which workers can stand in for each
// other.
#ifndef BLOCKSERVE_GATEWAY_TIER_IDENTITY_H_
#define BLOCKSERVE_GATEWAY_TIER_IDENTITY_H_

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "rpc/tier_protocol.h"

namespace blockserve {

// What a worker's hello says of it.
struct TierIdentity {
  uint32_t protocol_version = 0;
  uint64_t incarnation = 0;
  std::string config_hash;
  std::string tokenizer_hash;
  std::string part_hash;
  std::string numeric_id;
  std::string name;
  int32_t block_length = 0;
  int32_t context_width = 0;
  int32_t vocab_size = 0;          // token tier only; 0: not told
  bool knows_context_type = true;  // block tier only: its rows are of a type that we know
  std::string model_digest;        // of both parts of its model; empty: not told
  std::string impossible;          // what it says of its capacity that cannot be; empty: nothing
};

// A capacity that a hello tells. Beyond any real one, so that sums and products of what is told
// stay far from overflow.
struct ToldCapacity {
  const char* field;
  int64_t value;
  int64_t most;
};
// The first that is below 0 or above its bound, as TierIdentity::impossible.
std::string ImpossibleCapacity(std::initializer_list<ToldCapacity> told);

// This gateway's own view of the model.
struct ExpectedModel {
  std::string config_hash;
  std::string tokenizer_hash;
  int32_t block_length = 0;
  int32_t context_width = 0;
  int32_t vocab_size = 0;
};

// FAILED_PRECONDITION naming the worker and the first thing that differs.
absl::Status CheckIdentity(const ExpectedModel& expected, const TierIdentity& worker,
                           absl::string_view tier, absl::string_view address);

// Workers of one group compute the same bits: a request stays with the group that it began with.
struct TierGroup {
  std::string part_hash;
  std::string numeric_id;
  std::string model_digest = "";
  friend bool operator==(const TierGroup& a, const TierGroup& b) {
    return a.part_hash == b.part_hash && a.numeric_id == b.numeric_id &&
           a.model_digest == b.model_digest;
  }
  friend bool operator<(const TierGroup& a, const TierGroup& b) {
    return std::tie(a.part_hash, a.numeric_id, a.model_digest) <
           std::tie(b.part_hash, b.numeric_id, b.model_digest);
  }
};

// Which groups of a tier have workers, and since when the others have none.
class TierPresence {
 public:
  explicit TierPresence(absl::Time start) : away_since_(start), last_loss_(start) {}

  void Add(const TierGroup& group, absl::Time now);
  void Remove(const TierGroup& group, absl::Time now);

  int workers(const TierGroup& group) const;
  int workers() const { return total_; }
  // The time at which the last worker went; InfiniteFuture while there is one. A group never seen
  // has been away as long as the tier, or since the start.
  absl::Time AwaySince(const TierGroup& group) const;
  absl::Time AwaySince() const { return total_ > 0 ? absl::InfiniteFuture() : away_since_; }
  // The last time at which a worker went; the start, if none has.
  absl::Time LastLoss() const { return last_loss_; }
  // The group with the most workers; of equals, the one that has grown last, as of pairs.
  std::optional<TierGroup> Largest() const;
  // Those that have workers, by name.
  struct Group {
    TierGroup group;
    int workers = 0;
    absl::Time grown_at;  // when its last worker came
  };
  std::vector<Group> Groups() const;

 private:
  struct Entry {
    int workers = 0;
    absl::Time away_since;
    absl::Time grown_at;
  };
  std::map<TierGroup, Entry> groups_;
  int total_ = 0;
  absl::Time away_since_;
  absl::Time last_loss_;
};

// A group of each tier that belong to one model: a request is served by such a pair and no other.
// Of several pairs the one whose smaller side is largest, then the larger one; of equals, the one
// that has grown last: in an upgrade that is the one that stays.
struct TierPair {
  TierGroup block;
  TierGroup token;
};
// `may_serve`: of which pairs it is to be one; null: of all.
std::optional<TierPair> BestPair(
    const TierPresence& blocks, const TierPresence& tokens,
    const std::function<bool(const TierGroup& block, const TierGroup& token)>& may_serve = nullptr);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TIER_IDENTITY_H_
