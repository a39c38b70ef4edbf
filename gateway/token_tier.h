// The token tier as the gateway's core sees it: rows go in, and each comes out answered once,
// whichever worker did it and however many died meanwhile.
#ifndef BLOCKSERVE_GATEWAY_TOKEN_TIER_H_
#define BLOCKSERVE_GATEWAY_TOKEN_TIER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "blockserve/v1/token_decoder.pb.h"
#include "gateway/context_row.h"
#include "gateway/loop.h"
#include "gateway/retry.h"
#include "gateway/routing.h"
#include "gateway/tier_link.h"
#include "gateway/tier_membership.h"
#include "gateway/wait_queue.h"

namespace blockserve {

using TokenLink = TierLink<v1::TokenRequestBatch, v1::TokenReplyBatch>;

struct TokenRowAnswer {
  v1::TokenRowReply reply;
  std::string worker;  // its name
};

struct RowJob {
  TierGroup group;          // whose workers may do it
  v1::TokenRowRequest row;  // id and remaining time are filled in when it is sent
  ContextRowPtr context;
  absl::Time deadline;
  // Called once, on the loop, unless the row is cancelled: the answer, or what ends the request.
  std::function<void(absl::StatusOr<TokenRowAnswer>)> done;
};

// Lives on the loop; not thread-safe.
class TokenTier {
 public:
  using LinkFactory = std::function<std::unique_ptr<TokenLink>(const std::string& address)>;

  // `loop` must outlive this.
  TokenTier(Loop& loop, TierOptions options, ExpectedModel expected, LinkFactory make_link);
  ~TokenTier();

  void AddWorker(const std::string& address);
  // Gets no new rows; its connection is closed when it has answered those that it has.
  void RemoveWorker(const std::string& address);

  // Returns the row's handle. `done` is not called from within.
  uint64_t Submit(RowJob job);
  // `done` will not be called. Unknown handles are ignored.
  void Cancel(uint64_t handle);

  // Bounds of time: rows without answer, rows that wait for a tier that is gone.
  void Tick();

  // Closes every connection. Nothing may be under way.
  void Disconnect();

  const TierMembership& membership() const { return membership_; }
  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  // Called whenever a worker comes or goes.
  void set_on_change(std::function<void()> on_change) { on_change_ = std::move(on_change); }

 private:
  struct Worker;
  struct Row;
  struct Attempt {
    uint64_t handle = 0;
    absl::Time sent;
    bool alone = false;
    bool stalled = false;  // the row has been given to another worker too
  };

  void OnReady(Worker& worker, v1::TokenReplyBatch first);
  void OnMessage(Worker& worker, v1::TokenReplyBatch batch);
  void OnLost(Worker& worker, absl::Status status);
  void OnRow(Worker& worker, v1::TokenRowReply& reply);

  void Enqueue(uint64_t handle, Row& row, bool is_new);
  void SchedulePump();
  void Pump();
  void PumpAlone();
  Worker* WorkerForAlone(const TierGroup& group);
  void SendRow(uint64_t handle, Row& row, Worker& worker, bool alone);
  // Removes the row, gives up what else was tried, and calls back.
  void Finish(uint64_t handle, absl::StatusOr<TokenRowAnswer> answer);
  std::unique_ptr<Row> Take(uint64_t handle);
  bool HasOther(const TierGroup& group, const Worker& worker) const;
  void RetireIfEmpty(Worker& worker);

  Loop& loop_;
  const TierOptions options_;
  const LinkFactory make_link_;
  TierMembership membership_;
  std::function<void()> on_change_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::unordered_map<uint64_t, std::unique_ptr<Row>> rows_;  // by handle
  WaitQueue waiting_;
  WaitQueue waiting_alone_;
  TokenRouter router_;
  uint64_t next_handle_ = 1;
  uint64_t next_attempt_ = 1;
  bool pump_posted_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TOKEN_TIER_H_
