// Drives a BlockScheduler with the test engine: submit, step, look at the replies.
#ifndef BLOCKSERVE_BLOCK_SERVICE_SCHEDULER_HARNESS_H_
#define BLOCKSERVE_BLOCK_SERVICE_SCHEDULER_HARNESS_H_

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "block_service/scheduler.h"
#include "block_service/test_engine.h"
#include "gtest/gtest.h"

namespace blockserve {

// All replies to one item, joined.
struct Answer {
  absl::Status status;
  std::vector<std::vector<float>> rows;
  int64_t first_block = 0;
  bool done = false;
  bool suspended = false;
  int64_t cached_blocks = 0;
  int replies = 0;
};

class SchedulerHarness {
 public:
  static constexpr int32_t kLength = 2;
  static constexpr int32_t kVocab = 100;
  static constexpr uint64_t kGateway = 7;

  static BlockSchedulerOptions DefaultOptions() {
    BlockSchedulerOptions options;
    options.block_length = kLength;
    options.vocab_size = kVocab;
    options.context_width = TestBlockEngine::kWidth;
    options.num_pages = 64;
    options.page_blocks = 4;
    options.max_sequences = 32;
    options.groups = 1;
    options.reserve_tokens = 16;
    return options;
  }

  // `in_flight`: steps that Begin may have begun at a time.
  explicit SchedulerHarness(BlockSchedulerOptions options = DefaultOptions(), int32_t in_flight = 1)
      : engine(options.block_length, options.vocab_size, in_flight),
        scheduler(WithCopies(std::move(options), engine)) {
    scheduler.OpenStream(1, kGateway, now);
  }

  BlockWorkItem Item(uint64_t sequence) {
    BlockWorkItem item;
    item.stream = stream;
    item.id = ++last_id;
    item.sequence = {kGateway, sequence};
    sequence_of[item.id] = sequence;
    return item;
  }
  uint64_t Submit(BlockWorkItem item) {
    const uint64_t id = item.id;
    scheduler.Submit(std::move(item), now);
    Collect();
    return id;
  }
  uint64_t Open(uint64_t sequence, std::vector<int32_t> tokens, int64_t reserve_blocks = 0,
                int64_t first_context = -1, bool close_after = false,
                absl::uint128 cache_pool = 0) {
    BlockWorkItem item = Item(sequence);
    item.call = OpenCall{std::move(tokens), reserve_blocks, first_context, close_after, cache_pool};
    return Submit(std::move(item));
  }
  uint64_t OpenIn(absl::uint128 cache_pool, uint64_t sequence, std::vector<int32_t> tokens) {
    return Open(sequence, std::move(tokens), 8, -1, false, cache_pool);
  }
  uint64_t Append(uint64_t sequence, int64_t index, std::vector<int32_t> tokens) {
    BlockWorkItem item = Item(sequence);
    item.call = AppendCall{index, {tokens.begin(), tokens.end()}};
    return Submit(std::move(item));
  }
  uint64_t Fork(uint64_t child, uint64_t parent, int64_t blocks, int64_t reserve_blocks = 0) {
    BlockWorkItem item = Item(child);
    item.call = ForkCall{parent, blocks, reserve_blocks};
    return Submit(std::move(item));
  }
  uint64_t Close(uint64_t sequence) {
    BlockWorkItem item = Item(sequence);
    item.call = CloseCall{};
    return Submit(std::move(item));
  }
  uint64_t Cancel(uint64_t target) { return Cancel(target, sequence_of.at(target)); }
  uint64_t Cancel(uint64_t target, uint64_t sequence) {
    BlockWorkItem item = Item(sequence);
    item.call = CancelCall{target};
    return Submit(std::move(item));
  }

  // Begins a step; false when there was nothing to run. Its plan is in `decoded`, `prefilled`.
  bool Begin() {
    const BlockStep& step = scheduler.PlanStep(now);
    decoded = step.decode_blocks;
    prefilled = step.prefill_blocks;
    const bool runs = !step.chunks.empty();
    if (runs) {
      const size_t values = static_cast<size_t>(step.context_rows) * TestBlockEngine::kWidth;
      const auto contexts = std::make_shared<float[]>(values);
      const absl::Status status = engine.Start(step.chunks, absl::MakeSpan(contexts.get(), values));
      under_way.push_back({contexts, status});
    }
    Collect();
    EXPECT_TRUE(scheduler.CheckInvariants().ok()) << scheduler.CheckInvariants();
    return runs;
  }
  // Finishes the step that was begun first.
  void End() {
    auto [contexts, status] = std::move(under_way.front());
    under_way.pop_front();
    if (status.ok()) status = engine.Finish();
    scheduler.FinishStep(status, std::move(contexts));
    Collect();
    EXPECT_TRUE(scheduler.CheckInvariants().ok()) << scheduler.CheckInvariants();
  }
  // Finishes what was begun, then a whole step; false when there was nothing to run.
  bool Step() {
    bool runs = !under_way.empty();
    while (!under_way.empty()) End();
    runs |= Begin();
    while (!under_way.empty()) End();
    return runs;
  }
  int RunUntilIdle() {
    int steps = 0;
    while (Step()) ++steps;
    return steps;
  }

  const Answer& of(uint64_t id) { return answers[id]; }
  absl::StatusCode code(uint64_t id) {
    EXPECT_TRUE(answers[id].done) << "item " << id << " has no answer";
    return answers[id].status.code();
  }
  // The one row that an Append, or an Open without first_context, is answered.
  std::vector<float> row(uint64_t id) {
    const Answer& answer = answers[id];
    EXPECT_TRUE(answer.done && answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.rows.size(), 1u);
    return answer.rows.empty() ? std::vector<float>() : answer.rows.back();
  }
  static std::vector<float> Expected(const std::vector<int32_t>& tokens) {
    return TestBlockEngine::Row(tokens, kLength);
  }
  BlockSchedulerLoad load() const { return scheduler.load(); }
  int64_t available_pages() const { return load().free_pages + load().cached_pages; }

  TestBlockEngine engine;
  BlockScheduler scheduler;
  absl::Time now = absl::UnixEpoch();
  StreamId stream = 1;
  uint64_t last_id = 0;
  std::map<uint64_t, uint64_t> sequence_of;  // of each item
  std::map<uint64_t, Answer> answers;
  int32_t decoded = 0, prefilled = 0;
  std::deque<std::pair<std::shared_ptr<const float[]>, absl::Status>> under_way;

 private:
  static BlockSchedulerOptions WithCopies(BlockSchedulerOptions options, TestBlockEngine& engine) {
    EXPECT_TRUE(engine.AllocateKv(options.num_pages, options.page_blocks).ok());
    options.copy_page = [&engine](int32_t from, int32_t to, int32_t blocks) {
      engine.CopyPage(from, to, blocks);
    };
    return options;
  }

  void Collect() {
    BlockOutbox& outbox = scheduler.outbox();
    for (const BlockItemReply& reply : outbox.items) {
      Answer& answer = answers[reply.id];
      EXPECT_FALSE(answer.done) << "item " << reply.id << " is answered twice";
      if (answer.replies++ == 0) {
        answer.first_block = reply.first_block;
      } else if (reply.rows > 0) {
        EXPECT_EQ(reply.first_block, answer.first_block + static_cast<int64_t>(answer.rows.size()));
      }
      EXPECT_EQ(reply.contexts.size(), static_cast<size_t>(reply.rows) * TestBlockEngine::kWidth);
      for (int32_t i = 0; i < reply.rows; ++i) {
        const float* begin = reply.contexts.data() + i * TestBlockEngine::kWidth;
        answer.rows.emplace_back(begin, begin + TestBlockEngine::kWidth);
      }
      answer.status = reply.status;
      answer.done = reply.last;
      answer.suspended = reply.suspended;
      answer.cached_blocks = reply.cached_blocks;
    }
    outbox.Clear();
  }
};

// `blocks` blocks whose ids are below 90 and depend on `seed`.
inline std::vector<int32_t> Prompt(int64_t blocks, int32_t seed) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < blocks * SchedulerHarness::kLength; ++i) {
    tokens.push_back((seed * 37 + static_cast<int32_t>(i) * 11) % 90);
  }
  return tokens;
}

inline std::vector<int32_t> Joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_SCHEDULER_HARNESS_H_
