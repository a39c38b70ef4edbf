// What sequences share: prefixes, cache pools, forks.
#include <vector>

#include "block_service/scheduler.h"
#include "block_service/scheduler_harness.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using absl::StatusCode;
using Harness = SchedulerHarness;

BlockSchedulerOptions Options() { return Harness::DefaultOptions(); }

TEST(BlockScheduler, PromptsThatBeginAlikeArePrefilledOnceWhenTheyComeTogether) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 8;
  Harness harness(options);
  const std::vector<int32_t> shared = Prompt(24, 1);
  std::vector<uint64_t> opens;
  std::vector<std::vector<int32_t>> prompts;
  for (int32_t i = 0; i < 3; ++i) {
    prompts.push_back(Joined(shared, Prompt(6 - i, 50 + i)));
    opens.push_back(harness.Open(static_cast<uint64_t>(i) + 1, prompts.back()));
  }
  harness.RunUntilIdle();
  EXPECT_EQ(harness.engine.computed_blocks(), 24 + 6 + 5 + 4);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(harness.row(opens[i]), Harness::Expected(prompts[i]));
  }
}

TEST(BlockScheduler, PrefixesAreSharedAndChangeNoRow) {
  const std::vector<int32_t> shared = Prompt(9, 1);
  const std::vector<int32_t> one = Joined(shared, {1, 1}), two = Joined(shared, {2, 2});
  for (const bool prefix_cache : {true, false}) {
    BlockSchedulerOptions options = Options();
    options.prefix_cache = prefix_cache;
    Harness harness(options);
    const uint64_t first = harness.Open(1, one);
    harness.RunUntilIdle();
    harness.Close(1);
    const int64_t before = harness.engine.computed_blocks();
    const uint64_t second = harness.Open(2, two);
    harness.RunUntilIdle();
    EXPECT_EQ(harness.row(first), Harness::Expected(one));
    EXPECT_EQ(harness.row(second), Harness::Expected(two));
    EXPECT_EQ(harness.of(second).cached_blocks, prefix_cache ? 8 : 0);
    EXPECT_EQ(harness.engine.computed_blocks() - before, prefix_cache ? 2 : 10);
  }
}

TEST(BlockScheduler, PrefixesAreSharedWithinACachePoolAloneAndNoRowDependsOnIt) {
  const std::vector<int32_t> prompt = Prompt(9, 1);
  const absl::uint128 a = absl::MakeUint128(1, 0), b = absl::MakeUint128(0, 1);
  Harness harness;
  uint64_t sequence = 0;
  const auto cached = [&](absl::uint128 pool) {
    const uint64_t open = harness.OpenIn(pool, ++sequence, prompt);
    harness.RunUntilIdle();
    EXPECT_EQ(harness.row(open), Harness::Expected(prompt));
    harness.Close(sequence);
    return harness.of(open).cached_blocks;
  };
  EXPECT_EQ(cached(0), 0);
  EXPECT_EQ(cached(a), 0);
  EXPECT_EQ(cached(b), 0);
  EXPECT_EQ(cached(0), 8);
  EXPECT_EQ(cached(a), 8);
  EXPECT_EQ(cached(b), 8);
}

TEST(BlockScheduler, APromptDoesNotWaitForOneOfAnotherCachePool) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 64;
  Harness harness(options);
  const std::vector<int32_t> prompt = Prompt(16, 1);
  const uint64_t first = harness.OpenIn(1, 1, prompt);
  const uint64_t other = harness.OpenIn(2, 2, prompt);
  const uint64_t second = harness.OpenIn(1, 3, prompt);
  harness.Step();
  EXPECT_TRUE(harness.of(first).done);
  EXPECT_TRUE(harness.of(other).done) << "what it took would tell of the other";
  EXPECT_FALSE(harness.of(second).done);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.of(other).cached_blocks, 0);
  EXPECT_EQ(harness.of(second).cached_blocks, 12);
  EXPECT_EQ(harness.engine.computed_blocks(), 16 + 16 + 4);
  for (const uint64_t open : {first, other, second}) {
    EXPECT_EQ(harness.row(open), Harness::Expected(prompt));
  }
}

TEST(BlockScheduler, ForksAreOfTheirParentsCachePool) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(6, 1);
  harness.OpenIn(1, 1, prompt);
  harness.RunUntilIdle();
  harness.Fork(2, 1, 6, 8);
  harness.Append(2, 6, {1, 1});
  const uint64_t append = harness.Append(2, 7, {2, 2});
  harness.RunUntilIdle();
  const std::vector<int32_t> text = Joined(prompt, {1, 1, 2, 2, 3, 3});
  EXPECT_EQ(harness.row(append), Harness::Expected(Joined(prompt, {1, 1, 2, 2})));
  const uint64_t common = harness.OpenIn(0, 3, text);
  const uint64_t same = harness.OpenIn(1, 4, text);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.of(common).cached_blocks, 0);
  EXPECT_EQ(harness.of(same).cached_blocks, 8) << "the page that the fork has filled, too";
  EXPECT_EQ(harness.row(same), Harness::Expected(text));
}

TEST(BlockScheduler, OpeningAgainInAnotherCachePoolIsNoRepetition) {
  Harness harness;
  harness.OpenIn(1, 1, Prompt(3, 1));
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(harness.OpenIn(2, 1, Prompt(3, 1))), StatusCode::kAborted);
  EXPECT_EQ(harness.code(harness.OpenIn(1, 1, Prompt(3, 1))), StatusCode::kOk);
}

TEST(BlockScheduler, AHitNeverCoversARowThatIsWanted) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(8, 1);
  const uint64_t first = harness.Open(1, prompt, 0, 0);
  harness.RunUntilIdle();
  harness.Close(1);
  const uint64_t last_only = harness.Open(2, prompt);
  const uint64_t some = harness.Open(3, prompt, 0, 5);
  const uint64_t all = harness.Open(4, prompt, 0, 0);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.of(last_only).cached_blocks, 4) << "the last page holds the wanted block";
  EXPECT_EQ(harness.of(some).cached_blocks, 4);
  EXPECT_EQ(harness.of(all).cached_blocks, 0);
  EXPECT_EQ(harness.of(all).rows, harness.of(first).rows);
  EXPECT_EQ(harness.of(some).rows.size(), 3u);
  EXPECT_EQ(harness.of(some).first_block, 5);
  EXPECT_EQ(harness.row(last_only), harness.of(first).rows.back());
}

TEST(BlockScheduler, APromptThatWaitsUsesWhatAnotherHasComputedMeanwhile) {
  BlockSchedulerOptions options = Options();
  options.prefill_chunk_blocks = 16;
  Harness harness(options);
  const std::vector<int32_t> prompt = Prompt(16, 1);
  harness.Open(1, prompt);
  const uint64_t second = harness.Open(2, prompt);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.of(second).cached_blocks, 12);
  EXPECT_EQ(harness.engine.computed_blocks(), 20);
  EXPECT_EQ(harness.row(second), Harness::Expected(prompt));
}

TEST(BlockScheduler, ForksGoOnByThemselves) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(6, 1);
  harness.Open(1, prompt, 8);
  // All in one batch: the forks wait for the prompt, and the appends for the forks.
  const uint64_t fork = harness.Fork(2, 1, 6, 8);
  const uint64_t early = harness.Fork(3, 1, 3, 8);
  const uint64_t on_fork = harness.Append(2, 6, {1, 1});
  const uint64_t on_early = harness.Append(3, 3, {2, 2});
  const uint64_t grandchild = harness.Fork(4, 2, 7, 8);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(fork), StatusCode::kOk);
  EXPECT_TRUE(harness.of(fork).rows.empty());
  EXPECT_EQ(harness.code(early), StatusCode::kOk);
  EXPECT_EQ(harness.code(grandchild), StatusCode::kOk);
  EXPECT_EQ(harness.row(on_fork), Harness::Expected(Joined(prompt, {1, 1})));
  EXPECT_EQ(harness.row(on_early),
            Harness::Expected(Joined({prompt.begin(), prompt.begin() + 6}, {2, 2})));
  const uint64_t on_parent = harness.Append(1, 6, {3, 3});
  const uint64_t on_grandchild = harness.Append(4, 7, {4, 4});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(on_parent), Harness::Expected(Joined(prompt, {3, 3})));
  EXPECT_EQ(harness.row(on_grandchild), Harness::Expected(Joined(prompt, {1, 1, 4, 4})));
}

TEST(BlockScheduler, ForkIsIdempotentAndOutlivesItsParent) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(6, 1);
  harness.Open(1, prompt, 8);
  harness.RunUntilIdle();
  EXPECT_EQ(harness.code(harness.Fork(2, 1, 5, 8)), StatusCode::kOk);
  EXPECT_EQ(harness.code(harness.Fork(2, 1, 5, 8)), StatusCode::kOk);
  EXPECT_EQ(harness.code(harness.Fork(2, 1, 4, 8)), StatusCode::kAborted);
  harness.Close(1);
  EXPECT_EQ(harness.code(harness.Fork(2, 1, 5, 8)), StatusCode::kOk);
  EXPECT_EQ(harness.code(harness.Fork(3, 1, 5, 8)), StatusCode::kNotFound);
  const uint64_t append = harness.Append(2, 5, {1, 1});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(append),
            Harness::Expected(Joined({prompt.begin(), prompt.begin() + 10}, {1, 1})));
}

TEST(BlockScheduler, TheLastRowOfAForkInTheMiddleIsComputedWhenAskedFor) {
  Harness harness;
  const std::vector<int32_t> prompt = Prompt(11, 1);
  harness.Open(1, prompt, 8);
  harness.RunUntilIdle();
  for (const int64_t blocks : {1, 4, 6, 8, 10}) {
    const std::vector<int32_t> part(prompt.begin(), prompt.begin() + blocks * 2);
    const uint64_t sequence = static_cast<uint64_t>(10 + blocks);
    harness.Fork(sequence, 1, blocks, 4);
    const uint64_t repeated = harness.Append(sequence, blocks - 1, {part.end() - 2, part.end()});
    const uint64_t opened = harness.Open(sequence, part, 4);
    const uint64_t next = harness.Append(sequence, blocks, {7, 7});
    harness.RunUntilIdle();
    EXPECT_EQ(harness.row(repeated), Harness::Expected(part)) << blocks;
    EXPECT_EQ(harness.row(opened), Harness::Expected(part)) << blocks;
    EXPECT_EQ(harness.row(next), Harness::Expected(Joined(part, {7, 7}))) << blocks;
  }
  // And the parent's blocks are what they were.
  const uint64_t append = harness.Append(1, 11, {8, 8});
  harness.RunUntilIdle();
  EXPECT_EQ(harness.row(append), Harness::Expected(Joined(prompt, {8, 8})));
}

TEST(BlockScheduler, AForkWhoseParentGoesIsAnswered) {
  Harness harness;
  harness.Open(1, Prompt(6, 1), 8);
  const uint64_t fork = harness.Fork(2, 1, 6);
  const uint64_t append = harness.Append(2, 6, {1, 1});
  harness.Close(1);
  EXPECT_EQ(harness.code(fork), StatusCode::kNotFound);
  EXPECT_EQ(harness.code(append), StatusCode::kNotFound);
  EXPECT_EQ(harness.load().sequences, 0);
  EXPECT_EQ(harness.available_pages(), 64);
}

}  // namespace
}  // namespace blockserve
