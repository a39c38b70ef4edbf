// One replica of the block tier: its connection, what it holds for us and what it last said of
// itself.
#ifndef BLOCKSERVE_GATEWAY_BLOCK_REPLICA_H_
#define BLOCKSERVE_GATEWAY_BLOCK_REPLICA_H_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "gateway/block_tier.h"
#include "rpc/context_codec.h"

namespace blockserve {

// A call that was refused for a full queue is sent again after so long.
inline constexpr absl::Duration kReplicaHold = absl::Milliseconds(20);
// A sequence whose appends are refused for so long is opened elsewhere.
inline constexpr absl::Duration kMostRefused = absl::Seconds(1);
// A replica that refused an open is asked again after so long, if no report says sooner that there
// is room.
inline constexpr absl::Duration kFullHold = absl::Milliseconds(250);

// That a replica may say that it has.
inline constexpr int64_t kMostPages = int64_t{1} << 32;
inline constexpr int32_t kMostPageBlocks = 1 << 20;

// Sequences that a lost replica had are opened again so many at a time on each of the others, whose
// running streams go on between their prefills.
inline constexpr int kReopensAtOnce = 8;
// Of these, of audits for which nobody waits.
inline constexpr int kAsideAtOnce = kReopensAtOnce / 2;

// Bounds of a message's size. An item beyond goes into the next; ids take at most 5 bytes each, and
// all else of an item (a request key has at most 128) fits kItemBytes.
inline constexpr size_t kMaxBatchBytes = size_t{1} << 20;
inline constexpr size_t kTokenBytes = 5;
inline constexpr size_t kItemBytes = 320;

struct BlockItem {
  BlockCall call = BlockCall::kOpen;
  uint64_t sequence = 0;  // handle; 0 for closes and probes
  uint64_t wire_id = 0;   // of closes
};

struct BlockTier::Replica final : public BlockLink::Observer {
  Replica(BlockTier& tier, const std::string& address) : tier(tier) { member.address = address; }

  void OnReady(v1::BlockReplyBatch first) override { tier.OnReady(*this, std::move(first)); }
  void OnMessage(v1::BlockReplyBatch batch) override { tier.OnMessage(*this, std::move(batch)); }
  void OnLost(absl::Status status) override { tier.OnLost(*this, std::move(status)); }

  static TierIdentity IdentityOf(const v1::BlockServiceHello& hello) {
    const v1::TierHello& tier = hello.tier();
    return {tier.protocol_version(),
            tier.incarnation(),
            tier.config_hash(),
            tier.tokenizer_hash(),
            tier.part_hash(),
            tier.numeric_id(),
            tier.name(),
            hello.block_length(),
            hello.context_width(),
            /*vocab_size=*/0,
            /*knows_context_type=*/ContextValueBytes(hello.context_type()) > 0,
            tier.model_digest(),
            ImpossibleCapacity({{"pages", hello.pages(), kMostPages},
                                {"page_blocks", hello.page_blocks(), kMostPageBlocks},
                                {"max_sequences", hello.max_sequences(), kMostPages},
                                {"max_blocks_per_sequence", hello.max_blocks_per_sequence(),
                                 kMostPages * kMostPageBlocks}})};
  }

  void Reset(const v1::BlockServiceHello& hello, absl::Time now) {
    Disconnected();
    seen = true;
    full = false;
    suspect = false;
    ping.Reset(hello.tier().answers_pings());
    last_heard = now;
    context_type = hello.context_type();
    row_bytes = static_cast<size_t>(hello.context_width()) * ContextValueBytes(context_type);
    page_blocks = std::clamp(hello.page_blocks(), 1, kMostPageBlocks);
    pages = std::clamp<int64_t>(hello.pages(), 0, kMostPages);
    max_sequences = hello.max_sequences();
    max_blocks = hello.max_blocks_per_sequence();
    keeps_pools_apart = hello.keeps_pools_apart();
    free_pages = pages;
  }

  void Disconnected() {
    ping.Reset(false);
    items.clear();
    TakeOutgoing();
    promised_pages = 0;
    opens = 0;
    reopens = 0;
  }

  // The next item of this turn; `tokens`: that it will carry.
  v1::BlockRequest& AddOutgoing(size_t tokens) {
    const size_t bytes = kItemBytes + tokens * kTokenBytes;
    if (outgoing.empty() || last_batch_bytes + bytes > kMaxBatchBytes) {
      outgoing.emplace_back();
      last_batch_bytes = 0;
    }
    last_batch_bytes += bytes;
    return *outgoing.back().add_items();
  }
  std::vector<v1::BlockRequestBatch> TakeOutgoing() {
    last_batch_bytes = 0;
    return std::exchange(outgoing, {});
  }

  void Heard(const v1::BlockReplyBatch& batch, absl::Time now) {
    if (batch.pong() != 0) ping.Pong(batch.pong());
    // Its network threads alone may have said so.
    if (!batch.has_load() && batch.items_size() == 0 && !batch.draining()) return;
    last_heard = now;
    // One that hears nothing may go on talking.
    if (!ping.Unreachable(now)) suspect = false;
    if (!batch.has_load()) return;
    load = batch.load();
    free_pages = std::clamp<int64_t>(batch.load().free_pages(), 0, kMostPages) +
                 std::clamp<int64_t>(batch.load().cached_pages(), 0, kMostPages);
    if (full && free_pages > full_pages) full = false;
  }

  // An open found no room.
  void Refused(absl::Time now) {
    full = true;
    full_pages = free_pages;
    full_until = now + kFullHold;
  }

  // Neither silent nor ill: it is asked first.
  bool in_turn() const { return !suspect && !health.ejected(); }
  bool empty() const { return sequences.empty() && (items.empty() || !member.connected); }
  int64_t available_pages() const { return free_pages - promised_pages; }
  bool has_room_for_sequence() const {
    return max_sequences <= 0 || static_cast<int64_t>(sequences.size()) < max_sequences;
  }
  // Of the longest text that it could hold.
  int64_t capacity_blocks() const {
    const int64_t most = pages > 0 ? pages * page_blocks : std::numeric_limits<int64_t>::max();
    return max_blocks > 0 ? std::min<int64_t>(most, max_blocks) : most;
  }
  // With the reserve for its output, as its admission counts where its pool is the bound. Where its
  // positions are, there is one more: the last block of an output, which is never embedded.
  int64_t reserve_capacity_blocks() const {
    const bool by_positions = max_blocks > 0 && (pages <= 0 || max_blocks < pages * page_blocks);
    return by_positions ? int64_t{max_blocks} + 1 : capacity_blocks();
  }
  bool fits_reserve(int64_t blocks, int64_t reserve_blocks) const {
    return blocks <= capacity_blocks() && blocks + reserve_blocks <= reserve_capacity_blocks();
  }
  size_t page_tokens(int32_t block_length) const {
    return static_cast<size_t>(page_blocks) * static_cast<size_t>(block_length);
  }

  BlockTier& tier;
  TierMember member;
  Group* group = nullptr;  // member.group's; null until it has connected
  bool seen = false;       // has said hello before: its incarnation is known
  bool suspect = false;    // silent for too long, or cannot be reached; until it is heard of again
  WorkerHealth health;
  PingWatch ping;
  absl::Time oldest_call = absl::InfiniteFuture();  // of those under way, when sent; of a tick
  absl::Time last_heard = absl::InfinitePast();
  absl::Time lost_at = absl::InfinitePast();

  std::unordered_set<uint64_t> sequences;  // handles of those that it holds or opens
  std::vector<uint64_t>
      suspects;  // handles of calls that it had when it was lost; until it is back
  std::unordered_map<uint64_t, BlockItem> items;  // calls under way, by id
  std::vector<v1::BlockRequestBatch> outgoing;    // of this turn, in order
  size_t last_batch_bytes = 0;                    // at most
  int64_t promised_pages = 0;                     // to opens under way
  int opens = 0;                                  // under way
  int reopens = 0;                                // of these, of sequences that had begun

  v1::ContextType context_type = v1::CONTEXT_TYPE_FLOAT32;
  size_t row_bytes = 0;
  int32_t page_blocks = 1;
  int64_t pages = 0;
  int32_t max_sequences = 0;
  int32_t max_blocks = 0;
  bool keeps_pools_apart = false;
  int64_t free_pages = 0;  // by its last report, cached ones included
  v1::BlockLoad load;      // its last report
  bool full = false;       // refused an open, and has not reported more room since
  int64_t full_pages = 0;
  absl::Time full_until;

  PrefixMemory prefixes{1024};      // prompts that it has lately opened
  std::unique_ptr<BlockLink> link;  // last: its end must not meet a half-destroyed replica
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_BLOCK_REPLICA_H_
