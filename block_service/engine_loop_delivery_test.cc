// The loop beside the thread that delivers its replies; run under the thread sanitizer too.
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "block_service/engine_loop.h"
#include "block_service/engine_loop_test_util.h"

namespace blockserve {
namespace {

TEST(EngineLoop, AStepRunsWhileTheRepliesOfTheOneBeforeAreDelivered) {
  LoopFixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  fixture.Greet();
  const auto held = std::make_shared<HeldSink>();
  mailbox.Post(StreamOpened{1, 1, held});
  mailbox.Post(Refused(1));
  ASSERT_TRUE(held->gate.WaitForArrivals(1));
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
  LoopFixture fixture;
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
  LoopFixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  const std::shared_ptr<const Progress> progress = fixture.loop->progress();
  fixture.Greet();
  const auto held = std::make_shared<HeldSink>();
  mailbox.Post(StreamOpened{1, 1, held});
  mailbox.Post(Refused(1));
  ASSERT_TRUE(held->gate.WaitForArrivals(1));
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
  LoopFixture fixture;
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
  ASSERT_TRUE(held->gate.WaitForArrivals(1));
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
  HandClock clock;
  MetricRegistry registry;
  const BlockMetrics metrics(registry);
  LoopFixture fixture(&clock, metrics);
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  const std::shared_ptr<const Progress> progress = fixture.loop->progress();
  fixture.Greet();
  const auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{1, 1, sink});
  mailbox.Post(OpenItem(1, 7));
  sink->Wait(7);
  while (progress->has_work()) std::this_thread::yield();
  clock.Advance(10'000);
  // The first hello holds the loop until what follows is in the mailbox.
  const auto held = std::make_shared<HeldHello>();
  mailbox.Post(StreamOpened{2, 2, held});
  ASSERT_TRUE(held->gate.WaitForArrivals(1));
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
  LoopFixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  fixture.Greet();
  const auto held = std::make_shared<HeldSink>();
  const auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{1, 1, held});
  mailbox.Post(StreamOpened{2, 2, sink});
  mailbox.Post(Refused(1));
  ASSERT_TRUE(held->gate.WaitForArrivals(1));
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

}  // namespace
}  // namespace blockserve
