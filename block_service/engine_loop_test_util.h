// What the tests of the loop have in common: a loop over an engine that a test can hold, and sinks
// in the place of streams.
#ifndef BLOCKSERVE_BLOCK_SERVICE_ENGINE_LOOP_TEST_UTIL_H_
#define BLOCKSERVE_BLOCK_SERVICE_ENGINE_LOOP_TEST_UTIL_H_

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "block_service/engine_loop.h"
#include "block_service/test_engine.h"
#include "common/mutex.h"
#include "common/test_gate.h"
#include "gtest/gtest.h"

namespace blockserve {

class RecordingSink : public BlockReplySink {
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

// So many replies at a time are for the thread of deliveries, whatever the loop has to do.
inline constexpr uint64_t kManyReplies = 100;
inline constexpr uint64_t kFirstRefused = 1'000'000;

// Items that are refused: replies without a step.
inline StreamItems Refused(StreamId stream, uint64_t first_id = kFirstRefused) {
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

  Gate gate{/*open=*/false};
};

// One that is held when it is greeted.
class HeldHello final : public BlockReplySink {
 public:
  void SayHello(const std::string&, const BlockLoadReport&) override { gate.Pass(); }
  void Add(const BlockItemReply&) override {}
  void Flush(const BlockLoadReport&) override {}
  void End(const absl::Status&) override {}

  Gate gate{/*open=*/false};
};

class HandClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::UnixEpoch() + absl::Seconds(seconds_.load()); }
  void Advance(int64_t seconds) { seconds_ += seconds; }

 private:
  std::atomic<int64_t> seconds_{0};
};

inline constexpr int64_t kPages = 2048;

struct LoopFixture {
  explicit LoopFixture(const Clock* other_clock = nullptr, const BlockMetrics& metrics = {},
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
inline std::vector<int32_t> Tokens(int32_t blocks, int32_t seed) {
  return std::vector<int32_t>(static_cast<size_t>(blocks) * 2, seed % 90);
}

inline BlockWorkItem Item(StreamId stream, uint64_t id) {
  BlockWorkItem item;
  item.stream = stream;
  item.id = id;
  item.sequence = {stream, 1};
  return item;
}

inline StreamItems OpenItem(StreamId stream, uint64_t id) {
  StreamItems items;
  items.stream = stream;
  items.items.push_back(Item(stream, id));
  items.items.back().call = OpenCall{std::vector<int32_t>(10, 3), 4};
  return items;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_ENGINE_LOOP_TEST_UTIL_H_
