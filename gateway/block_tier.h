// The block tier as the gateway's core sees it: sequences that are opened, extended block by block
// and closed, and answer each block with its context row, whichever replica holds them at the
// moment.
//
// A sequence keeps its tokens here; the replica's KV is only a copy of them in another form. When
// the replica is lost, has forgotten the sequence, suspends it or drains, the sequence is opened
// again from its tokens, and whoever waits for a row notices nothing but the time.
#ifndef BLOCKSERVE_GATEWAY_BLOCK_TIER_H_
#define BLOCKSERVE_GATEWAY_BLOCK_TIER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/numeric/int128.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "blockserve/v1/block_decoder.pb.h"
#include "gateway/audit.h"
#include "gateway/context_row.h"
#include "gateway/deployment_status.h"
#include "gateway/retry.h"
#include "gateway/routing.h"
#include "gateway/tier_link.h"
#include "gateway/tier_membership.h"
#include "gateway/wait_queue.h"
#include "gateway/worker_watch.h"
#include "rpc/loop.h"

namespace blockserve {

using BlockLink = TierLink<v1::BlockRequestBatch, v1::BlockReplyBatch>;

struct SequenceSpec {
  TierGroup group;                                     // whose replicas may hold it
  std::shared_ptr<const std::vector<int32_t>> prompt;  // [blocks, L], pads included
  int64_t reserve_blocks = 0;                          // of output to come at most
  int64_t first_context = 0;                           // of `scoring`
  // Whose KV it may share (gateway/cache_pool.h). Another than the common one, 0, only replicas
  // that keep them apart may hold.
  absl::uint128 cache_pool = 0;
  std::vector<WorkerProcess> not_by;        // who must not hold it
  absl::string_view text_field = "prompt";  // what its client calls the text
  // The sequence is gone, and the request with it. Nothing more is called.
  std::function<void(absl::Status status)> on_failed;

  // Side by side, what every block's call needs, with what BlockTier keeps of it: with a thousand
  // sequences each line of it comes from memory.
  //
  // Scoring: the rows of the prompt's blocks from `first_context` on are wanted, not the last one's
  // alone, and nothing after them.
  bool scoring = false;
  uint32_t priority = 2;
  absl::Time deadline;
  uint64_t request = 0;  // whose it is: its run's id
  std::string request_key;
  std::string traceparent;
  // Complete blocks after the prompt's, [blocks, L]; Extend adds to them.
  std::vector<int32_t> more;
  // The row of the last block (scoring: of each block asked for, once and in order).
  std::function<void(int64_t block, ContextRowPtr row)> on_context;
};

// Since the start: how often sequences were opened again, and why.
struct BlockTierStats {
  int64_t reopened_lost = 0;     // the connection to their replica broke
  int64_t reopened_silent = 0;   // it said nothing
  int64_t reopened_leaving = 0;  // it drains, or discovery does not name it any more
  int64_t reopened_failed = 0;   // it failed their call or those of others, and another one may not
  int64_t reopened_suspended = 0;  // it had no pages left, or had forgotten them
  int64_t ejected = 0;             // replicas taken out of turn: silent, or failing
  int64_t returned = 0;            // of those that failed, in again
  int64_t condemned = 0;           // replicas that answered wrong bits
};

// Lives on the loop; not thread-safe. The callbacks of a sequence are not called from within the
// calls that are made for it.
class BlockTier {
 public:
  using LinkFactory = std::function<std::unique_ptr<BlockLink>(const std::string& address)>;

  // `loop` must outlive this.
  BlockTier(Loop& loop, TierOptions options, ExpectedModel expected, LinkFactory make_link);
  ~BlockTier();

  void AddReplica(const std::string& address);
  // Its sequences move, when another replica is there, with their next block; then its connection
  // is closed.
  void RemoveReplica(const std::string& address);

  // Opens a sequence, at once or when there is room. RESOURCE_EXHAUSTED: too many wait already.
  // `on_context` tells the last block's row.
  absl::StatusOr<uint64_t> Open(SequenceSpec spec);
  // As Open, of a request that has begun: it does not stand in line with new ones, and is not
  // refused.
  uint64_t OpenBegun(SequenceSpec spec);
  // A sequence that begins as `parent` does, whose prompt is open: no row is told before Extend.
  // spec.prompt is the parent's.
  uint64_t Fork(uint64_t parent, SequenceSpec spec);
  // The next block, [L]; `on_context` tells its row. Not before the row of the last block was told.
  void Extend(uint64_t sequence, absl::Span<const int32_t> block);
  // Gives up what is under way and drops the KV. Unknown handles are ignored.
  void Close(uint64_t sequence);

  // Of a sequence's first open: blocks that the prefix cache had.
  int64_t cached_blocks(uint64_t sequence) const;

  void Tick();

  // Closes every connection, once the replicas have been told which sequences are over. No request
  // may be under way.
  void Disconnect();
  // `done` is called, on the loop, when the connections are closed: at once where none is left.
  void WhenDisconnected(std::function<void()> done);

  // The process has answered wrong bits: it gets nothing more, and its sequences are opened
  // elsewhere.
  void Condemn(uint64_t incarnation, absl::string_view why);

  const TierMembership& membership() const { return membership_; }
  const BlockTierStats& stats() const { return stats_; }
  const AuditStats& audit_stats() const { return audit_stats_; }
  std::vector<WorkerStatus> WorkerStatuses() const;
  int64_t sequences() const { return static_cast<int64_t>(sequences_.size()); }
  // Tokens of the longest text, prompt and output, that a replica of the group could hold with any
  // alignment; INT64_MAX: none says that it has a limit.
  int64_t CapacityTokens(const TierGroup& group) const;
  int64_t waiting() const { return static_cast<int64_t>(queue_.waiting().size()); }
  // Called whenever a replica comes or goes.
  void set_on_change(std::function<void()> on_change) { on_change_ = std::move(on_change); }

 private:
  struct Replica;
  enum class Phase {
    kWaiting,  // to be opened
    kOpening,  // its call is with the replica
    kForking,
    kAppending,
    kIdle,      // the replica holds all its blocks
    kDetached,  // no replica holds it, and no row is wanted
    kFailed,    // its owner is about to be told
  };
  struct Sequence {
    SequenceSpec spec;
    Phase phase = Phase::kDetached;
    bool wants_row = false;
    bool begun = false;          // has been open before
    Replica* replica = nullptr;  // opening, forking, appending, idle
    uint64_t wire_id = 0;  // new with every open: an old copy can never be taken for a new one
    uint64_t item = 0;     // of the call under way; 0 while its replica is away
    absl::Time sent;
    absl::Time again_at = absl::InfiniteFuture();  // of an append that found the queue full
    absl::Time refused_since = absl::InfiniteFuture();  // of the append under way, the first time
    int64_t promised_pages = 0;                         // to the open under way
    int64_t prompt_blocks = 0;                          // of spec.prompt
    // That a replica told of the call under way, OK: none; a second one, not that in the last of
    // spec.not_by, is asked.
    absl::Status failure;
    SequenceHistory history;
    uint64_t audit = 0;  // of its last row, which is held back until then

    uint64_t parent_wire_id = 0;
    absl::Time waits_since;
    absl::Time not_before = absl::InfinitePast();  // of one that must be opened alone
    WaitQueue::Place place;
    bool placed = false;  // has stood in the queue; a first open keeps its place
    bool aside = false;   // an audit's, for which nobody waits
    int64_t cached_blocks = 0;
    int64_t next_score_block = 0;

    // A row has come.
    void Progress() {
      history.Progress();
      refused_since = absl::InfiniteFuture();
      if (failure.ok()) return;
      failure = absl::OkStatus();
      spec.not_by.pop_back();
    }
  };
  // A context row that is computed by other replicas too.
  struct ContextAudit {
    uint64_t sequence = 0;  // handle of whose row it is; 0: told already
    uint64_t shadow = 0;    // handle of the sequence that another replica opens
    int64_t block = 0;
    std::vector<ContextRowPtr> rows;  // of each replica so far
    std::vector<WorkerProcess> processes;
    std::vector<std::string> names;
    SequenceSpec spec;
  };
  // Copies that nobody needs any more, at a process whose stream broke: within their lease its next
  // one takes them up, by whatever address that comes, and would keep them for as long as it lasts.
  struct Orphans {
    std::vector<uint64_t> wire_ids;
    absl::Time since;  // of the last one
  };
  // What is known of the replicas of a group together.
  struct Group {
    // How long calls take.
    ServiceTimes appends;
    ServiceTimes opens_per_block;
    std::vector<int32_t> probe;  // [L]: the block that began the first text opened
  };
  // A new one, detached, under its handle.
  std::pair<uint64_t, Sequence*> Add(SequenceSpec spec);
  int64_t BlocksOf(const Sequence& sequence) const;
  // Of those whom not all replicas may hold: a replica for the one would be one for the other.
  static bool StandInOneLine(const Sequence& one, const Sequence& other);
  // Blocks of output that may still come.
  int64_t ReserveOf(const Sequence& sequence) const;
  void OnReady(Replica& replica, v1::BlockReplyBatch first);
  void Connect(Replica& replica);
  // Its process is a replica by another address already.
  void DisconnectTwin(Replica& replica);
  void OnMessage(Replica& replica, v1::BlockReplyBatch batch);
  // `now`: of the message; the clock is not asked for every block.
  void OnReply(Replica& replica, const v1::BlockReply& reply, absl::string_view rows,
               absl::Time now);
  void OnRows(Replica& replica, BlockCall call, uint64_t handle, const v1::BlockReply& reply,
              absl::string_view rows);
  void OnRefused(Replica& replica, BlockCall call, uint64_t handle, const v1::BlockReply& reply);
  // A row of the sequence has come.
  void OnProgress(Sequence& sequence);
  // A probe was answered, or a call of one that is in turn.
  void OnAnswered(Replica& replica);
  // What this process has failed, another one has answered.
  void Strike(uint64_t incarnation, uint64_t request);
  void Contradicted(uint64_t handle, Sequence& sequence, absl::string_view what);
  void OnLost(Replica& replica, absl::Status status);
  // Replicas have died with it again and again.
  void WaitApartFromOthers(uint64_t handle, Sequence& sequence);
  // It has a call of a sequence that must be opened alone.
  bool HasOneAlone(const Replica& replica) const;

  void Enqueue(uint64_t handle, Sequence& sequence);
  // The replica's process closes its copy of a sequence: now, or with its next stream.
  void CloseCopy(Replica& replica, uint64_t wire_id);
  void CloseOrphans(Replica& replica);
  // Takes the sequence off its replica, which closes its copy.
  void Detach(uint64_t handle, Sequence& sequence, bool close_copy);
  // Detached, and opened again at once where a row is wanted.
  void Reopen(uint64_t handle, Sequence& sequence, bool close_copy);
  // All that the replica holds; their copies are closed.
  void ReopenAll(Replica& replica);
  void Fail(uint64_t handle, absl::Status status);
  void SchedulePump();
  void Pump();
  void Flush();
  Replica* Choose(const Sequence& sequence);
  // OK where one of the replicas that are there could hold the text with what may come, or none is
  // there. Else INVALID_ARGUMENT naming the field (context_length.h); UNAVAILABLE of a text under
  // way, which a replica that is lost could hold.
  absl::Status CheckCapacity(const Sequence& sequence) const;
  // Opens it under the wire id that it has.
  void SendOpen(uint64_t handle, Sequence& sequence);
  void SendFork(uint64_t handle, Sequence& sequence);
  void SendAppend(uint64_t handle, Sequence& sequence);
  void SendClose(Replica& replica, uint64_t wire_id);
  // `handle`: 0 for closes. `tokens`: that the item will carry.
  v1::BlockRequest& AddItem(Replica& replica, BlockCall call, uint64_t handle, size_t tokens);
  // Usable, of its group, and with its cache pool kept apart.
  static bool Suits(const Replica& replica, const SequenceSpec& spec);
  // Whether another one than `replica` suits it, and is not suspect.
  bool HasOther(const SequenceSpec& spec, const Replica* replica) const;
  static bool MayHold(const Replica& replica, const SequenceSpec& spec);
  bool SomebodyMayHold(const SequenceSpec& spec) const;
  // A replica in turn that may be asked whether it fails the sequence, too.
  bool HasSecondOpinion(const SequenceSpec& spec) const;
  // Not every usable one of its group.
  bool OnlySomeMayHold(const SequenceSpec& spec) const;
  // How long the replica may say nothing while it has this sequence's call.
  absl::Duration SilenceAllowed(const Sequence& sequence) const;
  // Asks replicas whose calls have waited for a while, and finds those that do not answer.
  void WatchConnections(absl::Time now);
  void Suspect(Replica& replica, absl::string_view why);
  void Eject(Replica& replica, absl::string_view why);
  void Probe(Replica& replica, absl::Time now);
  // The idle sequences of a replica that leaves: opened elsewhere with their next block.
  void Evacuate(Replica& replica);

  // Without `hold` audits that come faster than they end would pile up, each a copy of a stream's
  // tokens.
  bool MayAuditMore() const;
  // The row is told, at once or when it has been audited.
  void TellRow(Replica& replica, uint64_t handle, int64_t block, ContextRowPtr row);
  void OpenShadow(uint64_t id);
  void OnShadowRow(uint64_t id, ContextRowPtr row);
  // Sequences whose rows are held back could keep all the KV that the audits of one another wait
  // for. One whose audit finds no room gives its own up: it is opened again with its next block.
  void MakeRoomForAudits();
  void EndAudit(uint64_t id, ContextRowPtr row);
  void EndAudit(uint64_t id, absl::Status status);
  void RetireIfEmpty(Replica& replica);

  Loop& loop_;
  const TierOptions options_;
  const int32_t block_length_;
  const LinkFactory make_link_;
  TierMembership membership_;
  std::function<void()> on_change_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  // Of Disconnect: kept until they have written what they had.
  std::vector<std::unique_ptr<BlockLink>> ending_;
  size_t ended_ = 0;  // of these
  std::vector<std::function<void()>> when_disconnected_;
  std::unordered_map<uint64_t, std::unique_ptr<Sequence>> sequences_;  // by handle
  std::unordered_map<uint64_t, Orphans> orphans_;                      // by incarnation
  WaitQueue queue_;
  std::map<TierGroup, Group> groups_;
  BlockTierStats stats_;
  absl::Time last_tick_ = absl::InfinitePast();
  AuditShare audit_share_;
  AuditStats audit_stats_;
  std::unordered_map<uint64_t, ContextAudit> audits_;
  uint64_t next_audit_ = 1;
  const Replica* answering_ = nullptr;  // while a scoring sequence's rows are told
  uint64_t next_handle_ = 1;
  uint64_t next_wire_id_ = 1;
  uint64_t next_item_ = 1;
  bool pump_posted_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_BLOCK_TIER_H_
