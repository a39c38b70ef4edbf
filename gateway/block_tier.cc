// BlockTier: replicas come and go, and what they say.
#include "gateway/block_tier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_catalogue.h"
#include "gateway/block_replica.h"

namespace blockserve {

BlockTier::BlockTier(Loop& loop, TierOptions options, ExpectedModel expected, LinkFactory make_link)
    : loop_(loop),
      options_(options),
      block_length_(expected.block_length),
      make_link_(std::move(make_link)),
      membership_("block service", std::move(expected), loop.Now()),
      audit_share_(options.audit.contexts) {}

BlockTier::~BlockTier() { *alive_ = false; }

void BlockTier::Disconnect() {
  // What is compared after its row was told belongs to nobody.
  std::vector<uint64_t> shadows;
  for (const auto& [id, audit] : audits_) shadows.push_back(audit.shadow);
  audits_.clear();
  for (const uint64_t shadow : shadows) Close(shadow);
  // Sequences that are over would keep their pages for the whole lease.
  Flush();
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->link == nullptr) continue;  // a twin
    ending_.push_back(std::move(replica->link));
    ending_.back()->Finish([this, alive = alive_] {
      if (!*alive || ++ended_ < ending_.size()) return;
      for (const auto& done : std::exchange(when_disconnected_, {})) done();
    });
  }
  replicas_.clear();
}

void BlockTier::WhenDisconnected(std::function<void()> done) {
  if (ended_ == ending_.size()) return done();
  when_disconnected_.push_back(std::move(done));
}

int64_t BlockTier::BlocksOf(const Sequence& sequence) const {
  return sequence.prompt_blocks + static_cast<int64_t>(sequence.spec.more.size()) / block_length_;
}

int64_t BlockTier::ReserveOf(const Sequence& sequence) const {
  const int64_t more_blocks = static_cast<int64_t>(sequence.spec.more.size()) / block_length_;
  return std::max<int64_t>(0, sequence.spec.reserve_blocks - more_blocks);
}

// ---- replicas come and go

void BlockTier::AddReplica(const std::string& address) {
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->member.address != address) continue;
    replica->member.removed = false;
    membership_.Update(replica->member, loop_.Now());
    SchedulePump();
    return;
  }
  replicas_.push_back(std::make_unique<Replica>(*this, address));
  Connect(*replicas_.back());
}

void BlockTier::Connect(Replica& replica) {
  replica.member.twin = 0;
  replica.link = make_link_(replica.member.address);
  replica.link->Start(&replica);
}

void BlockTier::DisconnectTwin(Replica& replica) {
  // Not at once: this is one of the link's own callbacks.
  loop_.Post([this, alive = alive_, address = replica.member.address] {
    if (!*alive) return;
    for (const std::unique_ptr<Replica>& candidate : replicas_) {
      if (candidate->member.address == address && candidate->member.twin != 0) {
        candidate->link.reset();
      }
    }
  });
  // What another process had here before.
  ReopenAll(replica);
}

void BlockTier::RemoveReplica(const std::string& address) {
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->member.address != address) continue;
    replica->member.removed = true;
    membership_.Update(replica->member, loop_.Now());
    Evacuate(*replica);
    RetireIfEmpty(*replica);
    return;
  }
}

void BlockTier::RetireIfEmpty(Replica& replica) {
  if (!replica.member.removed || !replica.empty()) return;
  // Not at once: this may be one of the link's own callbacks.
  loop_.Post([this, alive = alive_, address = replica.member.address] {
    if (!*alive) return;
    const auto found = std::find_if(replicas_.begin(), replicas_.end(), [&](const auto& candidate) {
      return candidate->member.address == address;
    });
    if (found == replicas_.end() || !(*found)->member.removed || !(*found)->empty()) return;
    membership_.Forget((*found)->member);
    replicas_.erase(found);
    if (on_change_) on_change_();
  });
}

void BlockTier::OnReady(Replica& replica, v1::BlockReplyBatch first) {
  const v1::BlockServiceHello& hello = first.hello();
  if (membership_.IsTwin(replica.member, replica.IdentityOf(hello), loop_.Now())) {
    DisconnectTwin(replica);
    return;
  }
  const bool same_process =
      replica.seen && replica.member.identity.incarnation == hello.tier().incarnation();
  for (const uint64_t handle : std::exchange(replica.suspects, {})) {
    const auto found = sequences_.find(handle);
    if (!same_process || found == sequences_.end()) continue;
    found->second->history.ReplicaIsBack();
    found->second->not_before = absl::InfinitePast();
  }
  if (!same_process) ReopenAll(replica);
  replica.Reset(hello, loop_.Now());
  // Whoever stands where an ill one stood is tried with a probe first.
  if (!same_process && !replica.health.ejected()) replica.health.Reset();
  const bool fits = membership_.Connected(replica.member, replica.IdentityOf(hello), loop_.Now());
  replica.group = &groups_[replica.member.group];

  CloseOrphans(replica);
  if (!fits) ReopenAll(replica);
  // The stream broke, not the process: within its lease it still has our sequences, and repeating
  // the calls that were under way does no harm.
  const std::vector<uint64_t> held(replica.sequences.begin(), replica.sequences.end());
  for (const uint64_t handle : held) {
    Sequence& sequence = *sequences_.at(handle);
    if (sequence.phase == Phase::kOpening) SendOpen(handle, sequence);
    if (sequence.phase == Phase::kForking) SendFork(handle, sequence);
    if (sequence.phase == Phase::kAppending) SendAppend(handle, sequence);
  }
  if (fits) {
    // Sequences that had nowhere to go when their replica was lost.
    std::vector<uint64_t> stranded;
    for (const auto& [handle, sequence] : sequences_) {
      if (sequence->wants_row && sequence->replica != nullptr &&
          !sequence->replica->member.connected && Suits(replica, sequence->spec)) {
        stranded.push_back(handle);
      }
    }
    for (const uint64_t handle : stranded) {
      Reopen(handle, *sequences_.at(handle), /*close_copy=*/true);
    }
    for (const std::unique_ptr<Replica>& other : replicas_) Evacuate(*other);
  }
  if (on_change_) on_change_();
  OnMessage(replica, std::move(first));
}

void BlockTier::OnLost(Replica& replica, absl::Status status) {
  // Told again of each attempt to connect that fails.
  const bool was_connected = replica.member.connected;
  const bool was_usable = replica.member.usable();
  const bool may_have_died = membership_.Lost(replica.member, status, loop_.Now());
  // Closes without an answer may not have arrived, and what they close would outlive us.
  for (const auto& [id, item] : replica.items) {
    if (item.call == BlockCall::kClose) CloseCopy(replica, item.wire_id);
  }
  replica.Disconnected();
  if (was_connected) replica.lost_at = loop_.Now();
  const std::vector<uint64_t> held(replica.sequences.begin(), replica.sequences.end());
  for (const uint64_t handle : held) {
    Sequence& sequence = *sequences_.at(handle);
    if (may_have_died && sequence.item != 0) {
      sequence.history.ReplicaLost();
      replica.suspects.push_back(handle);
      if (sequence.history.must_open_alone()) WaitApartFromOthers(handle, sequence);
    }
    sequence.item = 0;
    sequence.promised_pages = 0;
    if (sequence.history.given_up()) {
      Fail(handle, absl::InternalError("block services died under this request again and again"));
      continue;
    }
    if (HasOther(sequence.spec, &replica)) {
      if (sequence.wants_row) ++stats_.reopened_lost;
      Reopen(handle, sequence, /*close_copy=*/true);
    }
    // Else it stays, in the hope that the replica comes back before another one is there.
  }
  if (was_usable && on_change_) on_change_();
  RetireIfEmpty(replica);
  SchedulePump();
}

void BlockTier::WaitApartFromOthers(uint64_t handle, Sequence& sequence) {
  const absl::Duration wait = WaitApart(DrawApart(
      sequence.spec.request_key, {static_cast<int64_t>(handle), sequence.history.losses()}));
  sequence.not_before = loop_.Now() + wait;
  loop_.PostAfter(wait, [this, alive = alive_] {
    if (*alive) SchedulePump();
  });
}

std::vector<WorkerStatus> BlockTier::WorkerStatuses() const {
  std::vector<WorkerStatus> statuses;
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    WorkerStatus& status = statuses.emplace_back();
    status.address = replica->member.address;
    status.name = replica->member.identity.name;
    status.connected = replica->member.connected;
    status.usable = replica->member.usable();
    status.in_flight = static_cast<int64_t>(replica->items.size());
    status.sequences = static_cast<int64_t>(replica->sequences.size());
    if (!status.connected) continue;
    status.batch = static_cast<int32_t>(status.in_flight);
    status.steps = replica->load.steps();
    status.pages = replica->pages;
    status.free_pages = replica->free_pages;
    if (status.in_flight == 0 && loop_.Now() - replica->last_heard > kLoadGoodFor) continue;
    status.busy_share = replica->load.busy_share();
  }
  return statuses;
}

// ---- what replicas say

void BlockTier::OnMessage(Replica& replica, v1::BlockReplyBatch batch) {
  const absl::Time now = loop_.Now();
  replica.Heard(batch, now);
  if (batch.draining() && !replica.member.draining) {
    replica.member.draining = true;
    membership_.Update(replica.member, now);
    if (on_change_) on_change_();
    Evacuate(replica);
  }
  const size_t row_bytes = replica.row_bytes;
  size_t offset = 0;
  for (const v1::BlockReply& reply : batch.items()) {
    const size_t bytes = static_cast<size_t>(std::max(0, reply.rows())) * row_bytes;
    absl::string_view rows;
    if (offset + bytes <= batch.contexts().size()) {
      rows = absl::string_view(batch.contexts()).substr(offset, bytes);
    }
    offset += bytes;
    OnReply(replica, reply, rows, now);
  }
  RetireIfEmpty(replica);
  SchedulePump();
}

void BlockTier::OnReply(Replica& replica, const v1::BlockReply& reply, absl::string_view rows,
                        absl::Time now) {
  const auto found = replica.items.find(reply.id());
  if (found == replica.items.end()) return;  // cancelled, or the sequence has moved on
  const BlockItem item = found->second;
  const bool ok = reply.status().code() == 0;
  if (item.sequence == 0) {
    replica.items.erase(found);
    if (item.call == BlockCall::kClose) {
      replica.full = false;
    } else if (ok) {
      OnAnswered(replica);
    }
    return;
  }
  Sequence& sequence = *sequences_.at(item.sequence);
  const bool more_to_come =
      ok && item.call == BlockCall::kOpen && sequence.spec.scoring && !reply.last();
  if (!more_to_come) {
    replica.items.erase(found);
    sequence.item = 0;
    replica.promised_pages -= std::exchange(sequence.promised_pages, 0);
    if (item.call == BlockCall::kOpen) {
      --replica.opens;
      replica.reopens -= sequence.begun;
    }
    if (ok) {
      Group& group = *replica.group;
      const absl::Duration took = now - sequence.sent;
      if (item.call == BlockCall::kAppend) group.appends.Add(took);
      if (item.call == BlockCall::kOpen) group.opens_per_block.Add(took / BlocksOf(sequence));
    }
  } else {
    sequence.sent = now;  // rows come: it is being worked on
  }
  if (ok) {
    // A fork is no work for the engine. And that the sequences that an ill one has go on does not
    // say that it can open others.
    if (item.call != BlockCall::kFork && !replica.health.ejected()) OnAnswered(replica);
    OnRows(replica, item.call, item.sequence, reply, rows);
  } else {
    OnRefused(replica, item.call, item.sequence, reply);
  }
}

void BlockTier::OnRows(Replica& replica, BlockCall call, uint64_t handle,
                       const v1::BlockReply& reply, absl::string_view rows) {
  Sequence& sequence = *sequences_.at(handle);
  const int64_t last_block = BlocksOf(sequence) - 1;
  if (call == BlockCall::kFork) {
    sequence.phase = Phase::kIdle;
    sequence.begun = true;
    if (sequence.wants_row) SendAppend(handle, sequence);
    return;
  }
  const auto row_at = [&](int64_t index) {
    auto row = std::make_shared<ContextRow>();
    row->type = replica.context_type;
    row->bytes =
        std::string(rows.substr(static_cast<size_t>(index) * replica.row_bytes, replica.row_bytes));
    return row;
  };
  if (rows.size() != static_cast<size_t>(reply.rows()) * replica.row_bytes) {
    return Contradicted(handle, sequence, "sent fewer bytes than rows");
  }
  if (call == BlockCall::kOpen && !sequence.begun) {
    sequence.cached_blocks = std::max(sequence.cached_blocks, reply.cached_blocks());
  }

  if (sequence.spec.scoring) {
    if (reply.rows() > 0 &&
        (reply.first_block() < 0 || reply.first_block() > last_block - (reply.rows() - 1))) {
      return Contradicted(handle, sequence, "sent rows of blocks that are not there");
    }
    for (int64_t i = 0; i < reply.rows(); ++i) {
      // Callbacks may close the sequence.
      const auto still = sequences_.find(handle);
      if (still == sequences_.end()) return;
      Sequence& scored = *still->second;
      const int64_t block = reply.first_block() + i;
      if (block != scored.next_score_block) continue;  // told before its replica was lost
      ++scored.next_score_block;
      OnProgress(scored);
      const auto on_context = scored.spec.on_context;
      answering_ = &replica;
      on_context(block, row_at(i));
    }
    const auto still = sequences_.find(handle);
    if (still == sequences_.end() || !reply.last()) return;
    Detach(handle, *still->second, /*close_copy=*/false);  // the service closes it
    if (still->second->next_score_block <= last_block) {
      return Contradicted(handle, *still->second, "did not send every row");
    }
    still->second->wants_row = false;
    return;
  }

  if (reply.rows() < 1 || reply.first_block() != last_block - (reply.rows() - 1)) {
    return Contradicted(handle, sequence,
                        absl::StrCat("sent the row of another block than ", last_block));
  }
  sequence.phase = Phase::kIdle;
  sequence.begun = true;
  sequence.wants_row = false;
  OnProgress(sequence);
  if (call == BlockCall::kOpen) {
    replica.prefixes.Remember(PrefixMemory::Key(sequence.spec.cache_pool, *sequence.spec.prompt,
                                                replica.page_tokens(block_length_)));
  }
  TellRow(replica, handle, last_block, row_at(reply.rows() - 1));
}

void BlockTier::OnRefused(Replica& replica, BlockCall call, uint64_t handle,
                          const v1::BlockReply& reply) {
  Sequence& sequence = *sequences_.at(handle);
  const absl::Status status(StatusCodeFromWire(reply.status().code()), reply.status().message());
  switch (JudgeBlockReply(call, status, reply.suspended())) {
    case BlockAction::kDone:
      return;
    case BlockAction::kOtherReplica:
      if (call == BlockCall::kOpen) replica.Refused(loop_.Now());
      Reopen(handle, sequence, /*close_copy=*/call == BlockCall::kFork);
      return;
    case BlockAction::kReopen:
      ++stats_.reopened_suspended;
      if (reply.suspended() || status.code() == absl::StatusCode::kUnavailable) {
        Reopen(handle, sequence, /*close_copy=*/!reply.suspended());
      } else {
        Contradicted(handle, sequence, status.ToString());
      }
      return;
    case BlockAction::kAgain: {
      const absl::Time now = loop_.Now();
      sequence.refused_since = std::min(sequence.refused_since, now);
      if (now - sequence.refused_since < kMostRefused || !HasOther(sequence.spec, &replica)) {
        sequence.again_at = now + kReplicaHold;
        return;
      }
      ++stats_.reopened_failed;
      replica.Refused(now);
      Reopen(handle, sequence, /*close_copy=*/true);
      return;
    }
    case BlockAction::kFail: {
      absl::Status failure =
          ClientStatus(status, absl::StrCat("block service '", replica.member.identity.name, "'"));
      if (status.code() == absl::StatusCode::kInternal && sequence.failure.ok()) {
        // The replica may be ill, or the sequence: whether another one fails it too tells which.
        sequence.spec.not_by.push_back(replica.member.process());
        if (SomebodyMayHold(sequence.spec)) {
          ++stats_.reopened_failed;
          sequence.failure = std::move(failure);
          Reopen(handle, sequence, /*close_copy=*/true);
          return;
        }
      }
      Fail(handle, std::move(failure));
      return;
    }
  }
}

void BlockTier::OnProgress(Sequence& sequence) {
  if (!sequence.failure.ok()) {
    Strike(sequence.spec.not_by.back().incarnation, sequence.spec.request);
  }
  sequence.Progress();
}

void BlockTier::OnAnswered(Replica& replica) {
  if (!replica.health.Answered()) return;
  ++stats_.returned;
  LogInfo(absl::StrCat("block service '", replica.member.identity.name,
                       "' answers again: it gets sequences, few at first"));
}

void BlockTier::Strike(uint64_t incarnation, uint64_t request) {
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->member.identity.incarnation != incarnation || !replica->member.connected) continue;
    if (replica->health.Strike(request, loop_.Now())) {
      Eject(*replica, "fails calls that others answer");
    }
  }
}

// The replica's idea of the sequence is not ours: it is opened again under a new name.
void BlockTier::Contradicted(uint64_t handle, Sequence& sequence, absl::string_view what) {
  LogWarning(absl::StrCat("request ", sequence.spec.request_key, ": a block service ", what,
                          "; its sequence is opened again"));
  sequence.history.Contradicted();
  if (sequence.history.given_up()) {
    Fail(handle,
         absl::InternalError(absl::StrCat("block services contradict the gateway: ", what)));
  } else {
    Reopen(handle, sequence, /*close_copy=*/true);
  }
}

}  // namespace blockserve
