#include "gateway/stream_writers.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "gateway/manual_loop.h"

namespace blockserve {
namespace {

// Counts what is written, and by whom.
class CountedStream final : public StreamWriters::Stream {
 public:
  explicit CountedStream(std::function<void()> then = nullptr) : then_(std::move(then)) {}
  void WriteNext() override {
    by_ = std::this_thread::get_id();
    ++writes_;
    if (then_) then_();
  }
  int writes() const { return writes_; }
  bool written_here() const { return by_ == std::this_thread::get_id(); }

 private:
  const std::function<void()> then_;
  std::atomic<int> writes_ = 0;
  std::thread::id by_;
};

// Goes on when as many streams have been written.
class Latch {
 public:
  explicit Latch(int left) : left_(left) {}
  std::function<void()> CountDown() {
    return [this] {
      if (left_.fetch_sub(1) == 1) done_.set_value();
    };
  }
  void Wait() { done_.get_future().wait(); }

 private:
  std::atomic<int> left_;
  std::promise<void> done_;
};

using Streams = std::vector<std::shared_ptr<CountedStream>>;

Streams MakeStreams(size_t count, const std::function<void()>& then = nullptr) {
  Streams streams;
  for (size_t i = 0; i < count; ++i) streams.push_back(std::make_shared<CountedStream>(then));
  return streams;
}

TEST(StreamWriters, AFewOfATurnAreWrittenOnTheLoopWhenItEnds) {
  ManualLoop loop;
  StreamWriters writers(loop, 2);
  const Streams streams = MakeStreams(StreamWriters::kFew);
  loop.Post([&] {
    for (const auto& stream : streams) writers.Add(stream);
    for (const auto& stream : streams) EXPECT_EQ(stream->writes(), 0);
  });
  loop.RunReady();
  for (const auto& stream : streams) {
    EXPECT_EQ(stream->writes(), 1);
    EXPECT_TRUE(stream->written_here());
  }
}

TEST(StreamWriters, MoreOfATurnAreWrittenOnTheThreads) {
  ManualLoop loop;
  StreamWriters writers(loop, 2);
  Latch latch(StreamWriters::kFew + 1);
  const Streams streams = MakeStreams(StreamWriters::kFew + 1, latch.CountDown());
  // What tasks of one turn add counts together.
  for (const auto& stream : streams) loop.Post([&writers, stream] { writers.Add(stream); });
  loop.RunReady();
  latch.Wait();
  for (const auto& stream : streams) {
    EXPECT_EQ(stream->writes(), 1);
    EXPECT_FALSE(stream->written_here());
  }
}

TEST(StreamWriters, ABatchDoesNotWaitForTheEndOfTheTurnAndTheRestFollowsIt) {
  ManualLoop loop;
  StreamWriters writers(loop, 1);
  Latch batch(StreamWriters::kBatch);
  for (const auto& stream : MakeStreams(StreamWriters::kBatch, batch.CountDown())) {
    writers.Add(stream);
  }
  batch.Wait();  // the loop has not run
  Latch rest(1);
  const auto last = std::make_shared<CountedStream>(rest.CountDown());
  writers.Add(last);
  loop.RunReady();
  rest.Wait();
  EXPECT_FALSE(last->written_here());
  // The next turn begins anew.
  const auto alone = std::make_shared<CountedStream>();
  writers.Add(alone);
  loop.RunReady();
  EXPECT_EQ(alone->writes(), 1);
  EXPECT_TRUE(alone->written_here());
}

TEST(StreamWriters, OneThreadWritesInTheOrderOfAdding) {
  ManualLoop loop;
  StreamWriters writers(loop, 1);
  constexpr int kStreams = 100;
  std::vector<int> order;
  Latch latch(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    writers.Add(std::make_shared<CountedStream>([&order, i, down = latch.CountDown()] {
      order.push_back(i);
      down();
    }));
  }
  loop.RunReady();
  latch.Wait();
  for (int i = 0; i < kStreams; ++i) EXPECT_EQ(order[static_cast<size_t>(i)], i);
}

TEST(StreamWriters, LetsGoOfWhatWaitsWhenItEnds) {
  ManualLoop loop;
  auto writers = std::make_unique<StreamWriters>(loop, 1);
  std::promise<void> go_on;
  std::promise<void> begun;
  std::vector<std::weak_ptr<CountedStream>> left;
  const auto add = [&](std::shared_ptr<CountedStream> stream) {
    left.push_back(stream);
    writers->Add(std::move(stream));
  };
  add(std::make_shared<CountedStream>([&] {
    begun.set_value();
    go_on.get_future().wait();
  }));
  for (size_t i = 1; i < 3 * StreamWriters::kBatch; ++i) add(std::make_shared<CountedStream>());
  loop.RunReady();
  begun.get_future().wait();
  std::thread end([&] { writers.reset(); });
  go_on.set_value();
  end.join();
  for (const auto& stream : left) EXPECT_TRUE(stream.expired());
}

// As a call does: it is added again when it has something more, never twice at a time.
TEST(StreamWriters, WritesOnceForEachTimeThatAStreamIsAdded) {
  ManualLoop loop;
  StreamWriters writers(loop, 4);
  constexpr int kTurns = 200;
  for (int turn = 0; turn < kTurns; ++turn) {
    const size_t count = 1 + static_cast<size_t>(turn) % (3 * StreamWriters::kBatch);
    Latch latch(static_cast<int>(count));
    const Streams streams = MakeStreams(count, latch.CountDown());
    for (const auto& stream : streams) writers.Add(stream);
    loop.RunReady();
    latch.Wait();
    for (const auto& stream : streams) ASSERT_EQ(stream->writes(), 1);
  }
}

}  // namespace
}  // namespace blockserve
