// One worker of the token tier: its connection, the rows that it has and what is known of it. And a
// row on its way.
#ifndef BLOCKSERVE_GATEWAY_TOKEN_WORKER_H_
#define BLOCKSERVE_GATEWAY_TOKEN_WORKER_H_

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gateway/token_tier.h"

namespace blockserve {

// While so much waits for its connection a worker gets nothing more: rows may carry counts of
// thousands of ids, and one beyond what a connection may queue would end it.
inline constexpr int64_t kMostUnwrittenBytes = int64_t{16} << 20;

struct TokenTier::Worker final : public TokenLink::Observer {
  Worker(TokenTier& tier, const std::string& address) : tier(tier) { member.address = address; }

  void OnReady(v1::TokenReplyBatch first) override { tier.OnReady(*this, std::move(first)); }
  void OnMessage(v1::TokenReplyBatch batch) override { tier.OnMessage(*this, std::move(batch)); }
  void OnLost(absl::Status status) override { tier.OnLost(*this, std::move(status)); }

  bool takes_rows(const TierGroup& group, absl::Time now) const {
    return member.usable() && member.group == group && now >= hold_until &&
           unwritten_bytes < kMostUnwrittenBytes;
  }
  bool may_do(const RowJob& job) const { return member.IsNone(job.not_by); }

  // Messages of this turn, in order. The contexts of each are joined at the end, when their size
  // is known: a string that grows to a megabyte moves it several times.
  struct Outgoing {
    v1::TokenRequestBatch batch;
    std::vector<ContextRowPtr> contexts;  // of its rows
    size_t bytes = 0;                     // of its rows and their contexts
  };
  std::vector<v1::TokenRequestBatch> TakeOutgoing() {
    std::vector<v1::TokenRequestBatch> batches;
    for (Outgoing& message : std::exchange(outgoing, {})) {
      std::string& joined = *message.batch.mutable_contexts();
      size_t size = 0;
      for (const ContextRowPtr& context : message.contexts) size += context->bytes.size();
      joined.reserve(size);
      for (const ContextRowPtr& context : message.contexts) joined += context->bytes;
      batches.push_back(std::move(message.batch));
    }
    return batches;
  }

  TokenTier& tier;
  TierMember member;
  Group* group = nullptr;                          // member.group's; null until it has connected
  std::shared_ptr<const RowWorker> identity;       // likewise
  std::unordered_map<uint64_t, Attempt> attempts;  // by the id on the wire
  int32_t most_in_flight = 0;
  int32_t best_rows = 0;  // its best batch
  v1::TokenLoad load;
  absl::Time load_told = absl::InfinitePast();
  WorkerHealth health;
  ProgressWatch progress;
  PingWatch ping;
  std::vector<std::pair<uint64_t, bool>> blamed;  // rows (handle, alone) that it was lost with
  bool died = false;      // its connection broke with rows under way, and it is not back yet
  int lost_hedges = 0;    // rows in a row that a second worker answered first
  int refusals = 0;       // times in a row that it was left alone and refused what came then
  bool reserved = false;  // kept free of other rows for those under suspicion
  absl::Time hold_until = absl::InfinitePast();
  std::vector<Outgoing> outgoing;
  int64_t unwritten_bytes = 0;      // of its connection: what waits there, and this turn's
  bool to_be_flushed = false;       // is in the tier's list of those with something
  std::unique_ptr<TokenLink> link;  // last: its end must not meet a half-destroyed worker
};

struct TokenTier::Row {
  size_t Draw() const {
    const v1::TokenRowRequest& row = *job.row;
    return DrawApart(row.header().request_key(), {row.choice(), row.position(), history.deaths()});
  }

  RowJob job;
  RowHistory history;
  std::vector<std::pair<Worker*, uint64_t>> attempts;
  absl::Time waits_since;
  // Of a row with which a worker has died alone: it is tried again then; or given up, see Acquit.
  absl::Time not_before = absl::InfinitePast();
  absl::Time refused_since = absl::InfiniteFuture();  // not for want of room
  uint64_t died_last = 0;  // incarnation of the last worker that died with it
  absl::Status failure;    // that a first worker told, OK: none; a second one is asked
  uint64_t failed_by = 0;  // its incarnation
  bool waiting = false;
  bool hedge = false;  // waits, or was last sent, as the second of two
  WaitQueue::Place place;
  bool suspects_queue = false;  // which queue `place` is in
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TOKEN_WORKER_H_
