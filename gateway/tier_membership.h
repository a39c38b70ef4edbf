// The workers of one tier: who has connected, who fits, who drains, and what to tell requests while
// nobody is there.
#ifndef BLOCKSERVE_GATEWAY_TIER_MEMBERSHIP_H_
#define BLOCKSERVE_GATEWAY_TIER_MEMBERSHIP_H_

#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "gateway/audit.h"
#include "gateway/connect_failures.h"
#include "gateway/tier_identity.h"

namespace blockserve {

struct TierOptions {
  absl::Duration tier_wait = absl::Seconds(10);
  absl::Duration progress_bound = absl::Seconds(10);
  int64_t max_queued = 1024;  // new sequences that wait for KV
  AuditOptions audit;
};

// A process, and where it is. What one has failed, or computed, another one is to judge: not the
// one that has replaced it there since, on the same machine.
struct WorkerProcess {
  uint64_t incarnation = 0;
  std::string address;
  friend bool operator==(const WorkerProcess&, const WorkerProcess&) = default;
};

// One worker's standing. Connecting: not connected; ready: usable(); lost: not connected again.
struct TierMember {
  std::string address;
  bool connected = false;
  bool fits = false;       // its hello agrees with this gateway's model
  bool draining = false;   // takes nothing new
  bool removed = false;    // discovery does not name it any more: as draining
  bool condemned = false;  // this process has answered wrong bits
  bool counted = false;    // in the presence of its group
  uint64_t twin = 0;       // not connected: this process is a member by another address
  TierIdentity identity;
  TierGroup group;
  ConnectFailures failures;

  bool usable() const { return connected && fits && !draining && !removed && !condemned; }
  WorkerProcess process() const { return {identity.incarnation, address}; }
  bool IsNone(const std::vector<WorkerProcess>& of) const {
    return std::none_of(of.begin(), of.end(), [this](const WorkerProcess& other) {
      return other.incarnation == identity.incarnation || other.address == address;
    });
  }
};

class TierMembership {
 public:
  // `tier`: "token worker" or "block service".
  TierMembership(std::string tier, ExpectedModel expected, absl::Time start)
      : tier_(std::move(tier)), expected_(std::move(expected)), presence_(start) {}

  // Whether a member by another address is this process, or was it a moment ago: a service ends
  // the older stream of a gateway that comes twice. Logged; the member is to be disconnected until
  // HasTwin is false.
  bool IsTwin(TierMember& member, const TierIdentity& identity, absl::Time now);
  bool HasTwin(const TierMember& member, absl::Time now) const;
  // The member has said hello. False, logged once for each reason: it does not fit and is not used.
  bool Connected(TierMember& member, TierIdentity identity, absl::Time now);
  // The stream broke, or could not be made; logged, within bounds. True: the process may have died
  // of what it had. One that drains, or ends its stream in order, has not, nor one whose stream
  // ended for a message or a queue that was too large.
  bool Lost(TierMember& member, const absl::Status& status, absl::Time now);
  // To be called when `draining`, `removed` or `condemned` has changed.
  void Update(TierMember& member, absl::Time now);
  void Forget(const TierMember& member) {
    refusals_.erase(member.address);
    processes_.erase(member.address);
  }

  const std::string& tier() const { return tier_; }
  const TierPresence& presence() const { return presence_; }
  // For a request that waits until `deadline`. OK while a worker is there, or it is worth waiting
  // for one (GiveUpTime). Afterwards UNAVAILABLE, naming a worker that is there but does not fit;
  // FAILED_PRECONDITION where no other was ever there.
  absl::Status Verdict(absl::Duration tier_wait, absl::Time deadline, absl::Time now) const;

 private:
  // The process that is, or was last, at an address.
  struct Process {
    uint64_t incarnation = 0;
    absl::Time lost_at = absl::InfiniteFuture();
  };
  // The address, other than `address`, at which the process is; empty: none.
  std::string OtherAddress(const std::string& address, uint64_t incarnation, absl::Time now) const;

  const std::string tier_;
  const ExpectedModel expected_;
  TierPresence presence_;
  bool ever_fitted_ = false;                     // a worker that fits has been there
  std::map<std::string, std::string> refusals_;  // by address: why it is not used
  std::map<std::string, Process> processes_;     // by address
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TIER_MEMBERSHIP_H_
