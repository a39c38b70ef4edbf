// BlockTier: the life of a sequence, whichever replica holds it.
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gateway/block_replica.h"
#include "gateway/block_tier.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

// In the queue: behind whatever has begun and is waited for.
constexpr uint32_t kPriorityAside = 4;

}  // namespace

absl::StatusOr<uint64_t> BlockTier::Open(SequenceSpec spec) {
  if (queue_.new_items() >= options_.max_queued) {
    Pump();  // some of those that wait may have come in this very turn
    if (queue_.new_items() >= options_.max_queued) {
      return NoRoomYet(
          absl::StrCat(queue_.new_items(), " requests wait for room already; try again later"));
    }
  }
  const auto [handle, sequence] = Add(std::move(spec));
  sequence->wants_row = true;
  sequence->next_score_block = sequence->spec.first_context;
  Enqueue(handle, *sequence);
  return handle;
}

std::pair<uint64_t, BlockTier::Sequence*> BlockTier::Add(SequenceSpec spec) {
  const uint64_t handle = next_handle_++;
  std::unique_ptr<Sequence>& sequence = sequences_[handle];
  sequence = std::make_unique<Sequence>();
  sequence->spec = std::move(spec);
  sequence->prompt_blocks = static_cast<int64_t>(sequence->spec.prompt->size()) / block_length_;
  return {handle, sequence.get()};
}

uint64_t BlockTier::OpenBegun(SequenceSpec spec) {
  const auto [handle, sequence] = Add(std::move(spec));
  sequence->wants_row = true;
  sequence->begun = true;
  Enqueue(handle, *sequence);
  return handle;
}

uint64_t BlockTier::Fork(uint64_t parent, SequenceSpec spec) {
  const auto [handle, sequence] = Add(std::move(spec));
  sequence->begun = true;  // its request has: it does not stand in line with new ones
  const auto found = sequences_.find(parent);
  if (found == sequences_.end()) return handle;
  const Sequence& from = *found->second;
  const bool there = from.phase == Phase::kIdle || from.phase == Phase::kAppending;
  // Without a parent to copy, it is opened from its tokens when its first row is wanted.
  if (!there || !from.replica->member.usable()) return handle;
  sequence->replica = from.replica;
  sequence->wire_id = next_wire_id_++;
  sequence->parent_wire_id = from.wire_id;
  from.replica->sequences.insert(handle);
  SendFork(handle, *sequence);
  return handle;
}

void BlockTier::Extend(uint64_t handle, absl::Span<const int32_t> block) {
  const auto found = sequences_.find(handle);
  if (found == sequences_.end()) return;
  Sequence& sequence = *found->second;
  sequence.spec.more.insert(sequence.spec.more.end(), block.begin(), block.end());
  sequence.wants_row = true;
  if (sequence.phase == Phase::kDetached) {
    Enqueue(handle, sequence);
  } else if (sequence.phase == Phase::kIdle) {
    Replica& replica = *sequence.replica;
    const bool stays = replica.member.usable() && replica.in_turn();
    if (!stays && HasOther(sequence.spec, &replica)) {
      ++(replica.suspect            ? stats_.reopened_silent
         : replica.health.ejected() ? stats_.reopened_failed
                                    : stats_.reopened_leaving);
      Reopen(handle, sequence, /*close_copy=*/true);
    } else {
      SendAppend(handle, sequence);
    }
  }
  // Forking: the append follows the fork's reply. Failed: the owner is about to hear.
}

void BlockTier::Close(uint64_t handle) {
  const auto found = sequences_.find(handle);
  if (found == sequences_.end()) return;
  Sequence& sequence = *found->second;
  if (sequence.phase == Phase::kWaiting) queue_.Erase(sequence.place);
  Detach(handle, sequence, /*close_copy=*/true);
  const uint64_t audit = sequence.audit;
  sequences_.erase(found);
  if (const auto held = audits_.find(audit); held != audits_.end()) {
    const uint64_t shadow = held->second.shadow;
    audits_.erase(held);
    Close(shadow);
  }
  SchedulePump();
}

int64_t BlockTier::cached_blocks(uint64_t handle) const {
  const auto found = sequences_.find(handle);
  return found == sequences_.end() ? 0 : found->second->cached_blocks;
}

void BlockTier::Enqueue(uint64_t handle, Sequence& sequence) {
  if (sequence.phase == Phase::kWaiting) return;
  if (!sequence.placed || (sequence.begun && sequence.place.is_new)) {
    const uint32_t priority = sequence.aside ? kPriorityAside : sequence.spec.priority;
    sequence.place = queue_.NextPlace(!sequence.begun, priority);
    sequence.placed = true;
  }
  queue_.Insert(sequence.place, handle);
  sequence.waits_since = loop_.Now();
  sequence.phase = Phase::kWaiting;
  SchedulePump();
}

void BlockTier::Detach(uint64_t handle, Sequence& sequence, bool close_copy) {
  Replica* const replica = std::exchange(sequence.replica, nullptr);
  if (replica != nullptr) {
    replica->sequences.erase(handle);
    if (sequence.item != 0) {
      replica->items.erase(sequence.item);
      replica->promised_pages -= sequence.promised_pages;
      if (sequence.phase == Phase::kOpening) {
        --replica->opens;
        replica->reopens -= sequence.begun;
      }
      // No reply is waited for: one that closes its copy ends the call too, and without, the
      // process that had it is gone.
    }
    if (close_copy) CloseCopy(*replica, sequence.wire_id);
    SchedulePump();
    RetireIfEmpty(*replica);
  }
  sequence.item = 0;
  sequence.promised_pages = 0;
  sequence.again_at = sequence.refused_since = absl::InfiniteFuture();
  sequence.phase = Phase::kDetached;
}

void BlockTier::CloseCopy(Replica& replica, uint64_t wire_id) {
  if (replica.member.connected) return SendClose(replica, wire_id);
  const uint64_t process = replica.member.identity.incarnation;
  for (const std::unique_ptr<Replica>& other : replicas_) {
    if (other->member.connected && other->member.identity.incarnation == process) {
      return SendClose(*other, wire_id);
    }
  }
  Orphans& orphans = orphans_[process];
  orphans.wire_ids.push_back(wire_id);
  orphans.since = loop_.Now();
}

void BlockTier::CloseOrphans(Replica& replica) {
  const auto found = orphans_.find(replica.member.identity.incarnation);
  if (found == orphans_.end()) return;
  for (const uint64_t wire_id : found->second.wire_ids) SendClose(replica, wire_id);
  orphans_.erase(found);
}

void BlockTier::Reopen(uint64_t handle, Sequence& sequence, bool close_copy) {
  Detach(handle, sequence, close_copy);
  if (sequence.wants_row) Enqueue(handle, sequence);
}

void BlockTier::ReopenAll(Replica& replica) {
  const std::vector<uint64_t> held(replica.sequences.begin(), replica.sequences.end());
  for (const uint64_t handle : held) {
    Reopen(handle, *sequences_.at(handle), /*close_copy=*/true);
  }
}

void BlockTier::Fail(uint64_t handle, absl::Status status) {
  Sequence& sequence = *sequences_.at(handle);
  if (sequence.phase == Phase::kFailed) return;
  if (sequence.phase == Phase::kWaiting) queue_.Erase(sequence.place);
  Detach(handle, sequence, /*close_copy=*/true);
  sequence.phase = Phase::kFailed;
  sequence.wants_row = false;
  loop_.Post([this, alive = alive_, handle, status = std::move(status)] {
    if (!*alive) return;
    const auto found = sequences_.find(handle);
    if (found == sequences_.end()) return;  // closed meanwhile
    const std::unique_ptr<Sequence> gone = std::move(found->second);
    sequences_.erase(found);
    gone->spec.on_failed(status);
  });
}

}  // namespace blockserve
