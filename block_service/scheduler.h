// What a block replica does next: admission, the order of work, and what every item is answered.
//
// Policy alone: no gRPC, no threads, no clock of its own. The thread that owns the engine drives
// it:
//
//   scheduler.Submit(item, now);                      // any number; replies go to outbox()
//   const BlockStep& step = scheduler.PlanStep(now);
//   if (!step.chunks.empty()) {
//     std::shared_ptr<float[]> contexts = …;          // [step.context_rows, D]
//     absl::Status status = engine.Step(step.chunks, contexts);
//     scheduler.FinishStep(status, contexts);
//   }
//   // send outbox(), then Clear() it
//
// Between PlanStep and FinishStep there may be all of these, further steps too, where the engine
// runs them in the order in which they were planned: a sequence can end while its blocks are being
// computed, and its pages be another's in the next step.
//
// Batching is by iteration: a step takes the decode blocks that are ready, oldest first and at most
// one group's share, and a bounded chunk of prefill, half of it for the prompts whose turn it is
// and half for those that need the least. Memory is paged: an Open or Fork is admitted with pages
// for its blocks and a part of the output to come, and grows page by page. When there is none left,
// the newest sequence that has had its protected share gives its own up ("suspended"). Sequences
// whose stream is broken go first, of pages and of places: their gateway can open them again from
// its tokens, if it comes back at all. Every item submitted gets exactly one reply with `last`,
// unless its stream is closed.
#ifndef BLOCKSERVE_BLOCK_SERVICE_SCHEDULER_H_
#define BLOCKSERVE_BLOCK_SERVICE_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "block_service/block_item.h"
#include "block_service/kv_pool.h"
#include "block_service/last_row.h"
#include "block_service/sequence_table.h"
#include "model/engine.h"

namespace blockserve {

struct BlockSchedulerOptions {
  int32_t block_length = 1;   // L, tokens
  int32_t vocab_size = 0;     // V
  int32_t context_width = 0;  // D
  int64_t num_pages = 0;
  int32_t page_blocks = 16;
  bool prefix_cache = true;
  int32_t max_sequences = 256;
  int64_t max_positions = 0;             // blocks of a sequence; 0: no limit but the pages
  int32_t prefill_chunk_blocks = 256;    // prefill positions of a step, over all prompts
  int32_t groups = 2;                    // G: a step decodes at most ceil(live / G) blocks …
  int32_t min_group_blocks = 8;          // … or this many, where that is more
  int32_t reserve_tokens = 256;          // output reserved at admission, at most
  int32_t max_rows_per_reply = 1 << 20;  // rows beyond it go into further replies
  absl::Duration lease = absl::Seconds(10);
  std::function<void(int32_t from, int32_t to, int32_t blocks)> copy_page;
};

struct BlockStep {
  std::vector<BlockChunk> chunks;  // valid until the next call
  int64_t context_rows = 0;        // rows that the engine will write
  int32_t decode_blocks = 0;
  int32_t prefill_blocks = 0;
};

struct BlockSchedulerLoad {
  int64_t free_pages = 0;
  int64_t cached_pages = 0;  // and those of sequences whose stream is broken
  int32_t sequences = 0;
  int32_t waiting = 0;  // items not yet answered
};

class BlockScheduler {
 public:
  explicit BlockScheduler(BlockSchedulerOptions options);
  ~BlockScheduler();
  BlockScheduler(const BlockScheduler&) = delete;
  BlockScheduler& operator=(const BlockScheduler&) = delete;

  // A stream of this gateway has come: sequences of the incarnation belong to it from now on. An
  // older stream of the incarnation ends first, as by CloseStream.
  void OpenStream(StreamId stream, uint64_t incarnation, absl::Time now);
  // It is gone: its items are dropped without reply; Opens and Forks not yet done drop their
  // sequence, other sequences are kept for the lease.
  void CloseStream(StreamId stream, absl::Time now);
  // From now on an Open is answered UNAVAILABLE; all else goes on.
  void StartDraining() { draining_ = true; }

  // Streams that have not read what was sent to them: of their prompts none is prefilled of which
  // more rows than the last block's are wanted, until they are not among them.
  void SetSlowReaders(const std::vector<StreamId>& streams) { slow_readers_ = streams; }

  void Submit(BlockWorkItem&& item, absl::Time now);

  // Answers what has run out of time, ends leases that are over, and chooses the next step. Where
  // the step has chunks, its FinishStep must follow.
  const BlockStep& PlanStep(absl::Time now);
  // Of the step that was planned first of those under way. `contexts` [step.context_rows, D], not
  // changed any more: the outbox and the next steps use it. A failed status goes to every item of
  // the step, and their sequences are dropped; a row that is not finite fails its own item alone
  // (INTERNAL).
  void FinishStep(const absl::Status& status, std::shared_ptr<const float[]> contexts);

  // When PlanStep must be called again although nothing was submitted; InfiniteFuture: never.
  absl::Time NextWakeUp() const { return table_.NextExpiry(); }

  // There is something to compute, or being computed.
  bool has_work() const { return !ready_.empty() || !opening_.empty() || !under_way_.empty(); }
  // Blocks that a step planned now would have, about.
  int64_t plannable_blocks() const;

  BlockOutbox& outbox() { return outbox_; }
  BlockSchedulerLoad load() const;
  int64_t max_blocks_per_sequence() const;
  // For tests: INTERNAL naming what does not hold.
  absl::Status CheckInvariants() const;

 private:
  struct StepEntry {
    BlockSequence* sequence;  // null: nobody wants it any more
    int64_t first_block;
    int64_t blocks;
    int64_t rows;
  };
  struct StepUnderWay {
    std::vector<StepEntry> entries;  // as its chunks were
    int64_t context_rows = 0;
  };
  // What a step prefills of a prompt.
  struct PrefillShare {
    BlockSequence* sequence;
    int64_t blocks;
  };

  void Open(BlockWorkItem& item);
  void Append(BlockWorkItem& item);
  void Fork(BlockWorkItem& item);
  // An item that would open a sequence: true where it is here, and the item waits with it. One that
  // is suspended is given up, to be opened anew.
  bool QueueIfKnown(BlockWorkItem& item);
  void Close(const BlockWorkItem& item);
  void Cancel(const BlockWorkItem& item);

  absl::Status CheckTokens(absl::Span<const int32_t> tokens) const;
  // `field`: of the call, that has the blocks.
  absl::Status CheckFits(absl::string_view field, int64_t blocks, int64_t reserve_blocks) const;
  // Blocks to reserve beyond the `blocks` there are.
  int64_t ReserveAhead(int64_t blocks, int64_t reserve_blocks) const;

  // Makes room at the cost of sequences whose stream is broken, where it takes that: for one more
  // sequence, for so many pages. False, and none of them is touched, where that does not suffice.
  bool HasRoomForSequence();
  bool FreePages(int64_t pages);

  // Does what the sequence's first items ask for as far as no step is needed.
  void Advance(BlockSequence& sequence);
  // Answers the head, or returns false where it must be computed in a step.
  bool AnswerAppend(BlockSequence& sequence, const AppendCall& append);
  bool AnswerOpen(BlockSequence& sequence, const OpenCall& open);
  bool AnswerLastRow(BlockSequence& sequence);
  void ResolveForks(BlockSequence& parent);
  // True when the child does not wait any more; it may be gone then.
  bool ResolveFork(BlockSequence& child, BlockSequence* parent);

  // All changes of states and queues go through these: they are counted.
  void SetState(BlockSequence& sequence, BlockSequence::State state);
  void Enqueue(BlockSequence& sequence, BlockWorkItem& item);
  void PopHead(BlockSequence& sequence);

  void AnswerHead(BlockSequence& sequence, absl::Status status);
  void Reply(const BlockWorkItem& item, absl::Status status, bool suspended = false);
  // `rows` are in what the outbox keeps.
  void ReplyRows(const BlockWorkItem& item, int64_t first_block, absl::Span<const float> rows,
                 bool last, int64_t cached_blocks);

  // Takes items out of the queue and answers them with `status` unless it is OK. A sequence whose
  // Open or Fork is among them goes too.
  void DropItems(BlockSequence& sequence, absl::FunctionRef<bool(const BlockWorkItem&)> which,
                 const absl::Status& status);
  // Forgets the sequence; what waits in its queue is answered with `status`.
  void Erase(BlockSequence& sequence, const absl::Status& status, bool suspended = false);
  void Suspend(BlockSequence& sequence);
  void RemoveFromLists(BlockSequence& sequence);
  // What steps under way compute for the sequence is not wanted any more.
  void Abandon(BlockSequence& sequence);
  void DropExpired(absl::Time now);

  size_t DecodeBlocks() const;
  void PlanDecode(StepUnderWay& plan);
  void PlanPrefill(StepUnderWay& plan);
  static void AddEntry(StepUnderWay& plan, BlockSequence& sequence, int64_t first_block,
                       int64_t blocks, int64_t rows);
  void SharePrefill();
  // Gives the prompt at most `budget` blocks more of the step; returns how many.
  int64_t Prefill(PrefillShare& share, int64_t budget);
  bool WaitsForItsReader(const BlockSequence& sequence) const;
  // The next page of the prompt is among what the step prefills of another one: it will be had for
  // nothing.
  bool IsPrefilledByAnother(const BlockSequence& sequence) const;
  // Of one that is open: its head wants the row of the block that is there.
  bool AsksForLastRow(const BlockSequence& sequence) const;
  // Pages for one more block; false when the sequence itself had to give way.
  bool Grow(BlockSequence& sequence);
  void FinishEntry(const StepEntry& entry, absl::Span<const float> rows);
  void FinishDecode(const StepEntry& entry, absl::Span<const float> rows);
  void FinishPrefill(const StepEntry& entry, absl::Span<const float> rows);
  int64_t BlocksOf(const BlockSequence& sequence) const {
    return static_cast<int64_t>(sequence.tokens.size()) / options_.block_length;
  }
  // Blocks of its pages that are computed when the steps under way are done.
  static int64_t PlannedBlocks(const BlockSequence& sequence) {
    return sequence.kv.blocks() + sequence.blocks_under_way;
  }

  const BlockSchedulerOptions options_;
  KvPool pool_;
  RecentSteps recent_;
  SequenceTable table_;
  std::vector<BlockSequence*> ready_;    // to be decoded, in order of arrival
  std::vector<BlockSequence*> opening_;  // to be prefilled, by prefill_turn
  std::vector<PrefillShare> shares_;     // of the step that is planned, as in opening_
  std::vector<PrefillShare*> by_need_;   // of these
  std::deque<StepUnderWay> under_way_;   // oldest first; their addresses are stable
  std::vector<StepUnderWay> spare_;      // for their memory
  BlockStep step_;
  BlockOutbox outbox_;
  int64_t open_ = 0;     // sequences that are kOpen
  int64_t waiting_ = 0;  // items in queues
  bool draining_ = false;
  std::vector<StreamId> slow_readers_;
  uint64_t admissions_ = 0;
  uint64_t steps_planned_ = 0;
  absl::Time next_deadline_ = absl::InfiniteFuture();  // no item's is earlier
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_SCHEDULER_H_
