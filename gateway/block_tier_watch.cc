// BlockTier: what time tells, and who may hold what.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "gateway/block_replica.h"
#include "gateway/block_tier.h"
#include "gateway/remaining.h"

namespace blockserve {
namespace {

// Of probes alone: CachePoolOf makes no other one so small.
constexpr uint64_t kProbePool = 1;
// Longer than any process keeps sequences whose stream broke.
constexpr absl::Duration kOrphansKept = absl::Minutes(1);

}  // namespace

bool BlockTier::Suits(const Replica& replica, const SequenceSpec& spec) {
  return replica.member.usable() && replica.member.group == spec.group &&
         (spec.cache_pool == 0 || replica.keeps_pools_apart);
}

bool BlockTier::HasOther(const SequenceSpec& spec, const Replica* replica) const {
  return std::any_of(replicas_.begin(), replicas_.end(), [&](const auto& other) {
    return other.get() != replica && Suits(*other, spec) && other->in_turn();
  });
}

bool BlockTier::MayHold(const Replica& replica, const SequenceSpec& spec) {
  return Suits(replica, spec) && replica.member.IsNone(spec.not_by);
}

bool BlockTier::SomebodyMayHold(const SequenceSpec& spec) const {
  return std::any_of(replicas_.begin(), replicas_.end(),
                     [&](const auto& replica) { return MayHold(*replica, spec); });
}

bool BlockTier::HasSecondOpinion(const SequenceSpec& spec) const {
  return std::any_of(replicas_.begin(), replicas_.end(), [&](const auto& replica) {
    return MayHold(*replica, spec) && replica->in_turn();
  });
}

bool BlockTier::OnlySomeMayHold(const SequenceSpec& spec) const {
  return !spec.not_by.empty() ||
         std::any_of(replicas_.begin(), replicas_.end(), [&](const auto& replica) {
           return replica->member.usable() && replica->member.group == spec.group &&
                  !Suits(*replica, spec);
         });
}

absl::Duration BlockTier::SilenceAllowed(const Sequence& sequence) const {
  const absl::Duration bound = options_.progress_bound;
  const auto found = groups_.find(sequence.spec.group);
  if (found == groups_.end()) return bound;
  const absl::Duration allowed = found->second.appends.SilenceAllowed(bound);
  if (sequence.phase != Phase::kOpening) return allowed;
  // It computes the whole text, and may say nothing before it has.
  const std::optional<absl::Duration> per_block = found->second.opens_per_block.p99();
  if (!per_block.has_value()) return bound;
  return std::min(bound, allowed + 4 * *per_block * BlocksOf(sequence));
}

void BlockTier::Evacuate(Replica& replica) {
  if (replica.member.usable() || !replica.member.connected) return;
  const std::vector<uint64_t> held(replica.sequences.begin(), replica.sequences.end());
  for (const uint64_t handle : held) {
    Sequence& sequence = *sequences_.at(handle);
    if (sequence.phase != Phase::kIdle || !HasOther(sequence.spec, &replica)) continue;
    ++stats_.reopened_leaving;
    Detach(handle, sequence, /*close_copy=*/true);
  }
}

void BlockTier::Condemn(uint64_t incarnation, absl::string_view why) {
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->member.identity.incarnation != incarnation || replica->member.condemned) continue;
    ++stats_.condemned;
    LogError(absl::StrCat("block service '", replica->member.identity.name, "' at ",
                          replica->member.address, " ", why,
                          ": it gets nothing more until it is another process"));
    replica->member.condemned = true;
    membership_.Update(replica->member, loop_.Now());
    ReopenAll(*replica);
    if (on_change_) on_change_();
  }
}

void BlockTier::Suspect(Replica& replica, absl::string_view why) {
  if (std::exchange(replica.suspect, true)) return;
  ++stats_.ejected;
  LogWarning(absl::StrCat("block service '", replica.member.identity.name, "' ", why,
                          ": its sequences are opened elsewhere"));
}

void BlockTier::Eject(Replica& replica, absl::string_view why) {
  if (replica.health.ejected()) return;
  ++stats_.ejected;
  LogWarning(absl::StrCat("block service '", replica.member.identity.name, "' at ",
                          replica.member.address, " ", why,
                          ": its sequences are opened elsewhere until it answers a probe"));
  replica.health.Eject(loop_.Now());
}

void BlockTier::Probe(Replica& replica, absl::Time now) {
  replica.health.ProbeSent(now);
  const std::vector<int32_t>& block = groups_[replica.member.group].probe;
  // Nobody of its group has had a sequence; or what is a client's would become a page, of a pool
  // that it does not know.
  if (block.empty() || (!replica.keeps_pools_apart && replica.page_blocks == 1)) {
    replica.health.Reset();
    return;
  }
  const bool under_way =
      std::any_of(replica.items.begin(), replica.items.end(), [](const auto& entry) {
        return entry.second.sequence == 0 && entry.second.call == BlockCall::kOpen;
      });
  if (under_way || !replica.member.usable()) return;
  v1::BlockRequest& request = AddItem(replica, BlockCall::kOpen, /*handle=*/0, block.size());
  request.set_sequence(next_wire_id_++);
  request.mutable_header()->set_remaining_ms(RemainingMs(now + kProbeTime, now));
  v1::OpenSequence& open = *request.mutable_open();
  open.mutable_tokens()->Add(block.begin(), block.end());
  open.set_first_context(-1);
  open.set_close_after(true);
  open.set_cache_pool_low(kProbePool);
}

void BlockTier::WatchConnections(absl::Time now) {
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    replica->oldest_call = absl::InfiniteFuture();
  }
  for (const auto& [handle, sequence] : sequences_) {
    if (sequence->replica == nullptr || sequence->item == 0) continue;
    absl::Time& oldest = sequence->replica->oldest_call;
    oldest = std::min(oldest, sequence->sent);
  }
  std::vector<uint64_t> moved;
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (!replica->member.connected) continue;
    if (const uint64_t ping = replica->ping.Next(replica->oldest_call, now); ping != 0) {
      v1::BlockRequestBatch message;
      message.set_ping(ping);
      replica->link->Send(std::move(message));
    }
    if (!replica->ping.Unreachable(now)) continue;
    const bool others_can = std::any_of(replicas_.begin(), replicas_.end(), [&](const auto& other) {
      return other != replica && other->member.usable() && other->in_turn() &&
             other->member.group == replica->member.group && !other->ping.Doubtful(now);
    });
    if (!others_can) continue;
    Suspect(*replica, "cannot be reached");
    for (const uint64_t handle : replica->sequences) {
      const Sequence& sequence = *sequences_.at(handle);
      if (sequence.item != 0 && HasOther(sequence.spec, replica.get())) moved.push_back(handle);
    }
  }
  for (const uint64_t handle : moved) {
    ++stats_.reopened_silent;
    Reopen(handle, *sequences_.at(handle), /*close_copy=*/true);
  }
}

void BlockTier::Tick() {
  const absl::Time now = loop_.Now();
  // A tick that comes late says that the gateway itself did not run: nobody else is to blame.
  if (now - std::exchange(last_tick_, now) > absl::Milliseconds(200)) {
    for (const std::unique_ptr<Replica>& replica : replicas_) {
      replica->last_heard = std::max(replica->last_heard, now);
      replica->ping.NotBefore(now);
    }
  }
  std::erase_if(orphans_,
                [&](const auto& entry) { return now - entry.second.since >= kOrphansKept; });
  WatchConnections(now);
  MakeRoomForAudits();
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->link == nullptr && !membership_.HasTwin(replica->member, now)) Connect(*replica);
    if (replica->member.connected && replica->health.WantsProbe(now)) Probe(*replica, now);
    if (replica->full && now >= replica->full_until) {
      replica->full = false;
      SchedulePump();
    }
  }
  std::vector<uint64_t> gone;
  std::vector<uint64_t> stranded;
  std::vector<uint64_t> stalled;
  std::vector<std::pair<uint64_t, absl::Status>> nobody;
  for (const auto& [handle, sequence] : sequences_) {
    Replica* const replica = sequence->replica;
    if (sequence->wants_row && (replica == nullptr || !replica->member.connected)) {
      const TierPresence& presence = membership_.presence();
      if (presence.workers(sequence->spec.group) > 0) {
        // The others were suspect when its replica was lost; it does not wait for them for ever.
        if (replica != nullptr && now - replica->lost_at >= kReturnWait) stranded.push_back(handle);
        if (!sequence->failure.ok()) {
          // Who is out of turn may answer a probe soon.
          const bool waits =
              SomebodyMayHold(sequence->spec) && now - sequence->waits_since < kReturnWait;
          if (!waits && !HasSecondOpinion(sequence->spec)) {
            nobody.emplace_back(handle, sequence->failure);
          }
        } else if (replica == nullptr && now - sequence->waits_since >= options_.tier_wait &&
                   !SomebodyMayHold(sequence->spec)) {
          nobody.emplace_back(
              handle, absl::UnavailableError(
                          sequence->spec.not_by.empty()
                              ? "every block service is of an older build, which cannot keep the "
                                "prefix cache of a cache_salt, or of a key of its own, apart"
                              : "no other block service is there"));
        }
        continue;
      }
      if (now >= GiveUpTime(presence.AwaySince(sequence->spec.group), options_.tier_wait,
                            sequence->spec.deadline)) {
        gone.push_back(handle);
      }
    } else if (replica != nullptr && now >= sequence->again_at) {
      SendAppend(handle, *sequence);
    } else if (replica != nullptr && sequence->item != 0) {
      // A replica that says something now and then is busy; a silent one may be frozen.
      const absl::Duration patience = sequence->history.Patience(SilenceAllowed(*sequence));
      const bool silent = now - std::max(sequence->sent, replica->last_heard) >= patience;
      const bool forgotten =
          now - sequence->sent >= 6 * sequence->history.Patience(options_.progress_bound);
      if ((silent || forgotten) && HasOther(sequence->spec, replica)) {
        stalled.push_back(handle);
        if (silent) {
          Suspect(*replica, absl::StrCat("has said nothing for ",
                                         absl::FormatDuration(now - replica->last_heard)));
        }
      }
    }
  }
  for (const uint64_t handle : gone) {
    Fail(handle, absl::UnavailableError("every block service is gone"));
  }
  for (auto& [handle, status] : nobody) Fail(handle, std::move(status));
  for (const uint64_t handle : stranded) {
    Reopen(handle, *sequences_.at(handle), /*close_copy=*/true);
  }
  for (const uint64_t handle : stalled) {
    Sequence& sequence = *sequences_.at(handle);
    if (!HasOther(sequence.spec, sequence.replica)) continue;
    ++stats_.reopened_silent;
    sequence.history.Stalled();
    Reopen(handle, sequence, /*close_copy=*/true);
  }
}

}  // namespace blockserve
