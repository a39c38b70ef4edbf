// The loop with several threads at its mailbox; run under the thread sanitizer too.
#include "block_service/engine_loop.h"

#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "block_service/test_engine.h"
#include "common/logging.h"
#include "common/mutex.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

// What a stream has been told; its owner waits for answers.
class RecordingSink final : public BlockReplySink {
 public:
  void SayHello(const std::string& part_hash, const BlockLoadReport& load) override {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(greeted_) << "one hello";
    greeted_ = true;
    changed_.SignalAll();
  }
  void Add(const BlockItemReply& reply) override {
    MutexLock lock(&mutex_);
    EXPECT_TRUE(greeted_) << "the hello comes first";
    EXPECT_FALSE(ended_) << "the end comes last";
    EXPECT_TRUE(reply.last);
    EXPECT_TRUE(
        answers_
            .emplace(reply.id, Answer{reply.status, {reply.contexts.begin(), reply.contexts.end()}})
            .second);
  }
  void Flush(const BlockLoadReport& load) override {
    MutexLock lock(&mutex_);
    last_load_ = load;
    changed_.SignalAll();
  }
  void End(const absl::Status& status) override {
    MutexLock lock(&mutex_);
    EXPECT_FALSE(ended_);
    ended_ = true;
    changed_.SignalAll();
  }

  struct Answer {
    absl::Status status;
    std::vector<float> row;
  };
  // Waits for the answer, or for the end (UNAVAILABLE).
  Answer Wait(uint64_t id) {
    MutexLock lock(&mutex_);
    while (!answers_.count(id) && !ended_) changed_.Wait(&mutex_);
    const auto found = answers_.find(id);
    if (found == answers_.end()) return {absl::UnavailableError("ended"), {}};
    return found->second;
  }
  bool Has(uint64_t id) {
    MutexLock lock(&mutex_);
    return answers_.count(id) > 0;
  }
  BlockLoadReport WaitForDrain() {
    MutexLock lock(&mutex_);
    while (!last_load_.draining) changed_.Wait(&mutex_);
    return last_load_;
  }
  void WaitForEnd() {
    MutexLock lock(&mutex_);
    while (!ended_) changed_.Wait(&mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::map<uint64_t, Answer> answers_ ABSL_GUARDED_BY(mutex_);
  BlockLoadReport last_load_ ABSL_GUARDED_BY(mutex_);
  bool greeted_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
};

// Holds whoever comes until it is opened; the test waits for the first to come.
class Gate {
 public:
  void Pass() {
    MutexLock lock(&mutex_);
    reached_ = true;
    changed_.SignalAll();
    while (!open_) changed_.Wait(&mutex_);
  }
  void WaitUntilReached() {
    MutexLock lock(&mutex_);
    while (!reached_) changed_.Wait(&mutex_);
  }
  void Open() {
    MutexLock lock(&mutex_);
    open_ = true;
    changed_.SignalAll();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool reached_ ABSL_GUARDED_BY(mutex_) = false;
  bool open_ ABSL_GUARDED_BY(mutex_) = false;
};

// So many replies at a time are for the thread of deliveries, whatever the loop has to do.
constexpr uint64_t kManyReplies = 100;
constexpr uint64_t kFirstRefused = 1'000'000;

// Items that are refused: replies without a step.
StreamItems Refused(StreamId stream, uint64_t first_id = kFirstRefused) {
  StreamItems items;
  items.stream = stream;
  for (uint64_t i = 0; i < kManyReplies; ++i) items.refused.push_back(first_id + i);
  return items;
}

// One that is held at its first reply.
class HeldSink final : public BlockReplySink {
 public:
  void SayHello(const std::string&, const BlockLoadReport&) override {}
  void Add(const BlockItemReply&) override { gate.Pass(); }
  void Flush(const BlockLoadReport&) override {}
  void End(const absl::Status&) override {}

  Gate gate;
};

class HandClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::UnixEpoch() + absl::Seconds(seconds_.load()); }
  void Advance(int64_t seconds) { seconds_ += seconds; }

 private:
  std::atomic<int64_t> seconds_{0};
};

constexpr int64_t kPages = 2048;

struct Fixture {
  explicit Fixture(const Clock* other_clock = nullptr, const BlockMetrics& metrics = {},
                   int32_t in_flight = 1)
      : engine(2, 100, in_flight) {
    BlockSchedulerOptions options;
    options.block_length = 2;
    options.vocab_size = 100;
    options.context_width = TestBlockEngine::kWidth;
    options.num_pages = kPages;
    options.page_blocks = 4;
    options.max_sequences = 512;
    options.reserve_tokens = 16;
    EXPECT_TRUE(engine.AllocateKv(options.num_pages, options.page_blocks).ok());
    loop = std::make_unique<EngineLoop>(engine, options,
                                        other_clock != nullptr ? *other_clock : clock, metrics);
    loop->Start();
  }
  void Greet() { loop->mailbox()->Post(PartHashKnown{"hash"}); }

  SteadyClock clock;
  TestBlockEngine engine;
  std::unique_ptr<EngineLoop> loop;
};

// Different for every seed up to 90.
std::vector<int32_t> Tokens(int32_t blocks, int32_t seed) {
  return std::vector<int32_t>(static_cast<size_t>(blocks) * 2, seed % 90);
}

BlockWorkItem Item(StreamId stream, uint64_t id) {
  BlockWorkItem item;
  item.stream = stream;
  item.id = id;
  item.sequence = {stream, 1};
  return item;
}

StreamItems OpenItem(StreamId stream, uint64_t id) {
  StreamItems items;
  items.stream = stream;
  items.items.push_back(Item(stream, id));
  items.items.back().call = OpenCall{std::vector<int32_t>(10, 3), 4};
  return items;
}

// One gateway: opens, appends and closes sequences, and checks every row.
void RunGateway(BlockMailbox& mailbox, StreamId stream, int sequences, int blocks) {
  auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{stream, stream * 100, sink});
  uint64_t id = 0;
  const auto call = [&](uint64_t sequence, auto what) {
    BlockWorkItem item;
    item.stream = stream;
    item.id = ++id;
    item.sequence = {stream * 100, sequence};
    item.call = std::move(what);
    StreamItems items;
    items.stream = stream;
    items.items.push_back(std::move(item));
    mailbox.Post(std::move(items));
    return id;
  };
  for (int s = 0; s < sequences; ++s) {
    const uint64_t sequence = static_cast<uint64_t>(s);
    std::vector<int32_t> tokens(10, static_cast<int32_t>(s % 3));
    uint64_t last = call(sequence, OpenCall{tokens, blocks});
    for (int b = 0; b < blocks; ++b) {
      const RecordingSink::Answer answer = sink->Wait(last);
      ASSERT_TRUE(answer.status.ok()) << answer.status;
      ASSERT_EQ(answer.row, TestBlockEngine::Row(tokens, 2));
      const int64_t index = static_cast<int64_t>(tokens.size()) / 2;
      const std::vector<int32_t> block = {b % 100, s % 100};
      tokens.insert(tokens.end(), block.begin(), block.end());
      last = call(sequence, AppendCall{index, {block.begin(), block.end()}});
    }
    sink->Wait(last);
    sink->Wait(call(sequence, CloseCall{}));
  }
  mailbox.Post(StreamClosed{stream});
}

TEST(EngineLoop, SeveralGatewaysWorkAtATime) {
  Fixture fixture;
  std::vector<std::thread> gateways;
  for (StreamId stream = 1; stream <= 4; ++stream) {
    gateways.emplace_back([&, stream] { RunGateway(*fixture.loop->mailbox(), stream, 10, 8); });
  }
  fixture.Greet();
  for (std::thread& gateway : gateways) gateway.join();
  EXPECT_TRUE(fixture.loop->WaitUntilEmpty(absl::Seconds(60)));
  fixture.loop->Stop();
  const EngineLoopStats stats = fixture.loop->stats();
  EXPECT_EQ(stats.decode_blocks, 4u * 10 * 8);
  EXPECT_EQ(stats.load.pages.free_pages + stats.load.pages.cached_pages, kPages);
  EXPECT_GT(stats.cached_blocks, 0);
}

// A gateway whose sequences are many: each appends its next block as soon as it has a row, and some
// are closed in the middle.
void RunManySequences(BlockMailbox& mailbox, StreamId stream, int sequences, int blocks) {
  auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{stream, stream * 100, sink});
  std::vector<std::vector<int32_t>> tokens;
  std::vector<uint64_t> last(static_cast<size_t>(sequences));
  uint64_t id = 0;
  const auto call = [&](StreamItems& items, int sequence, auto what) {
    BlockWorkItem& item = items.items.emplace_back();
    item.stream = items.stream = stream;
    item.id = ++id;
    item.sequence = {stream * 100, static_cast<uint64_t>(sequence)};
    item.call = std::move(what);
    return id;
  };
  StreamItems opens;
  for (int s = 0; s < sequences; ++s) {
    tokens.push_back(Tokens(5, s));
    last[static_cast<size_t>(s)] = call(opens, s, OpenCall{tokens.back(), blocks});
  }
  mailbox.Post(std::move(opens));
  for (int b = 0; b < blocks; ++b) {
    StreamItems appends;
    for (int s = 0; s < sequences; ++s) {
      const auto at = static_cast<size_t>(s);
      if (s % 7 == 3 && b > blocks / 2) {  // is closed while its block is computed
        if (b == blocks / 2 + 1) last[at] = call(appends, s, CloseCall{});
        continue;
      }
      const RecordingSink::Answer answer = sink->Wait(last[at]);
      ASSERT_TRUE(answer.status.ok()) << answer.status;
      ASSERT_EQ(answer.row, TestBlockEngine::Row(tokens[at], 2));
      const std::vector<int32_t> block = {b % 100, s % 90};
      tokens[at].insert(tokens[at].end(), block.begin(), block.end());
      last[at] = call(appends, s, AppendCall{b + 5, {block.begin(), block.end()}});
      if (appends.items.size() >= 80) mailbox.Post(std::exchange(appends, {}));
    }
    if (!appends.items.empty()) mailbox.Post(std::move(appends));
  }
  StreamItems closes;
  for (int s = 0; s < sequences; ++s) {
    sink->Wait(last[static_cast<size_t>(s)]);
    last[static_cast<size_t>(s)] = call(closes, s, CloseCall{});
  }
  mailbox.Post(std::move(closes));
  for (const uint64_t close : last) sink->Wait(close);
  mailbox.Post(StreamClosed{stream});
}

TEST(EngineLoop, ManySequencesOfAnEngineThatTakesTwoStepsAtATime) {
  Fixture fixture(nullptr, {}, 2);
  // What comes meanwhile may be enough for a step beside it.
  fixture.engine.SetBeforeFinish([] { std::this_thread::yield(); });
  std::vector<std::thread> gateways;
  for (StreamId stream = 1; stream <= 2; ++stream) {
    gateways.emplace_back(
        [&, stream] { RunManySequences(*fixture.loop->mailbox(), stream, 200, 6); });
  }
  fixture.Greet();
  for (std::thread& gateway : gateways) gateway.join();
  EXPECT_TRUE(fixture.loop->WaitUntilEmpty(absl::Seconds(60)));
  fixture.loop->Stop();
  const EngineLoopStats stats = fixture.loop->stats();
  EXPECT_EQ(stats.load.pages.free_pages + stats.load.pages.cached_pages, kPages);
  EXPECT_EQ(fixture.engine.most_under_way(), 2);
}

TEST(EngineLoop, TheNextStepIsBegunWhileOneIsUnderWay) {
  Fixture fixture(nullptr, {}, 2);
  Gate gate;
  fixture.engine.SetBeforeFinish([&] { gate.Pass(); });
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  fixture.Greet();
  const auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{1, 1, sink});
  const std::vector<int32_t> prompt = Tokens(400, 1);  // in chunks of 256 blocks
  StreamItems items = OpenItem(1, 7);
  items.items[0].call = OpenCall{prompt, 4};
  mailbox.Post(std::move(items));
  gate.WaitUntilReached();
  EXPECT_EQ(fixture.engine.steps(), 2);
  EXPECT_FALSE(sink->Has(7));
  // What comes now is answered when the engine has had its turn, in the order of the steps.
  mailbox.Post(OpenItem(1, 8));
  gate.Open();
  EXPECT_EQ(sink->Wait(7).row, TestBlockEngine::Row(prompt, 2));
  EXPECT_EQ(sink->Wait(8).status.code(), absl::StatusCode::kAborted)
      << "it is open with other tokens";
}

TEST(EngineLoop, AStepThatTheEngineRefusesFailsAfterTheOneBeforeIt) {
  Fixture fixture(nullptr, {}, 2);
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  const auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{1, 1, sink});
  StreamItems items = OpenItem(1, 7);
  items.items[0].call = OpenCall{Tokens(400, 1), 4};
  mailbox.Post(std::move(items));
  fixture.engine.RefuseStep(1, absl::UnavailableError("no memory"));
  fixture.Greet();
  EXPECT_EQ(sink->Wait(7).status, absl::UnavailableError("no memory"));
  mailbox.Post(OpenItem(1, 8));
  EXPECT_TRUE(sink->Wait(8).status.ok());
}

TEST(EngineLoop, ALostDeviceEndsTheProcessWithoutAnAnswer) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        ASSERT_TRUE(ConfigureLogging({}).ok());
        Fixture fixture;
        fixture.engine.Lose(absl::UnavailableError("cuda:3 is lost: uncorrectable ECC error"));
        fixture.Greet();
        RunGateway(*fixture.loop->mailbox(), 1, 1, 1);
      },
      testing::ExitedWithCode(1), "this process ends: cuda:3 is lost: uncorrectable ECC error");
}

TEST(EngineLoop, AnIdleLoopHasNoWorkAndOneThatHangsHas) {
  Fixture fixture;
  const std::shared_ptr<const Progress> progress = fixture.loop->progress();
  fixture.Greet();
  RunGateway(*fixture.loop->mailbox(), 1, 3, 4);
  EXPECT_TRUE(fixture.loop->WaitUntilEmpty(absl::Seconds(60)));
  while (progress->has_work()) std::this_thread::yield();  // its last turn ends
  EXPECT_GT(progress->turns(), 0u);

  // A sink that does not return stands for an engine that does not.
  class HangingSink final : public BlockReplySink {
   public:
    void SayHello(const std::string&, const BlockLoadReport&) override {
      MutexLock lock(&mutex_);
      reached_ = true;
      changed_.SignalAll();
      while (!go_on_) changed_.Wait(&mutex_);
    }
    void Add(const BlockItemReply&) override {}
    void Flush(const BlockLoadReport&) override {}
    void End(const absl::Status&) override {}
    void WaitUntilReached() {
      MutexLock lock(&mutex_);
      while (!reached_) changed_.Wait(&mutex_);
    }
    void GoOn() {
      MutexLock lock(&mutex_);
      go_on_ = true;
      changed_.SignalAll();
    }

   private:
    Mutex mutex_;
    CondVar changed_;
    bool reached_ ABSL_GUARDED_BY(mutex_) = false;
    bool go_on_ ABSL_GUARDED_BY(mutex_) = false;
  };
  const auto sink = std::make_shared<HangingSink>();
  fixture.loop->mailbox()->Post(StreamOpened{2, 2, sink});
  sink->WaitUntilReached();
  absl::Time now = absl::UnixEpoch();
  StallWatch watch(*progress, absl::Seconds(60), now);
  watch.IsStuck(now);
  EXPECT_TRUE(watch.IsStuck(now += absl::Seconds(60)));
  sink->GoOn();
  while (progress->has_work()) std::this_thread::yield();
  EXPECT_FALSE(watch.IsStuck(now));
}

TEST(EngineLoop, AStepRunsWhileTheRepliesOfTheOneBeforeAreDelivered) {
  Fixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  fixture.Greet();
  const auto held = std::make_shared<HeldSink>();
  mailbox.Post(StreamOpened{1, 1, held});
  mailbox.Post(Refused(1));
  held->gate.WaitUntilReached();
  const auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{2, 2, sink});
  mailbox.Post(OpenItem(2, 7));
  // The reply itself has to wait for those before it.
  while (fixture.engine.steps() == 0) std::this_thread::yield();
  held->gate.Open();
  EXPECT_TRUE(sink->Wait(7).status.ok());
}

TEST(EngineLoop, ASequenceAloneIsAnsweredByTheThreadOfItsSteps) {
  // Its replies say which thread they came from.
  class ThreadSink final : public BlockReplySink {
   public:
    void SayHello(const std::string&, const BlockLoadReport&) override {}
    void Add(const BlockItemReply&) override {
      MutexLock lock(&mutex_);
      threads_.push_back(std::this_thread::get_id());
      changed_.SignalAll();
    }
    void Flush(const BlockLoadReport&) override {}
    void End(const absl::Status&) override {}
    std::thread::id WaitForReply(size_t index) {
      MutexLock lock(&mutex_);
      while (threads_.size() <= index) changed_.Wait(&mutex_);
      return threads_[index];
    }

   private:
    Mutex mutex_;
    CondVar changed_;
    std::vector<std::thread::id> threads_ ABSL_GUARDED_BY(mutex_);
  };
  Fixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  const std::shared_ptr<const Progress> progress = fixture.loop->progress();
  fixture.Greet();
  const auto sink = std::make_shared<ThreadSink>();
  mailbox.Post(StreamOpened{1, 1, sink});
  for (uint64_t id = 1; id <= 5; ++id) {
    while (progress->has_work()) std::this_thread::yield();
    StreamItems items = OpenItem(1, id);
    if (id > 1) {
      items.items[0].call = AppendCall{static_cast<int64_t>(id) + 3, {5, 5}};
    }
    mailbox.Post(std::move(items));
    const std::thread::id answering = sink->WaitForReply(id - 1);
    EXPECT_EQ(answering, fixture.engine.stepping_thread());
  }
}

TEST(EngineLoop, ADeliveryThatHangsIsNoProgress) {
  Fixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  const std::shared_ptr<const Progress> progress = fixture.loop->progress();
  fixture.Greet();
  const auto held = std::make_shared<HeldSink>();
  mailbox.Post(StreamOpened{1, 1, held});
  mailbox.Post(Refused(1));
  held->gate.WaitUntilReached();
  absl::Time now = absl::UnixEpoch();
  StallWatch watch(*progress, absl::Seconds(60), now);
  watch.IsStuck(now);
  // The loop itself goes on for as long as it may be ahead.
  mailbox.Post(StreamOpened{2, 2, std::make_shared<RecordingSink>()});
  mailbox.Post(OpenItem(2, 7));
  while (fixture.engine.steps() == 0) std::this_thread::yield();
  for (StreamId stream = 3; stream < 10; ++stream) mailbox.Post(StreamClosed{stream});
  EXPECT_TRUE(watch.IsStuck(now += absl::Seconds(60)));
  held->gate.Open();
  while (progress->has_work()) std::this_thread::yield();
  EXPECT_FALSE(watch.IsStuck(now));
}

TEST(EngineLoop, ItIsNotEmptyBeforeItsRepliesAreWithTheirStreams) {
  Fixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  fixture.Greet();
  const auto sink = std::make_shared<RecordingSink>();
  const auto held = std::make_shared<HeldSink>();
  mailbox.Post(StreamOpened{1, 1, sink});
  mailbox.Post(StreamOpened{2, 2, held});
  mailbox.Post(OpenItem(1, 7));
  EXPECT_TRUE(sink->Wait(7).status.ok());
  while (fixture.loop->stats().load.pages.sequences == 0) std::this_thread::yield();
  mailbox.Post(Refused(2));
  held->gate.WaitUntilReached();
  StreamItems close;
  close.stream = 1;
  close.items.push_back(Item(1, 8));
  close.items.back().call = CloseCall{};
  mailbox.Post(std::move(close));
  while (!mailbox.empty()) std::this_thread::yield();
  EXPECT_FALSE(fixture.loop->WaitUntilEmpty(absl::Milliseconds(20)));
  held->gate.Open();
  EXPECT_TRUE(fixture.loop->WaitUntilEmpty(absl::Seconds(60)));
  EXPECT_TRUE(sink->Has(8));
}

TEST(EngineLoop, TimeInWhichWorkWaitedForItsStepIsCountedAndIdleTimeIsNot) {
  // A stream whose hello takes its time: the loop's own.
  class SlowSink final : public BlockReplySink {
   public:
    explicit SlowSink(HandClock& clock) : clock_(clock) {}
    void SayHello(const std::string&, const BlockLoadReport&) override { clock_.Advance(100); }
    void Add(const BlockItemReply&) override {}
    void Flush(const BlockLoadReport&) override {}
    void End(const absl::Status&) override {}

   private:
    HandClock& clock_;
  };
  // The first hello holds the loop until what follows is in the mailbox.
  class HeldHello final : public BlockReplySink {
   public:
    void SayHello(const std::string&, const BlockLoadReport&) override { gate.Pass(); }
    void Add(const BlockItemReply&) override {}
    void Flush(const BlockLoadReport&) override {}
    void End(const absl::Status&) override {}

    Gate gate;
  };
  HandClock clock;
  MetricRegistry registry;
  const BlockMetrics metrics(registry);
  Fixture fixture(&clock, metrics);
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  const std::shared_ptr<const Progress> progress = fixture.loop->progress();
  fixture.Greet();
  const auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{1, 1, sink});
  mailbox.Post(OpenItem(1, 7));
  sink->Wait(7);
  while (progress->has_work()) std::this_thread::yield();
  clock.Advance(10'000);
  const auto held = std::make_shared<HeldHello>();
  mailbox.Post(StreamOpened{2, 2, held});
  held->gate.WaitUntilReached();
  mailbox.Post(StreamOpened{3, 3, std::make_shared<SlowSink>(clock)});
  StreamItems items = OpenItem(1, 8);
  items.items[0].call = AppendCall{5, {5, 5}};
  mailbox.Post(std::move(items));
  held->gate.Open();
  sink->Wait(8);
  EXPECT_EQ(metrics.steps.Value(), 2);
  EXPECT_EQ(metrics.step_gap_seconds.Value(), 100);
}

TEST(EngineLoop, WhatWasHandedOverIsDeliveredBeforeAStreamEnds) {
  Fixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  fixture.Greet();
  const auto held = std::make_shared<HeldSink>();
  const auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{1, 1, held});
  mailbox.Post(StreamOpened{2, 2, sink});
  mailbox.Post(Refused(1));
  held->gate.WaitUntilReached();
  mailbox.Post(Refused(2));
  while (!mailbox.empty()) std::this_thread::yield();
  mailbox.Post(OpenItem(2, 7));
  while (fixture.engine.steps() == 0) std::this_thread::yield();
  std::thread stopper([&] { fixture.loop->Stop(); });
  held->gate.Open();
  stopper.join();
  sink->WaitForEnd();
  for (uint64_t i = 0; i < kManyReplies; ++i) EXPECT_TRUE(sink->Has(kFirstRefused + i));
  EXPECT_TRUE(sink->Has(7));
}

// It would take its repetition on the new stream with it when the old one's end is heard of.
TEST(EngineLoop, WhatIsStillReadOfAGatewaysOldStreamIsNotWorkedOn) {
  Fixture fixture;
  auto old_sink = std::make_shared<RecordingSink>();
  auto new_sink = std::make_shared<RecordingSink>();
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  mailbox.Post(StreamOpened{1, 7, old_sink});
  mailbox.Post(StreamOpened{2, 7, new_sink});
  const std::vector<int32_t> tokens(10, 3);
  for (const StreamId stream : {1, 2}) {
    BlockWorkItem item;
    item.stream = stream;
    item.id = 5;
    item.sequence = {7, 1};
    item.call = OpenCall{tokens, 4};
    StreamItems items;
    items.stream = stream;
    items.items.push_back(std::move(item));
    mailbox.Post(std::move(items));
  }
  mailbox.Post(StreamClosed{1});
  old_sink->WaitForEnd();
  fixture.Greet();
  const RecordingSink::Answer answer = new_sink->Wait(5);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.row, TestBlockEngine::Row(tokens, 2));
}

TEST(EngineLoop, StoppingEndsEveryStream) {
  Fixture fixture;
  fixture.Greet();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (StreamId stream = 1; stream <= 3; ++stream) {
    sinks.push_back(std::make_shared<RecordingSink>());
    fixture.loop->mailbox()->Post(StreamOpened{stream, stream, sinks.back()});
  }
  std::thread stopper([&] { fixture.loop->Stop(); });
  for (const auto& sink : sinks) sink->WaitForEnd();
  stopper.join();
  EXPECT_FALSE(fixture.loop->mailbox()->Post(DrainWanted{}));
}

TEST(EngineLoop, DrainingIsTold) {
  Fixture fixture;
  fixture.Greet();
  auto sink = std::make_shared<RecordingSink>();
  fixture.loop->mailbox()->Post(StreamOpened{1, 1, sink});
  fixture.loop->mailbox()->Post(DrainWanted{});
  EXPECT_TRUE(sink->WaitForDrain().draining);
}

}  // namespace
}  // namespace blockserve
