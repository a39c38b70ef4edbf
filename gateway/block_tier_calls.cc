// BlockTier: which replica opens a sequence, and the calls that are made to it.
#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/block_replica.h"
#include "gateway/block_tier.h"
#include "gateway/context_length.h"
#include "gateway/remaining.h"

namespace blockserve {
namespace {

// Under way at a replica that is well: as many as there are.
constexpr int32_t kMostOpens = std::numeric_limits<int32_t>::max();

// Of a text that fits into so many blocks: up to block_length - 1 pads come before it.
int64_t TokensThatFit(int64_t blocks, int64_t block_length) {
  return (blocks - 1) * block_length + 1;
}

}  // namespace

void BlockTier::SchedulePump() {
  if (pump_posted_) return;
  pump_posted_ = true;
  loop_.Post([this, alive = alive_] {
    if (!*alive) return;
    pump_posted_ = false;
    Pump();
    Flush();
  });
}

bool BlockTier::StandInOneLine(const Sequence& one, const Sequence& other) {
  return one.begun == other.begun && one.aside == other.aside &&
         one.failure.ok() == other.failure.ok() &&
         (one.spec.cache_pool == 0) == (other.spec.cache_pool == 0) &&
         one.spec.group == other.spec.group && one.spec.not_by == other.spec.not_by;
}

void BlockTier::Pump() {
  // Nobody overtakes within a group, nor among those of one line: they are not all tried.
  std::set<TierGroup> blocked;
  std::vector<const Sequence*> lines;  // the first of each that waits on
  for (auto next = queue_.waiting().begin(); next != queue_.waiting().end();) {
    const uint64_t handle = next->second;
    ++next;  // what follows may take the sequence out of the queue
    Sequence& sequence = *sequences_.at(handle);
    if (loop_.Now() < sequence.not_before) continue;
    if (blocked.contains(sequence.spec.group) ||
        std::any_of(lines.begin(), lines.end(),
                    [&](const Sequence* first) { return StandInOneLine(*first, sequence); })) {
      continue;
    }
    if (absl::Status status = CheckCapacity(sequence); !status.ok()) {
      Fail(handle, std::move(status));
      continue;
    }
    Replica* const replica = Choose(sequence);
    if (replica == nullptr) {
      // Whom few may hold does not stand in the others' way.
      if (sequence.history.must_open_alone()) continue;
      if (sequence.aside || OnlySomeMayHold(sequence.spec)) {
        lines.push_back(&sequence);
      } else {
        blocked.insert(sequence.spec.group);
      }
      continue;
    }
    queue_.Erase(sequence.place);
    sequence.replica = replica;
    sequence.wire_id = next_wire_id_++;
    replica->sequences.insert(handle);
    SendOpen(handle, sequence);
  }
}

void BlockTier::Flush() {
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    for (v1::BlockRequestBatch& batch : replica->TakeOutgoing()) {
      replica->link->Send(std::move(batch));
    }
  }
}

BlockTier::Replica* BlockTier::Choose(const Sequence& sequence) {
  const int64_t blocks = BlocksOf(sequence);
  const int64_t reserve = ReserveOf(sequence);
  // A replica whose KV is too small for what may come would refuse for good. Where only one that
  // may not hold the sequence is larger, another is asked nevertheless.
  const bool somebody_fits =
      std::any_of(replicas_.begin(), replicas_.end(), [&](const auto& replica) {
        return MayHold(*replica, sequence.spec) && replica->fits_reserve(blocks, reserve);
      });
  std::vector<BlockReplicaView> views;
  int64_t most_needed = 0;
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    const uint64_t key = PrefixMemory::Key(sequence.spec.cache_pool, *sequence.spec.prompt,
                                           replica->page_tokens(block_length_));
    BlockReplicaView& view = views.emplace_back();
    view.usable =
        MayHold(*replica, sequence.spec) && !replica->full &&
        replica->opens < replica->health.Allowed(kMostOpens) &&
        // Whether one that may fail all calls fails this one too says nothing.
        (sequence.failure.ok() || replica->in_turn()) &&
        !(sequence.begun && replica->reopens >= (sequence.aside ? kAsideAtOnce : kReopensAtOnce)) &&
        !(sequence.history.must_open_alone() && HasOneAlone(*replica)) &&
        replica->has_room_for_sequence() &&
        (!somebody_fits || replica->fits_reserve(blocks, reserve));
    view.suspect = !replica->in_turn();
    view.available_pages = replica->available_pages();
    view.pages = replica->pages;
    view.idle = replica->opens == 0;
    view.has_prefix = replica->prefixes.Knows(key);
    view.sequences = std::max<int64_t>(static_cast<int64_t>(replica->sequences.size()),
                                       replica->load.sequences());
    most_needed =
        std::max(most_needed, EstimatePages(blocks, reserve, block_length_, replica->page_blocks));
  }
  const int chosen = PickReplica(views, most_needed);
  return chosen < 0 ? nullptr : replicas_[static_cast<size_t>(chosen)].get();
}

bool BlockTier::HasOneAlone(const Replica& replica) const {
  return std::any_of(replica.sequences.begin(), replica.sequences.end(), [&](uint64_t handle) {
    const Sequence& sequence = *sequences_.at(handle);
    return sequence.item != 0 && sequence.history.must_open_alone();
  });
}

absl::Status BlockTier::CheckCapacity(const Sequence& sequence) const {
  const int64_t blocks = BlocksOf(sequence);
  const int64_t reserve = ReserveOf(sequence);
  int64_t most = 0;
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (!Suits(*replica, sequence.spec)) continue;
    if (replica->fits_reserve(blocks, reserve)) return absl::OkStatus();
    most = std::max(most, replica->reserve_capacity_blocks());
  }
  if (most == 0) return absl::OkStatus();
  if (sequence.begun) {
    return absl::UnavailableError(
        absl::StrCat("no block service that is there has KV for a text of ", blocks + reserve,
                     " blocks; one that had is gone"));
  }
  const bool text_fits = blocks < most;
  return ContextLengthExceeded(
      absl::StrCat(text_fits ? absl::string_view("stop.max_tokens") : sequence.spec.text_field,
                   ": the text needs ", (blocks + (text_fits ? reserve : 0)) * block_length_,
                   " tokens of KV, pads included, more than the largest block service has"),
      TokensThatFit(most, block_length_));
}

int64_t BlockTier::CapacityTokens(const TierGroup& group) const {
  int64_t most = 0;
  for (const std::unique_ptr<Replica>& replica : replicas_) {
    if (replica->member.usable() && replica->member.group == group) {
      most = std::max(most, replica->reserve_capacity_blocks());
    }
  }
  if (most == 0 || most > std::numeric_limits<int64_t>::max() / block_length_) {
    return std::numeric_limits<int64_t>::max();
  }
  return TokensThatFit(most, block_length_);
}

v1::BlockRequest& BlockTier::AddItem(Replica& replica, BlockCall call, uint64_t handle,
                                     size_t tokens) {
  const uint64_t id = next_item_++;
  const absl::Time now = loop_.Now();
  replica.items[id] = {call, handle, /*wire_id=*/0};
  v1::BlockRequest& request = replica.AddOutgoing(tokens);
  request.set_id(id);
  if (handle != 0) {
    Sequence& sequence = *sequences_.at(handle);
    sequence.item = id;
    sequence.sent = now;
    sequence.again_at = absl::InfiniteFuture();
    request.set_sequence(sequence.wire_id);
    v1::ItemHeader& header = *request.mutable_header();
    header.set_remaining_ms(RemainingMs(sequence.spec.deadline, now));
    header.set_priority(sequence.spec.priority);
    header.set_request_key(sequence.spec.request_key);
    if (!sequence.spec.traceparent.empty()) header.set_traceparent(sequence.spec.traceparent);
  }
  SchedulePump();
  return request;
}

void BlockTier::SendOpen(uint64_t handle, Sequence& sequence) {
  sequence.phase = Phase::kOpening;
  Replica& replica = *sequence.replica;
  const SequenceSpec& spec = sequence.spec;
  const size_t tokens = spec.prompt->size() + spec.more.size();
  v1::OpenSequence& open = *AddItem(replica, BlockCall::kOpen, handle, tokens).mutable_open();
  open.mutable_tokens()->Reserve(static_cast<int>(tokens));
  open.mutable_tokens()->Add(spec.prompt->begin(), spec.prompt->end());
  open.mutable_tokens()->Add(spec.more.begin(), spec.more.end());
  open.set_reserve_blocks(ReserveOf(sequence));
  open.set_first_context(spec.scoring ? sequence.next_score_block : -1);
  open.set_close_after(spec.scoring);
  open.set_cache_pool_high(absl::Uint128High64(spec.cache_pool));
  open.set_cache_pool_low(absl::Uint128Low64(spec.cache_pool));
  if (std::vector<int32_t>& probe = groups_[spec.group].probe; probe.empty()) {
    probe.assign(spec.prompt->begin(), spec.prompt->begin() + block_length_);
  }
  sequence.promised_pages =
      EstimatePages(BlocksOf(sequence), open.reserve_blocks(), block_length_, replica.page_blocks);
  replica.promised_pages += sequence.promised_pages;
  ++replica.opens;
  replica.reopens += sequence.begun;
}

void BlockTier::SendFork(uint64_t handle, Sequence& sequence) {
  sequence.phase = Phase::kForking;
  v1::ForkSequence& fork =
      *AddItem(*sequence.replica, BlockCall::kFork, handle, /*tokens=*/0).mutable_fork();
  fork.set_parent(sequence.parent_wire_id);
  fork.set_blocks(static_cast<int64_t>(sequence.spec.prompt->size()) / block_length_);
  fork.set_reserve_blocks(sequence.spec.reserve_blocks);
}

void BlockTier::SendAppend(uint64_t handle, Sequence& sequence) {
  sequence.phase = Phase::kAppending;
  // Its replica is away, and there is no other: sent when one of them is there.
  if (!sequence.replica->member.connected) return;
  const size_t tokens = static_cast<size_t>(block_length_);
  v1::AppendBlock& append =
      *AddItem(*sequence.replica, BlockCall::kAppend, handle, tokens).mutable_append();
  append.set_block_index(BlocksOf(sequence) - 1);
  const std::vector<int32_t>& more = sequence.spec.more;
  append.mutable_tokens()->Add(more.end() - block_length_, more.end());
}

void BlockTier::SendClose(Replica& replica, uint64_t wire_id) {
  v1::BlockRequest& request = AddItem(replica, BlockCall::kClose, /*handle=*/0, /*tokens=*/0);
  replica.items[request.id()].wire_id = wire_id;
  request.set_sequence(wire_id);
  request.mutable_close();
}

}  // namespace blockserve
