// The loop with several threads at its mailbox; run under the thread sanitizer too.
#include "block_service/engine_loop.h"

#include <atomic>
#include <map>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "block_service/engine_loop_test_util.h"
#include "common/logging.h"

namespace blockserve {
namespace {

// Whose reader is as far behind as the test says.
class SlowSink final : public RecordingSink {
 public:
  int64_t unsent_bytes() const override { return unsent.load(); }

  std::atomic<int64_t> unsent{0};
};

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
  LoopFixture fixture;
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
  LoopFixture fixture(nullptr, {}, 2);
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
  LoopFixture fixture(nullptr, {}, 2);
  Gate gate{/*open=*/false};
  fixture.engine.SetBeforeFinish([&] { gate.Pass(); });
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  fixture.Greet();
  const auto sink = std::make_shared<RecordingSink>();
  mailbox.Post(StreamOpened{1, 1, sink});
  const std::vector<int32_t> prompt = Tokens(400, 1);  // in chunks of 256 blocks
  StreamItems items = OpenItem(1, 7);
  items.items[0].call = OpenCall{prompt, 4};
  mailbox.Post(std::move(items));
  ASSERT_TRUE(gate.WaitForArrivals(1));
  EXPECT_EQ(fixture.engine.steps(), 2);
  EXPECT_FALSE(sink->Has(7));
  // What comes now is answered when the engine has had its turn, in the order of the steps.
  mailbox.Post(OpenItem(1, 8));
  gate.Open();
  EXPECT_EQ(sink->Wait(7).row, TestBlockEngine::Row(prompt, 2));
  EXPECT_EQ(sink->Wait(8).status.code(), absl::StatusCode::kAborted)
      << "it is open with other tokens";
}

TEST(EngineLoop, ATextIsScoredWhenItsReaderHasCaughtUp) {
  LoopFixture fixture;
  BlockMailbox& mailbox = *fixture.loop->mailbox();
  fixture.Greet();
  const auto sink = std::make_shared<SlowSink>();
  sink->unsent = int64_t{33} << 20;
  mailbox.Post(StreamOpened{1, 1, sink});
  StreamItems score;
  score.stream = 1;
  score.items.push_back(Item(1, 1));
  score.items.back().call = OpenCall{Tokens(8, 1), 0, /*first_context=*/0, /*close_after=*/true};
  mailbox.Post(std::move(score));
  StreamItems open = OpenItem(1, 2);
  open.items.back().sequence.sequence = 2;
  mailbox.Post(std::move(open));
  EXPECT_TRUE(sink->Wait(2).status.ok());
  EXPECT_FALSE(sink->Has(1));
  sink->unsent = 0;
  EXPECT_TRUE(sink->Wait(1).status.ok());
}

TEST(EngineLoop, AStepThatTheEngineRefusesFailsAfterTheOneBeforeIt) {
  LoopFixture fixture(nullptr, {}, 2);
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
        LoopFixture fixture;
        fixture.engine.Lose(absl::UnavailableError("cuda:3 is lost: uncorrectable ECC error"));
        fixture.Greet();
        RunGateway(*fixture.loop->mailbox(), 1, 1, 1);
      },
      testing::ExitedWithCode(1), "this process ends: cuda:3 is lost: uncorrectable ECC error");
}

TEST(EngineLoop, AnIdleLoopHasNoWorkAndOneThatHangsHas) {
  LoopFixture fixture;
  const std::shared_ptr<const Progress> progress = fixture.loop->progress();
  fixture.Greet();
  RunGateway(*fixture.loop->mailbox(), 1, 3, 4);
  EXPECT_TRUE(fixture.loop->WaitUntilEmpty(absl::Seconds(60)));
  while (progress->has_work()) std::this_thread::yield();  // its last turn ends
  EXPECT_GT(progress->turns(), 0u);

  // A sink that does not return stands for an engine that does not.
  const auto sink = std::make_shared<HeldHello>();
  fixture.loop->mailbox()->Post(StreamOpened{2, 2, sink});
  ASSERT_TRUE(sink->gate.WaitForArrivals(1));
  absl::Time now = absl::UnixEpoch();
  StallWatch watch(*progress, absl::Seconds(60), now);
  watch.IsStuck(now);
  EXPECT_TRUE(watch.IsStuck(now += absl::Seconds(60)));
  sink->gate.Open();
  while (progress->has_work()) std::this_thread::yield();
  EXPECT_FALSE(watch.IsStuck(now));
}

// It would take its repetition on the new stream with it when the old one's end is heard of.
TEST(EngineLoop, WhatIsStillReadOfAGatewaysOldStreamIsNotWorkedOn) {
  LoopFixture fixture;
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
  LoopFixture fixture;
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
  LoopFixture fixture;
  fixture.Greet();
  auto sink = std::make_shared<RecordingSink>();
  fixture.loop->mailbox()->Post(StreamOpened{1, 1, sink});
  fixture.loop->mailbox()->Post(DrainWanted{});
  EXPECT_TRUE(sink->WaitForDrain().draining);
}

}  // namespace
}  // namespace blockserve
