// What the block tier's policy is asked and what it answers: the items of block_decoder.proto
// without protobuf. The comments there say what each call means.
#ifndef BLOCKSERVE_BLOCK_SERVICE_BLOCK_ITEM_H_
#define BLOCKSERVE_BLOCK_SERVICE_BLOCK_ITEM_H_

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/numeric/int128.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"

namespace blockserve {

// A connection of a gateway, numbered by this process; never 0.
using StreamId = uint64_t;

// Sequence ids are each gateway process's own.
struct SequenceKey {
  uint64_t incarnation = 0;
  uint64_t sequence = 0;

  friend bool operator==(const SequenceKey& a, const SequenceKey& b) {
    return a.incarnation == b.incarnation && a.sequence == b.sequence;
  }
  template <typename H>
  friend H AbslHashValue(H h, const SequenceKey& key) {
    return H::combine(std::move(h), key.incarnation, key.sequence);
  }
};

struct OpenCall {
  std::vector<int32_t> tokens;  // [blocks, L]
  int64_t reserve_blocks = 0;
  int64_t first_context = -1;  // negative: the last block's row alone
  bool close_after = false;
  absl::uint128 cache_pool = 0;
};
struct AppendCall {
  int64_t block_index = 0;
  absl::InlinedVector<int32_t, 8> tokens;  // [L]
};
struct ForkCall {
  uint64_t parent = 0;
  int64_t blocks = 0;
  int64_t reserve_blocks = 0;
};
struct CloseCall {};
struct CancelCall {
  uint64_t item = 0;
};

struct BlockWorkItem {
  StreamId stream = 0;
  uint64_t id = 0;
  SequenceKey sequence;
  absl::Time deadline = absl::InfiniteFuture();
  uint32_t priority = 2;  // 1 high, 2 normal, 3 batch; others count as normal
  std::variant<std::monostate, OpenCall, AppendCall, ForkCall, CloseCall, CancelCall> call;
};

struct BlockItemReply {
  StreamId stream = 0;
  uint64_t id = 0;
  absl::Status status;
  int64_t first_block = 0;  // position of the first row
  int32_t rows = 0;
  absl::Span<const float> contexts;  // [rows, D], in what the outbox keeps
  bool last = true;
  bool suspended = false;
  int64_t cached_blocks = 0;
};

// Replies since the last Clear, of all streams.
struct BlockOutbox {
  std::vector<BlockItemReply> items;
  std::vector<std::shared_ptr<const float[]>> kept;  // what the rows of `items` lie in

  void Clear() {
    items.clear();
    kept.clear();
  }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_BLOCK_ITEM_H_
