// Random traffic against a reference that knows only tokens: every row that comes back must be the
// row of its tokens, every item must be answered once, and no page may be lost.
#include <map>
#include <random>
#include <vector>

#include "block_service/scheduler_harness.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using absl::StatusCode;
using Harness = SchedulerHarness;

struct Pending {
  enum class Kind { kOpen, kAppend, kFork, kOther } kind;
  uint64_t sequence;
  std::vector<int32_t> tokens;  // of the sequence once it is done
  int64_t first_row;
  bool again = false;  // an append of the block that is there already
};

class SchedulerRandom : public testing::TestWithParam<uint32_t> {
 protected:
  int64_t Draw(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
  std::vector<int32_t> Block() {
    // Few ids, so that prefixes meet.
    return {static_cast<int32_t>(Draw(2)), static_cast<int32_t>(Draw(2))};
  }

  std::mt19937 random_{GetParam()};
};

TEST_P(SchedulerRandom, EveryRowIsTheRowOfItsTokens) {
  BlockSchedulerOptions options = Harness::DefaultOptions();
  options.num_pages = 20;
  options.max_sequences = 10;
  options.prefill_chunk_blocks = static_cast<int32_t>(1 + Draw(9));
  options.groups = static_cast<int32_t>(1 + Draw(3));
  options.min_group_blocks = static_cast<int32_t>(1 + Draw(3));
  options.reserve_tokens = static_cast<int32_t>(Draw(10));
  options.max_rows_per_reply = static_cast<int32_t>(1 + Draw(4));
  const auto in_flight = static_cast<size_t>(1 + Draw(3));
  Harness harness(options, static_cast<int32_t>(in_flight));
  std::map<uint64_t, std::vector<int32_t>> live;  // what the gateway believes to be open
  std::map<uint64_t, Pending> pending;            // by item
  std::map<StatusCode, int> seen;
  int64_t rows_checked = 0, suspensions = 0, hits = 0;
  StreamId last_stream = 1;

  const auto settle = [&] {
    for (auto it = pending.begin(); it != pending.end();) {
      const Answer& answer = harness.of(it->first);
      if (!answer.done) {
        ++it;
        continue;
      }
      const Pending& item = it->second;
      ++seen[answer.status.code()];
      if (answer.suspended) ++suspensions;
      hits += answer.cached_blocks;
      if (answer.status.ok() && item.kind != Pending::Kind::kOther) {
        const int64_t blocks = static_cast<int64_t>(item.tokens.size()) / Harness::kLength;
        if (item.kind == Pending::Kind::kFork) {
          EXPECT_TRUE(answer.rows.empty());
        } else {
          EXPECT_EQ(answer.first_block, item.first_row);
          EXPECT_EQ(static_cast<int64_t>(answer.rows.size()), blocks - item.first_row);
          for (size_t i = 0; i < answer.rows.size(); ++i) {
            const auto end = item.tokens.begin() +
                             (item.first_row + static_cast<int64_t>(i) + 1) * Harness::kLength;
            EXPECT_EQ(answer.rows[i], Harness::Expected({item.tokens.begin(), end}));
            ++rows_checked;
          }
        }
      } else if (!answer.status.ok() &&
                 (item.kind == Pending::Kind::kOpen || item.kind == Pending::Kind::kFork ||
                  answer.suspended || answer.status.code() == StatusCode::kNotFound)) {
        live.erase(item.sequence);
      } else if (!answer.status.ok() && item.kind == Pending::Kind::kAppend && !item.again) {
        // Not appended: the gateway's view goes back. Only the newest append can be open here.
        const auto found = live.find(item.sequence);
        if (found != live.end() && found->second == item.tokens) {
          found->second.resize(found->second.size() - Harness::kLength);
        }
      }
      it = pending.erase(it);
    }
  };
  const auto is_idle = [&](uint64_t sequence) {
    return std::none_of(pending.begin(), pending.end(),
                        [&](const auto& entry) { return entry.second.sequence == sequence; });
  };

  for (int i = 0; i < 4000; ++i) {
    const uint64_t sequence = static_cast<uint64_t>(1 + Draw(14));
    const auto known = live.find(sequence);
    const bool idle = is_idle(sequence);
    switch (Draw(10)) {
      case 0:
      case 1: {
        if (known != live.end() || !idle) break;
        std::vector<int32_t> tokens;
        const int64_t blocks = 1 + Draw(18);
        for (int64_t b = 0; b < blocks; ++b)
          tokens = Joined(tokens, Draw(12) ? std::vector<int32_t>{1, 1} : Block());
        const int64_t first = Draw(3) == 0 ? Draw(blocks) : -1;
        const bool close_after = Draw(4) == 0;
        if (!close_after) live[sequence] = tokens;
        const uint64_t id =
            harness.Open(sequence, tokens, Draw(12), first, close_after, sequence % 2);
        pending[id] = {Pending::Kind::kOpen, sequence, tokens, first < 0 ? blocks - 1 : first};
        break;
      }
      case 2:
      case 3:
      case 4:
      case 5: {
        if (known == live.end() || !idle) break;
        std::vector<int32_t>& tokens = known->second;
        const std::vector<int32_t> block = Block();
        const bool again = Draw(5) == 0;  // the block that is there already
        if (!again) tokens = Joined(tokens, block);
        const int64_t blocks = static_cast<int64_t>(tokens.size()) / Harness::kLength;
        const std::vector<int32_t> last(tokens.end() - Harness::kLength, tokens.end());
        const std::vector<int32_t> copy = tokens;
        const uint64_t id = harness.Append(sequence, blocks - 1, last);
        pending[id] = {Pending::Kind::kAppend, sequence, copy, blocks - 1, again};
        break;
      }
      case 6: {
        const uint64_t child = static_cast<uint64_t>(1 + Draw(14));
        if (known == live.end() || live.count(child) || !is_idle(child)) break;
        const int64_t blocks =
            1 + Draw(static_cast<int64_t>(known->second.size()) / Harness::kLength);
        std::vector<int32_t> tokens(known->second.begin(),
                                    known->second.begin() + blocks * Harness::kLength);
        const uint64_t id = harness.Fork(child, sequence, blocks, Draw(6));
        live[child] = tokens;
        pending[id] = {Pending::Kind::kFork, child, tokens, 0};
        break;
      }
      case 7: {
        if (Draw(2) == 0) break;
        const uint64_t id = harness.Close(sequence);
        settle();
        live.erase(sequence);
        EXPECT_EQ(harness.code(id), StatusCode::kOk);
        EXPECT_TRUE(is_idle(sequence)) << "closing answers what waits";
        break;
      }
      case 8: {
        if (pending.empty() || Draw(3) > 0) break;
        const uint64_t target =
            std::next(pending.begin(), Draw(static_cast<int64_t>(pending.size())))->first;
        harness.Cancel(target);
        EXPECT_TRUE(harness.of(target).done);
        break;
      }
      case 9: {
        if (Draw(40) == 0) {  // the connection breaks, and comes back in time or too late
          const StreamId old = harness.stream;
          harness.scheduler.CloseStream(old, harness.now);
          for (const auto& [id, item] : pending) {
            if (item.kind == Pending::Kind::kAppend) {
              auto found = live.find(item.sequence);
              if (found != live.end() && found->second == item.tokens) {
                // Whether it was appended is not known: the gateway starts from what it has.
                live.erase(found);
                harness.Close(item.sequence);
              }
            } else {
              live.erase(item.sequence);
            }
          }
          pending.clear();
          if (Draw(2) == 0) {  // another gateway needs room meanwhile
            const uint64_t other = Harness::kGateway + 1;
            harness.scheduler.OpenStream(++last_stream, other, harness.now);
            for (int64_t n = 1 + Draw(6); n > 0; --n) {
              BlockWorkItem item = harness.Item(static_cast<uint64_t>(n));
              item.stream = last_stream;
              item.sequence.incarnation = other;
              item.call = OpenCall{Prompt(1 + Draw(18), static_cast<int32_t>(Draw(50))), Draw(6)};
              harness.Submit(std::move(item));
              harness.Step();
            }
            harness.scheduler.CloseStream(last_stream, harness.now);
            if (Draw(2) == 0) {
              harness.scheduler.OpenStream(++last_stream, other, harness.now);
              for (uint64_t n = 1; n <= 6; ++n) {
                BlockWorkItem item = harness.Item(n);
                item.stream = last_stream;
                item.sequence.incarnation = other;
                item.call = CloseCall{};
                harness.Submit(std::move(item));
              }
            }
          }
          if (Draw(2) == 0) {
            harness.now += absl::Seconds(10);
            live.clear();
            harness.Step();
            EXPECT_EQ(harness.load().sequences, 0);
          }
          harness.stream = ++last_stream;
          harness.scheduler.OpenStream(harness.stream, Harness::kGateway, harness.now);
        }
        break;
      }
    }
    settle();
    if (Draw(2) == 0 && harness.under_way.size() < in_flight) harness.Begin();
    settle();
    if (!harness.under_way.empty() && Draw(static_cast<int64_t>(in_flight)) == 0) harness.End();
    settle();
    ASSERT_TRUE(harness.scheduler.CheckInvariants().ok()) << harness.scheduler.CheckInvariants();
    ASSERT_FALSE(HasFailure()) << "operation " << i;
  }
  harness.RunUntilIdle();
  settle();
  EXPECT_TRUE(pending.empty()) << pending.size() << " items have no answer";
  EXPECT_GT(rows_checked, 300);
  EXPECT_GT(hits, 30);
  EXPECT_GT(seen[StatusCode::kResourceExhausted], 0);
  EXPECT_EQ(seen[StatusCode::kInternal] + seen[StatusCode::kAborted], 0);
  EXPECT_EQ(seen[StatusCode::kUnavailable], suspensions);
  for (uint64_t sequence = 0; sequence <= 15; ++sequence) harness.Close(sequence);
  harness.now += absl::Seconds(10);
  harness.Step();
  EXPECT_EQ(harness.load().sequences, 0);
  EXPECT_EQ(harness.available_pages(), 20);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulerRandom, testing::Range(1u, 13u));

}  // namespace
}  // namespace blockserve
