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
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "blockserve/v1/token_decoder.pb.h"
#include "gateway/context_row.h"
#include "gateway/deployment_status.h"
#include "gateway/live_limit.h"
#include "gateway/retry.h"
#include "gateway/routing.h"
#include "gateway/tier_link.h"
#include "gateway/tier_membership.h"
#include "gateway/wait_queue.h"
#include "gateway/worker_watch.h"
#include "rpc/loop.h"

namespace blockserve {

using TokenLink = TierLink<v1::TokenRequestBatch, v1::TokenReplyBatch>;

// A process of token workers, as its answers tell of it.
struct RowWorker {
  std::string name;
  WorkerProcess process;
};

struct TokenRowAnswer {
  // A part of the message that it came in, all of which it keeps: for the moment in which it is
  // told. Who keeps an answer copies it.
  std::shared_ptr<const v1::TokenRowReply> reply;
  std::shared_ptr<const RowWorker> worker;
};

// What a row says may be shared with the choice's next one (GenerationRun), and with an audit.
struct RowJob {
  uint64_t request = 0;                    // whose row it is: its run's id
  std::shared_ptr<const TierGroup> group;  // whose workers may do it
  // Id and remaining time are filled in when it is sent.
  std::shared_ptr<const v1::TokenRowRequest> row;
  ContextRowPtr context;
  absl::Time deadline;
  std::vector<WorkerProcess> not_by;  // who must not do it
  // Called once, on the loop, unless the row is cancelled: the answer, or what ends the request.
  std::function<void(absl::StatusOr<TokenRowAnswer>)> done;
};

// Since the start.
struct TokenTierStats {
  int64_t rows = 0;             // answered, each once
  int64_t retried_died = 0;     // sent again because the connection to their worker broke
  int64_t retried_silent = 0;   // because their worker said nothing
  int64_t retried_refused = 0;  // because their worker refused them or gave them up
  int64_t retried_failed = 0;   // because their worker failed them, and another one may not
  int64_t hedged = 0;           // sent to a second worker because the first was slow
  int64_t hedges_won = 0;       // where the second was first
  int64_t ejected = 0;          // workers taken out of turn
  int64_t returned = 0;         // and in again
  int64_t condemned = 0;        // workers that answered wrong bits
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

  // The process has answered wrong bits: it gets nothing more, and what it has runs elsewhere.
  void Condemn(uint64_t incarnation, absl::string_view why);

  // Bounds of time: rows without answer, rows that wait for a tier that is gone.
  void Tick();

  // Closes every connection. Nothing may be under way.
  void Disconnect();

  const TierMembership& membership() const { return membership_; }
  const TokenTierStats& stats() const { return stats_; }
  std::vector<WorkerStatus> WorkerStatuses() const;
  // Of each worker at most so many best batches count as waiting for it.
  TokenCapacity Capacity(double most_waiting_batches) const;
  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  // Of these, those that wait for a worker.
  int64_t waiting() const {
    return static_cast<int64_t>(waiting_.waiting().size() + suspects_.waiting().size());
  }
  // Called whenever a worker comes or goes.
  void set_on_change(std::function<void()> on_change) { on_change_ = std::move(on_change); }

 private:
  struct Worker;
  struct Row;
  struct Attempt {
    uint64_t handle = 0;  // 0: a probe
    absl::Time sent;
    bool suspect = false;  // its worker was kept free for it and others under suspicion
    bool alone = false;    // for it alone
    bool stalled = false;  // the row has been given to another worker, for good
    bool hedged = false;   // the row has been offered to a second worker
    bool is_hedge = false;
  };
  // What is known of the workers of a group together.
  struct Group {
    ServiceTimes times;
    HedgeBudget hedges;
    // The last row sent, cut down to one token: what probes are made of.
    v1::TokenRowRequest probe;
    ContextRowPtr probe_context;
  };

  // Of a request with rows under suspicion, what is being tried: one row alone, until it is
  // answered, or some with a cohort. Meanwhile no other row of it is sent: where one kills its
  // workers, so may all.
  struct Trial {
    uint64_t alone = 0;              // its handle
    const Worker* cohort = nullptr;  // who has it
  };
  using Trials = std::map<uint64_t, Trial>;  // by request

  void OnReady(Worker& worker, v1::TokenReplyBatch first);
  void Connect(Worker& worker);
  // Its process is a worker by another address already.
  void DisconnectTwin(Worker& worker);
  void OnMessage(Worker& worker, v1::TokenReplyBatch batch);
  void OnLost(Worker& worker, absl::Status status);
  // The worker's process lives: the rows that it was lost with are not why.
  void Acquit(Worker& worker);
  // Nobody is at its address, or another process: no verdict waits for it any longer.
  void OnGone(Worker& worker);
  // `now`, here and below: of the message or the turn; the clock is not asked for every row.
  void OnRow(Worker& worker, std::shared_ptr<const v1::TokenRowReply> reply, absl::Time now);
  void OnAnswered(Worker& worker, const Attempt& attempt, Row* row, absl::Time now);
  void OnFailed(Worker& worker, uint64_t handle, Row& row, const absl::Status& status);
  void OnRefused(Worker& worker, RowAction action, const absl::Status& status, uint64_t handle,
                 Row& row);
  // What this process has failed, another one has answered.
  void Strike(uint64_t incarnation, uint64_t request);

  void Enqueue(uint64_t handle, Row& row, bool is_new);
  void SchedulePump();
  void Pump();
  void PumpSuspects(Trials& trials);
  Worker* WorkerForSuspect(const Row& row);
  // Workers that may be kept free for them now.
  int PlacesForSuspects(const TierGroup& group) const;
  static bool HasTried(const Row& row, const Worker& worker);
  Trials FindTrials() const;
  void SendRow(uint64_t handle, Row& row, Worker& worker, bool suspect, absl::Time now);
  void AddToMessage(Worker& worker, uint64_t attempt, const v1::TokenRowRequest& row,
                    const ContextRowPtr& context, absl::Time deadline, absl::Time now);
  void AddCancel(Worker& worker, uint64_t attempt);
  void MarkForFlush(Worker& worker);
  void SendWaitingRows(const Trials& trials);
  // What this turn has for the workers goes out.
  void Flush();
  void WatchWorker(Worker& worker, absl::Time now);
  bool PeersMove(const Worker& worker, absl::Duration allowed, absl::Time now) const;
  bool PeersCanBeReached(const Worker& worker, absl::Time now) const;
  void Ping(Worker& worker, absl::Time now);
  void Hedge(Worker& worker, absl::Time now);
  bool IsBusy(const TierGroup& group) const;
  void GiveUp(absl::Time now);
  void Eject(Worker& worker, absl::string_view why);
  void Probe(Worker& worker, absl::Time now);
  // The silent worker's rows are given to others; it may still answer them first.
  void MoveRows(Worker& worker);
  // Removes the row, gives up what else was tried, and calls back.
  void Finish(uint64_t handle, absl::StatusOr<TokenRowAnswer> answer);
  std::unique_ptr<Row> Take(uint64_t handle);
  bool HasOther(const TierGroup& group, const Worker& worker) const;
  // A worker that may do the row, in turn or, where it is to be `in_turn`, no other.
  bool SomebodyMayDo(const RowJob& job, bool in_turn) const;
  // Somebody has it of whom an answer is still expected.
  static bool IsUnderWay(const Row& row);
  void RetireIfEmpty(Worker& worker);

  Loop& loop_;
  const TierOptions options_;
  const LinkFactory make_link_;
  TierMembership membership_;
  std::function<void()> on_change_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<Worker*> to_flush_;  // those that this turn has something for
  bool some_reserved_ = false;     // a worker may be
  std::unordered_map<uint64_t, std::unique_ptr<Row>> rows_;  // by handle
  WaitQueue waiting_;
  WaitQueue suspects_;  // rows that may have killed a worker
  TokenRouter router_;
  std::map<TierGroup, Group> groups_;
  TokenTierStats stats_;
  absl::Time last_tick_ = absl::InfinitePast();
  absl::Time resumed_at_ = absl::InfinitePast();  // when the gateway itself last came back late
  uint64_t next_handle_ = 1;
  uint64_t next_attempt_ = 1;
  bool pump_posted_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TOKEN_TIER_H_
