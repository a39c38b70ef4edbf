#include "block_service/engine_loop.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/lost_device.h"
#include "common/thread_name.h"
#include "model/batch_beside.h"

namespace blockserve {
namespace {

// Longer waits are cut: an endless one overflows in some clocks.
constexpr absl::Duration kLongestWait = absl::Hours(1);
// Of a stream whose gateway has so much to read, no text is scored meanwhile: its rows come by the
// thousand. What steps under way add to it is a good deal less than a stream may have unsent.
constexpr int64_t kMostUnsentBytes = int64_t{32} << 20;
// Where nothing else can be done it is looked again after so long.
constexpr absl::Duration kSlowReaderHold = absl::Milliseconds(10);
// The loop is at most so many turns ahead of the one that is being delivered: enough that neither
// waits for the other where they take alike, and few rows to keep.
constexpr size_t kTurnsWaiting = 2;
// Fewer replies than this are delivered before a thread that is woken for them would begin.
constexpr size_t kFewReplies = 32;

BlockSchedulerOptions WithCopies(BlockSchedulerOptions options, BlockEngine& engine) {
  options.copy_page = [&engine](int32_t from, int32_t to, int32_t blocks) {
    engine.CopyPage(from, to, blocks);
  };
  return options;
}

}  // namespace

bool BlockMailbox::Post(BlockEvent event) {
  MutexLock lock(&mutex_);
  if (closed_) return false;
  progress_.Add(1);
  events_.push_back(std::move(event));
  arrived_.Signal();
  return true;
}

bool BlockMailbox::Take(std::vector<BlockEvent>& events, absl::Duration timeout) {
  MutexLock lock(&mutex_);
  while (events_.empty() && !closed_ && timeout > absl::ZeroDuration()) {
    if (arrived_.WaitWithTimeout(&mutex_, std::min(timeout, kLongestWait))) break;
  }
  events.swap(events_);
  return !closed_;
}

bool BlockMailbox::empty() const {
  MutexLock lock(&mutex_);
  return events_.empty();
}

void BlockMailbox::Close() {
  MutexLock lock(&mutex_);
  closed_ = true;
  arrived_.SignalAll();
}

EngineLoop::EngineLoop(BlockEngine& engine, BlockSchedulerOptions options, const Clock& clock,
                       const BlockMetrics& metrics)
    : engine_(engine),
      clock_(clock),
      width_(static_cast<size_t>(options.context_width)),
      metrics_(metrics),
      scheduler_(WithCopies(std::move(options), engine)),
      busy_(clock.Now()),
      published_busy_(busy_),
      handoff_("block-delivery", kTurnsWaiting) {
  counters_.load = Load();
  Publish(counters_, busy_);
}

EngineLoop::~EngineLoop() { Stop(); }

void EngineLoop::Start() {
  thread_ = std::thread([this] { Run(); });
}

void EngineLoop::Stop() {
  mailbox_->Close();
  if (thread_.joinable()) thread_.join();
  handoff_.Stop();
}

bool EngineLoop::WaitUntilEmpty(absl::Duration timeout) {
  const absl::Time end = clock_.Now() + timeout;
  MutexLock lock(&mutex_);
  while (published_.load.pages.sequences > 0) {
    const absl::Duration left = end - clock_.Now();
    if (left <= absl::ZeroDuration()) return false;
    changed_.WaitWithTimeout(&mutex_, left);
  }
  return true;
}

EngineLoopStats EngineLoop::stats() const {
  const absl::Time now = clock_.Now();
  MutexLock lock(&mutex_);
  EngineLoopStats stats = published_;
  // An idle loop publishes nothing, and is less and less busy.
  stats.load.busy_share = published_busy_.Share(now);
  return stats;
}

void EngineLoop::Run() {
  SetThreadName("block-engine");
  Progress& progress = mailbox_->progress();
  std::vector<BlockEvent> events;
  bool worked = false;
  while (true) {
    // While there is work the mailbox is only looked into.
    absl::Duration wait = worked ? absl::ZeroDuration() : scheduler_.NextWakeUp() - clock_.Now();
    if (!slow_readers_.empty() && scheduler_.has_work()) wait = std::min(wait, kSlowReaderHold);
    if (!mailbox_->Take(events, wait)) break;
    // Before these events there was nothing to compute.
    if (!worked) standing_since_ = clock_.Now();
    // The turn itself is work, also one that was begun without an event.
    progress.Add(1);
    const int64_t items = 1 + static_cast<int64_t>(events.size());
    for (BlockEvent& event : events) Handle(std::move(event));
    events.clear();
    worked = Work();
    EndTurn(items);
  }
  while (!under_way_.empty()) FinishOldest();
  std::vector<std::shared_ptr<BlockReplySink>> ending;
  for (const auto& [stream, sink] : *sinks_) ending.push_back(sink);
  ChangeSinks().clear();
  for (BlockEvent& event : events) {
    if (auto* opened = std::get_if<StreamOpened>(&event)) ending.push_back(opened->sink);
  }
  Tell([ending = std::move(ending)] {
    for (const auto& sink : ending) {
      sink->End(absl::UnavailableError("this block service leaves"));
    }
  });
}

EngineLoop::Sinks& EngineLoop::ChangeSinks() {
  sinks_ = std::make_shared<Sinks>(*sinks_);
  return *sinks_;
}

void EngineLoop::Handle(BlockEvent event) {
  if (auto* opened = std::get_if<StreamOpened>(&event)) {
    // What is still to be read of the gateway's old stream would be opened for nobody, and take a
    // repetition on the new one with it when its end is heard of.
    StreamId& latest = latest_[opened->incarnation];
    Sinks& sinks = ChangeSinks();
    if (const auto old = sinks.find(std::exchange(latest, opened->stream)); old != sinks.end()) {
      Tell([sink = std::move(old->second)] {
        sink->End(absl::UnavailableError("this gateway has a newer stream"));
      });
      sinks.erase(old);
    }
    scheduler_.OpenStream(opened->stream, opened->incarnation, clock_.Now());
    if (hello_known_) {
      Tell([sink = opened->sink, hash = part_hash_, load = Load()] { sink->SayHello(hash, load); });
    }
    sinks[opened->stream] = std::move(opened->sink);
  } else if (auto* closed = std::get_if<StreamClosed>(&event)) {
    scheduler_.CloseStream(closed->stream, clock_.Now());
    ChangeSinks().erase(closed->stream);
    std::erase_if(latest_, [&](const auto& entry) { return entry.second == closed->stream; });
  } else if (auto* items = std::get_if<StreamItems>(&event)) {
    if (hello_known_) {
      HandleItems(std::move(*items));
    } else {
      held_.push_back(std::move(*items));
    }
  } else if (auto* known = std::get_if<PartHashKnown>(&event)) {
    part_hash_ = std::move(known->hash);
    hello_known_ = true;
    Tell([sinks = sinks_, hash = part_hash_, load = Load()] {
      for (const auto& [stream, sink] : *sinks) sink->SayHello(hash, load);
    });
    for (StreamItems& held : held_) HandleItems(std::move(held));
    held_.clear();
  } else {
    draining_ = true;
    scheduler_.StartDraining();
    if (!hello_known_) return;
    Tell([sinks = sinks_, load = Load()] {
      for (const auto& [stream, sink] : *sinks) sink->Flush(load);
    });
  }
}

void EngineLoop::HandleItems(StreamItems items) {
  if (!sinks_->contains(items.stream)) return;  // closed while the items were held
  const absl::Time now = clock_.Now();
  for (BlockWorkItem& item : items.items) scheduler_.Submit(std::move(item), now);
  for (const uint64_t id : items.refused) {
    BlockItemReply reply;
    reply.stream = items.stream;
    reply.id = id;
    reply.status = absl::ResourceExhaustedError("too many items of this stream wait already");
    scheduler_.outbox().items.push_back(std::move(reply));
  }
}

bool EngineLoop::Work() {
  const bool started = MayStart() && StartStep();
  // Before it is waited for, the mailbox may have what the engine can have beside it.
  if (started && static_cast<int32_t>(under_way_.size()) < engine_.max_in_flight()) return true;
  if (under_way_.empty()) return false;
  FinishOldest();
  return true;
}

bool EngineLoop::MayStart() const {
  if (under_way_.empty()) return true;
  if (static_cast<int32_t>(under_way_.size()) >= engine_.max_in_flight()) return false;
  const StepUnderWay& newest = under_way_.back();
  return IsWorthABatchBeside(scheduler_.plannable_blocks(),
                             newest.decode_blocks + newest.prefill_blocks);
}

void EngineLoop::LookForSlowReaders() {
  slow_readers_.clear();
  for (const auto& [stream, sink] : *sinks_) {
    if (sink->unsent_bytes() > kMostUnsentBytes) slow_readers_.push_back(stream);
  }
  scheduler_.SetSlowReaders(slow_readers_);
}

bool EngineLoop::StartStep() {
  LookForSlowReaders();
  const BlockStep& plan = scheduler_.PlanStep(clock_.Now());
  if (plan.chunks.empty()) return false;
  const size_t values = static_cast<size_t>(plan.context_rows) * width_;
  StepUnderWay step;
  step.contexts = buffers_.Take(values);
  step.decode_blocks = plan.decode_blocks;
  step.prefill_blocks = plan.prefill_blocks;
  step.begin = clock_.Now();
  step.gap = under_way_.empty() ? step.begin - standing_since_ : absl::ZeroDuration();
  step.status = engine_.Start(plan.chunks, absl::MakeSpan(step.contexts.get(), values));
  EndProcessIfLost(engine_.Lost());
  counters_.decode_blocks += static_cast<uint64_t>(plan.decode_blocks);
  counters_.prefill_blocks += static_cast<uint64_t>(plan.prefill_blocks);
  under_way_.push_back(std::move(step));
  return true;
}

void EngineLoop::FinishOldest() {
  StepUnderWay step = std::move(under_way_.front());
  under_way_.pop_front();
  if (step.status.ok()) step.status = engine_.Finish();
  if (!step.status.ok()) LogError(absl::StrCat("step failed: ", step.status.ToString()));
  EndProcessIfLost(engine_.Lost());
  const absl::Time end = clock_.Now();
  // Those that are under way together share the engine.
  const absl::Time begin = std::max(step.begin, standing_since_);
  standing_since_ = end;
  busy_.Add(begin, end);
  ++counters_.load.steps;
  metrics_.Step(step.decode_blocks, step.prefill_blocks, step.gap, end - begin);
  scheduler_.FinishStep(step.status, std::move(step.contexts));
}

void EngineLoop::EndTurn(int64_t items) {
  counters_.load = Load();
  counters_.streams = static_cast<int32_t>(sinks_->size());
  Turn turn{sinks_, {}, counters_, busy_, items};
  if (!scheduler_.outbox().items.empty()) {
    {
      MutexLock lock(&mutex_);
      if (!spare_.empty()) {
        turn.outbox = std::move(spare_.back());
        spare_.pop_back();
      }
    }
    std::swap(turn.outbox, scheduler_.outbox());
  }
  const size_t replies = turn.outbox.items.size();
  // Where the engine would stand meanwhile, the replies are for another thread. Where it has
  // nothing to do, few of them are sent at once from here: nobody else is to be woken for a
  // sequence alone.
  const bool hand_over =
      replies >= kFewReplies || (replies > 0 && (scheduler_.has_work() || !mailbox_->empty()));
  auto deliver = [this, turn = std::move(turn)]() mutable { Deliver(std::move(turn)); };
  if (hand_over) {
    handoff_.HandOver(std::move(deliver));
  } else {
    handoff_.RunIfIdle(std::move(deliver));
  }
}

void EngineLoop::Deliver(Turn turn) {
  for (const BlockItemReply& reply : turn.outbox.items) {
    if (reply.last && reply.cached_blocks > 0) {
      cached_blocks_ += reply.cached_blocks;
      metrics_.cached_blocks.Add(static_cast<double>(reply.cached_blocks));
    }
    const auto sink = turn.sinks->find(reply.stream);
    if (sink == turn.sinks->end()) continue;
    sink->second->Add(reply);
    if (std::find(touched_.begin(), touched_.end(), reply.stream) == touched_.end()) {
      touched_.push_back(reply.stream);
    }
  }
  for (const StreamId stream : touched_) {
    turn.sinks->find(stream)->second->Flush(turn.stats.load);
  }
  touched_.clear();
  turn.stats.cached_blocks = cached_blocks_;
  Publish(turn.stats, turn.busy);
  turn.outbox.Clear();
  if (turn.outbox.items.capacity() > 0) {
    MutexLock lock(&mutex_);
    spare_.push_back(std::move(turn.outbox));
  }
  mailbox_->progress().Done(turn.items);
}

BlockLoadReport EngineLoop::Load() {
  BlockLoadReport load;
  load.steps = counters_.load.steps;
  load.pages = scheduler_.load();
  load.busy_share = busy_.Share(clock_.Now());
  load.draining = draining_;
  return load;
}

void EngineLoop::Publish(const EngineLoopStats& stats, const BusyMeter& busy) {
  MutexLock lock(&mutex_);
  published_ = stats;
  published_busy_ = busy;
  changed_.SignalAll();
}

}  // namespace blockserve
