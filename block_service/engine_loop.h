// The thread that owns a block engine and its scheduler and keeps the one supplied with steps of
// the other, the mailbox through which streams reach it, and the thread that encodes and sends what
// a step has given while the next step runs. Knows neither gRPC nor protobuf: a stream is a
// BlockReplySink.
#ifndef BLOCKSERVE_BLOCK_SERVICE_ENGINE_LOOP_H_
#define BLOCKSERVE_BLOCK_SERVICE_ENGINE_LOOP_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "block_service/block_item.h"
#include "block_service/block_metrics.h"
#include "block_service/float_buffers.h"
#include "block_service/scheduler.h"
#include "common/busy_meter.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/ordered_handoff.h"
#include "common/progress.h"
#include "model/engine.h"

namespace blockserve {

// What every reply tells of the replica.
struct BlockLoadReport {
  uint64_t steps = 0;
  BlockSchedulerLoad pages;
  double busy_share = 0;
  bool draining = false;
};

// One stream's way back. Called by one thread at a time, the loop's or that of its deliveries, in
// the order in which the loop came to it; never after End.
class BlockReplySink {
 public:
  virtual ~BlockReplySink() = default;
  // First of all calls but End.
  virtual void SayHello(const std::string& part_hash, const BlockLoadReport& load) = 0;
  virtual void Add(const BlockItemReply& reply) = 0;
  // Sends what was added.
  virtual void Flush(const BlockLoadReport& load) = 0;
  // The replica leaves.
  virtual void End(const absl::Status& status) = 0;
  // Of what was flushed, what waits for the gateway to read. Thread-safe.
  virtual int64_t unsent_bytes() const { return 0; }
};

struct StreamOpened {
  StreamId stream;
  uint64_t incarnation;
  std::shared_ptr<BlockReplySink> sink;
};
struct StreamClosed {
  StreamId stream;
};
struct StreamItems {
  StreamId stream;
  std::vector<BlockWorkItem> items;
  std::vector<uint64_t>
      refused;  // ids answered RESOURCE_EXHAUSTED: the stream has too many already
};
struct PartHashKnown {
  std::string hash;
};
struct DrainWanted {};
using BlockEvent =
    std::variant<StreamOpened, StreamClosed, StreamItems, PartHashKnown, DrainWanted>;

// Thread-safe. Bounded by its writers: a stream posts at most as many items as it may have waiting.
class BlockMailbox {
 public:
  // False: the loop is over, and nobody will look.
  bool Post(BlockEvent event);
  // Moves all events into `events` (empty before). Where there are none, waits for one until
  // `timeout` is over. False when closed.
  bool Take(std::vector<BlockEvent>& events, absl::Duration timeout);
  void Close();
  bool empty() const;

  // Of the loop: what is posted, and each turn, until what it gave is delivered.
  Progress& progress() { return progress_; }

 private:
  Progress progress_;
  mutable Mutex mutex_;
  CondVar arrived_;
  std::vector<BlockEvent> events_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

struct EngineLoopStats {
  BlockLoadReport load;
  uint64_t decode_blocks = 0;
  uint64_t prefill_blocks = 0;
  int64_t cached_blocks = 0;  // that prefix hits made unnecessary
  int32_t streams = 0;
};

class EngineLoop {
 public:
  // `engine` (its KV allocated with the pages of `options`) and `clock` must outlive the loop;
  // options.copy_page is set here.
  EngineLoop(BlockEngine& engine, BlockSchedulerOptions options, const Clock& clock,
             const BlockMetrics& metrics = {});
  // As Stop.
  ~EngineLoop();
  EngineLoop(const EngineLoop&) = delete;
  EngineLoop& operator=(const EngineLoop&) = delete;

  // For streams, which may outlive the loop.
  const std::shared_ptr<BlockMailbox>& mailbox() const { return mailbox_; }

  void Start();
  // Ends the steps under way, then every stream with UNAVAILABLE, then the thread. Idempotent.
  void Stop();

  // True when no sequence is open any more and all replies are with their streams, false after
  // `timeout`.
  bool WaitUntilEmpty(absl::Duration timeout);
  // As of the last step that was delivered, but for the busy share.
  EngineLoopStats stats() const;
  // Of both threads: a turn is done when its replies are with their streams. Outlives the loop.
  std::shared_ptr<const Progress> progress() const {
    return std::shared_ptr<const Progress>(mailbox_, &mailbox_->progress());
  }

 private:
  using Sinks = absl::flat_hash_map<StreamId, std::shared_ptr<BlockReplySink>>;
  // What a turn of the loop leaves to be delivered.
  struct Turn {
    std::shared_ptr<const Sinks> sinks;  // those of its end
    BlockOutbox outbox;
    EngineLoopStats stats;  // `cached_blocks` is counted when it is delivered
    BusyMeter busy;
    int64_t items = 0;  // as `progress` is told
  };

  struct StepUnderWay {
    std::shared_ptr<float[]> contexts;
    absl::Status status;  // unless OK, the engine did not take it
    int32_t decode_blocks = 0;
    int32_t prefill_blocks = 0;
    absl::Time begin;
    absl::Duration gap;  // for so long the engine had nothing to do, although there was work
  };

  void Run();
  void Handle(BlockEvent event);
  void HandleItems(StreamItems items);
  // Starts a step or finishes one, or both; false where there is none of either.
  bool Work();
  // Whether what waits is to be started now: at once where nothing is under way.
  bool MayStart() const;
  // False where nothing can be computed now.
  bool StartStep();
  // Finds the streams whose gateways are behind with reading.
  void LookForSlowReaders();
  void FinishOldest();
  void EndTurn(int64_t items);
  BlockLoadReport Load();
  // Calls of sinks that are not replies: behind all that was handed over before.
  void Tell(OrderedHandoff::Job calls) { handoff_.RunIfIdle(std::move(calls)); }
  // For a map that nobody uses yet: turns that are under way keep theirs.
  Sinks& ChangeSinks();

  // Of the handoff's jobs.
  void Deliver(Turn turn);
  void Publish(const EngineLoopStats& stats, const BusyMeter& busy);

  BlockEngine& engine_;
  const Clock& clock_;
  const size_t width_;  // D
  const BlockMetrics metrics_;
  const std::shared_ptr<BlockMailbox> mailbox_ = std::make_shared<BlockMailbox>();
  std::thread thread_;

  // The loop's thread alone.
  BlockScheduler scheduler_;
  BusyMeter busy_;
  std::deque<StepUnderWay> under_way_;  // started and not finished, oldest first
  // The end of the step finished last, or when work came after it: since then the engine has stood
  // although there was work, unless a step is under way.
  absl::Time standing_since_;
  std::shared_ptr<Sinks> sinks_ = std::make_shared<Sinks>();  // changed by ChangeSinks alone
  std::map<uint64_t, StreamId> latest_;                       // of each gateway, by its incarnation
  std::deque<StreamItems> held_;                              // until the part hash is known
  std::string part_hash_;
  bool hello_known_ = false;
  bool draining_ = false;
  std::vector<StreamId> slow_readers_;
  FloatBuffers buffers_;  // for the contexts of steps
  EngineLoopStats counters_;

  // The handoff's jobs alone.
  std::vector<StreamId> touched_;  // sinks with replies that were not flushed
  int64_t cached_blocks_ = 0;

  mutable Mutex mutex_;
  CondVar changed_;
  EngineLoopStats published_ ABSL_GUARDED_BY(mutex_);
  BusyMeter published_busy_ ABSL_GUARDED_BY(mutex_);
  std::vector<BlockOutbox> spare_ ABSL_GUARDED_BY(mutex_);  // empty ones, for their memory

  OrderedHandoff handoff_;  // last: its thread uses the others
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_ENGINE_LOOP_H_
