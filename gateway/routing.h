// Which worker the next row goes to, and which replica the next sequence.
#ifndef BLOCKSERVE_GATEWAY_ROUTING_H_
#define BLOCKSERVE_GATEWAY_ROUTING_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <vector>

#include "absl/numeric/int128.h"
#include "absl/types/span.h"

namespace blockserve {

// ---- token tier

struct TokenWorkerView {
  bool usable = true;            // connected, of the row's group, not draining
  bool suspect = false;          // did not answer in time: only where nobody else is there
  int32_t in_flight = 0;         // rows of this gateway that it has not answered
  int32_t reported_waiting = 0;  // rows of everybody, by its last report
  int32_t most_in_flight = 0;
  // Of a row that gives way (WaitQueue::NextPlace): beyond that it would wait at the worker in
  // front of those to which it gives way.
  int32_t most_giving_way = 0;
  bool takes_more(bool gives_way) const {
    return usable && in_flight < (gives_way ? most_giving_way : most_in_flight);
  }
};

// How many of the rows of one turn go to the same worker, one after another, where there are
// `workers` of them. With few workers one each: that fills messages as well. With many, rows that
// each went to a worker of its own would each cost a message, and another one back; so that a turn
// goes to a few workers, each of which gets at most an eighth of its best batch, for which a step
// takes little longer than for one row. The others have their turn next.
int64_t PackSize(int64_t rows_of_turn, size_t workers, int32_t best_rows);

// Least outstanding work; equals take turns, so that light load spreads too.
class TokenRouter {
 public:
  // Index of the worker that takes the next row; -1 when none can.
  int Pick(absl::Span<const TokenWorkerView> workers, bool gives_way = false);

 private:
  size_t turn_ = 0;
};

// ---- block tier

struct BlockReplicaView {
  bool usable = true;           // connected, of the sequence's group, not draining, not full
  bool suspect = false;         // silent, or fails calls: only where nobody else is there
  int64_t available_pages = 0;  // free and cached, less what has been promised since its report
  int64_t pages = 1;            // of its pool
  bool idle = false;            // no open is under way there
  bool has_prefix = false;      // has lately opened a prompt that begins alike
  int64_t sequences = 0;        // of everybody, as far as is known
};

// The replica that opens a sequence of `needed_pages`; -1 when none can now. Free pages first:
// replicas within a tenth of their pool of the freest count as equal, and among them one that knows
// the prefix wins, as long as it has no more than a quarter and four sequences above the mean:
// where every prompt begins alike, the replica that was first must not do the work of all
// (consistent hashing with bounded loads, Mirrokni et al. 2018, is where the bound is from). A
// replica whose report says that the pages do not suffice is still tried, one open at a time:
// shared prefixes need fewer pages than the sum says.
int PickReplica(absl::Span<const BlockReplicaView> replicas, int64_t needed_pages);

// Pages that admission will want: the prompt's blocks and at most 256 tokens of output ahead.
int64_t EstimatePages(int64_t prompt_blocks, int64_t reserve_blocks, int32_t block_length,
                      int32_t page_blocks);

// Remembers the prompts lately opened on a replica by their first blocks. Bounded: the oldest go.
class PrefixMemory {
 public:
  explicit PrefixMemory(size_t capacity) : capacity_(capacity) {}

  // Hash of the beginning of a prompt, [blocks, L]: its first `page_tokens` tokens, or fewer; in
  // each cache pool another.
  static uint64_t Key(absl::uint128 cache_pool, absl::Span<const int32_t> prompt,
                      size_t page_tokens);
  void Remember(uint64_t key);
  bool Knows(uint64_t key) const { return counts_.contains(key); }

 private:
  const size_t capacity_;
  std::deque<uint64_t> order_;
  std::unordered_map<uint64_t, int> counts_;  // of each key in order_
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_ROUTING_H_
