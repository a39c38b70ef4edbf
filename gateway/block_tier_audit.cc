// BlockTier: context rows that another replica computes too, by prefill, and that are compared bit
// for bit. Where two differ, a third one settles who is wrong.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/logging.h"
#include "gateway/block_replica.h"
#include "gateway/block_tier.h"

namespace blockserve {

bool BlockTier::MayAuditMore() const {
  return options_.audit.hold || audits_.size() < replicas_.size() * kReopensAtOnce;
}

void BlockTier::TellRow(Replica& replica, uint64_t handle, int64_t block, ContextRowPtr row) {
  Sequence& sequence = *sequences_.at(handle);
  const auto on_context = sequence.spec.on_context;  // which may close the sequence
  if (!audit_share_.Take()) return on_context(block, std::move(row));
  const bool hold = options_.audit.hold;
  if (!MayAuditMore() || (!hold && !HasOther(sequence.spec, &replica))) {
    ++audit_stats_.skipped;
    return on_context(block, std::move(row));
  }
  const uint64_t id = next_audit_++;
  ContextAudit& audit = audits_[id];
  audit.block = block;
  audit.rows = {row};
  audit.processes = {replica.member.process()};
  audit.names = {replica.member.identity.name};
  const SequenceSpec& spec = sequence.spec;
  audit.spec.group = spec.group;
  audit.spec.prompt = spec.prompt;
  audit.spec.more = spec.more;
  audit.spec.scoring = true;
  audit.spec.first_context = block;
  audit.spec.cache_pool = spec.cache_pool;
  audit.spec.priority = spec.priority;
  audit.spec.deadline = spec.deadline;
  audit.spec.request = spec.request;
  audit.spec.request_key = spec.request_key;
  if (hold) {
    audit.sequence = handle;
    sequence.audit = id;
  }
  OpenShadow(id);
  if (!hold) on_context(block, std::move(row));
}

void BlockTier::OpenShadow(uint64_t id) {
  ContextAudit& audit = audits_.at(id);
  SequenceSpec spec = audit.spec;
  spec.not_by = audit.processes;
  spec.on_context = [this, id](int64_t, ContextRowPtr row) { OnShadowRow(id, std::move(row)); };
  spec.on_failed = [this, id](absl::Status status) { EndAudit(id, std::move(status)); };
  const auto [handle, shadow] = Add(std::move(spec));
  audit.shadow = handle;
  shadow->begun = true;  // its request has
  shadow->aside = !options_.audit.hold;
  shadow->wants_row = true;
  shadow->next_score_block = audit.block;
  Enqueue(handle, *shadow);
}

void BlockTier::OnShadowRow(uint64_t id, ContextRowPtr row) {
  const auto found = audits_.find(id);
  if (found == audits_.end()) return;
  ContextAudit& audit = found->second;
  Close(std::exchange(audit.shadow, 0));
  for (size_t i = 0; i < audit.rows.size(); ++i) {
    if (audit.rows[i]->type != row->type || audit.rows[i]->bytes != row->bytes) continue;
    if (audit.rows.size() == 1) {
      ++audit_stats_.compared;
    } else {
      ++audit_stats_.settled;
      Condemn(audit.processes[1 - i].incarnation,
              absl::StrCat("answered wrong bits to request ", audit.spec.request_key));
    }
    return EndAudit(id, std::move(row));
  }
  audit.rows.push_back(std::move(row));
  audit.processes.push_back(answering_->member.process());
  audit.names.push_back(answering_->member.identity.name);
  if (audit.rows.size() == 2) ++audit_stats_.differed;
  SequenceSpec next;
  next.group = audit.spec.group;
  next.cache_pool = audit.spec.cache_pool;
  next.not_by = audit.processes;
  if (audit.rows.size() == 2 && SomebodyMayHold(next)) return OpenShadow(id);
  LogError(absl::StrCat("audit: request ", audit.spec.request_key, ": block services '",
                        absl::StrJoin(audit.names, "', '"),
                        "' compute a context row differently, and nobody could settle it"));
  EndAudit(id,
           absl::InternalError(absl::StrCat("block services '", absl::StrJoin(audit.names, "', '"),
                                            "' differ over this request's context")));
}

void BlockTier::MakeRoomForAudits() {
  if (!options_.audit.hold || pump_posted_) return;  // what waits may go in this very turn
  for (const auto& [id, audit] : audits_) {
    const auto held = sequences_.find(audit.sequence);
    const auto shadow = sequences_.find(audit.shadow);
    if (held == sequences_.end() || held->second->phase != Phase::kIdle) continue;
    if (shadow == sequences_.end() || shadow->second->phase != Phase::kWaiting) continue;
    const bool comes_to_turn =
        std::any_of(replicas_.begin(), replicas_.end(), [&](const auto& replica) {
          return MayHold(*replica, shadow->second->spec) && replica->opens > 0;
        });
    if (!comes_to_turn) Detach(held->first, *held->second, /*close_copy=*/true);
  }
}

// The row, if it was held back, is told now.
void BlockTier::EndAudit(uint64_t id, ContextRowPtr row) {
  const auto found = audits_.find(id);
  if (found == audits_.end()) return;
  const uint64_t handle = found->second.sequence;
  const int64_t block = found->second.block;
  audits_.erase(found);
  const auto held = sequences_.find(handle);
  if (held == sequences_.end()) return;
  held->second->audit = 0;
  const auto on_context = held->second->spec.on_context;
  on_context(block, std::move(row));
}

void BlockTier::EndAudit(uint64_t id, absl::Status status) {
  const auto found = audits_.find(id);
  if (found == audits_.end()) return;
  const uint64_t handle = found->second.sequence;
  if (found->second.rows.size() == 1) ++audit_stats_.skipped;
  audits_.erase(found);
  const auto held = sequences_.find(handle);
  if (held == sequences_.end()) return;
  held->second->audit = 0;
  Fail(handle, std::move(status));
}

}  // namespace blockserve
