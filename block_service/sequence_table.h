// The sequences that a block replica holds for its gateways.
#ifndef BLOCKSERVE_BLOCK_SERVICE_SEQUENCE_TABLE_H_
#define BLOCKSERVE_BLOCK_SERVICE_SEQUENCE_TABLE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "block_service/block_item.h"
#include "block_service/item_queue.h"
#include "block_service/kv_pool.h"
#include "block_service/last_row.h"

namespace blockserve {

struct BlockSequence {
  enum class State {
    kForking,    // waits for its parent to have the blocks; queue.front() is the Fork
    kOpening,    // its prompt is being prefilled; queue.front() is the Open
    kOpen,       // holds its blocks; queue.front(), if any, is the next thing to do
    kSuspended,  // had to give up its pages; the gateway has not been told yet
  };

  SequenceKey key;
  State state = State::kForking;
  KvSequence kv;
  std::vector<int32_t> tokens;  // [blocks, L]; while opening, all of the prompt's
  LastRow last_row;             // context of the last block, where it is known
  // Where it is asked for and not known: all blocks but the last, and room to compute that again.
  // The page that holds it may be shared.
  KvSequence kv_again;
  ItemQueue queue;  // in order of arrival
  // Of it, in steps that are under way: when decoding, the block of queue.front().
  int64_t blocks_under_way = 0;

  // While opening.
  int64_t first_context = 0;  // rows are wanted from here on
  bool close_after = false;
  int64_t cached_blocks = 0;
  uint64_t priority_rank = 0;  // the lowest matters most
  uint64_t prefill_turn = 0;   // the lowest is prefilled first

  // While forking, and afterwards to know a repetition.
  uint64_t fork_parent = 0;
  int64_t fork_blocks = -1;  // -1: was not made by a fork
  int64_t fork_reserve = 0;

  std::vector<SequenceKey> forks_waiting;  // children that wait for this one
  uint64_t admitted = 0;                   // rises with every admission: the newest has the highest
  int64_t protected_blocks = 0;            // not suspended for others while it is shorter
  StreamId stream = 0;                     // 0: its stream is broken
  absl::Time lease_end = absl::InfiniteFuture();
};

// Owns the sequences; their addresses are stable. Not thread-safe.
class SequenceTable {
 public:
  explicit SequenceTable(absl::Duration lease) : lease_(lease) {}

  // Null when unknown.
  BlockSequence* Find(const SequenceKey& key) const;
  // `key` must be unknown.
  BlockSequence& Insert(const SequenceKey& key, StreamId stream);
  void Erase(const SequenceKey& key);
  int64_t size() const { return static_cast<int64_t>(sequences_.size()); }

  // A gateway has connected: what it left behind is its own again.
  void Attach(uint64_t incarnation, StreamId stream);
  // A stream is gone: its sequences are kept for the lease.
  void Detach(StreamId stream, absl::Time now);
  // Sequences whose lease has run out.
  std::vector<SequenceKey> Expired(absl::Time now) const;
  // When the next lease runs out; InfiniteFuture without one.
  absl::Time NextExpiry() const;

  // Of the sequences whose stream is broken, and that have pages where they are to, the one whose
  // lease is the oldest; of equal ones the newest. Null without one.
  BlockSequence* OldestLease(bool with_pages) const;

  // The newest open sequence that may be made to give way, other than `except`; null without one.
  BlockSequence* NewestUnprotected(const BlockSequence& except) const;

  // Calls visit(BlockSequence&) for each; `visit` must not insert or erase.
  template <typename Visit>
  void ForEach(Visit visit) const {
    for (const auto& [key, sequence] : sequences_) visit(*sequence);
  }

 private:
  const absl::Duration lease_;
  int64_t away_ = 0;  // sequences whose lease has an end: with none, nobody need be looked at
  absl::flat_hash_map<SequenceKey, std::unique_ptr<BlockSequence>> sequences_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_SEQUENCE_TABLE_H_
