#include "block_service/kv_pool.h"

#include <map>
#include <optional>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

constexpr int32_t kPageBlocks = 4;
constexpr int32_t kLength = 2;

struct Copy {
  int32_t from, to, blocks;
};

struct Fixture {
  explicit Fixture(int64_t pages, bool prefix_cache = true,
                   uint64_t (*hash)(uint64_t, absl::Span<const int32_t>) = nullptr) {
    KvPoolOptions options;
    options.num_pages = pages;
    options.page_blocks = kPageBlocks;
    options.block_length = kLength;
    options.prefix_cache = prefix_cache;
    options.hash = hash;
    options.copy_page = [this](int32_t from, int32_t to, int32_t blocks) {
      copies.push_back({from, to, blocks});
    };
    pool = std::make_unique<KvPool>(std::move(options));
  }

  // A sequence whose blocks have all been computed.
  KvSequence Computed(const std::vector<int32_t>& tokens, CachePoolId cache_pool = 0) {
    KvSequence sequence = pool->NewSequence(cache_pool);
    const int64_t blocks = static_cast<int64_t>(tokens.size()) / kLength;
    EXPECT_TRUE(pool->Reserve(sequence, blocks));
    pool->Commit(sequence, tokens, blocks);
    return sequence;
  }

  std::vector<Copy> copies;
  std::unique_ptr<KvPool> pool;
};

// `blocks` blocks of tokens that depend on `seed` and the position.
std::vector<int32_t> Tokens(int64_t blocks, int32_t seed) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < blocks * kLength; ++i) {
    tokens.push_back(seed * 1000 + static_cast<int32_t>(i));
  }
  return tokens;
}

TEST(KvPool, CountsPagesThatOnlyYieldingSequencesReferTo) {
  Fixture fixture(16);
  KvPool& pool = *fixture.pool;
  KvSequence away = fixture.Computed(Tokens(10, 1));  // two full pages and a half
  KvSequence also = fixture.Computed(Tokens(8, 1));   // the same two
  KvSequence here = fixture.Computed(Tokens(4, 2));
  away.SetYielding(true);
  EXPECT_EQ(pool.yielding_pages(), 1);
  also.SetYielding(true);
  also.SetYielding(true);
  EXPECT_EQ(pool.yielding_pages(), 3);
  KvSequence fresh = pool.NewSequence();
  EXPECT_EQ(pool.ShareCached(fresh, Tokens(8, 1), 4), 4);
  EXPECT_EQ(pool.yielding_pages(), 2);
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
  fresh = KvSequence();
  EXPECT_EQ(pool.yielding_pages(), 3);
  away = KvSequence();
  EXPECT_EQ(pool.yielding_pages(), 2);
  also.SetYielding(false);
  EXPECT_EQ(pool.yielding_pages(), 0);
  EXPECT_EQ(pool.available_pages(), 16 - 3);
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
}

TEST(KvPool, GivesAndTakesBackPages) {
  Fixture fixture(8);
  {
    KvSequence sequence = fixture.pool->NewSequence();
    EXPECT_TRUE(fixture.pool->Reserve(sequence, 9));
    EXPECT_EQ(sequence.pages().size(), 3u);
    EXPECT_EQ(fixture.pool->free_pages(), 5);
    EXPECT_TRUE(fixture.pool->Reserve(sequence, 12)) << "fits the pages it has";
    EXPECT_EQ(fixture.pool->free_pages(), 5);
    EXPECT_FALSE(fixture.pool->Reserve(sequence, 33));
    EXPECT_EQ(sequence.pages().size(), 3u) << "a refusal changes nothing";
    EXPECT_TRUE(fixture.pool->CheckInvariants().ok());
  }
  EXPECT_EQ(fixture.pool->free_pages(), 8) << "pages that were never full cache nothing";
  EXPECT_TRUE(fixture.pool->CheckInvariants().ok());
}

TEST(KvPool, FullPagesOfEndedSequencesAreFoundAgain) {
  Fixture fixture(8);
  const std::vector<int32_t> tokens = Tokens(10, 1);
  std::vector<int32_t> pages;
  {
    KvSequence sequence = fixture.Computed(tokens);
    pages.assign(sequence.pages().begin(), sequence.pages().end());
  }
  EXPECT_EQ(fixture.pool->cached_pages(), 2);
  EXPECT_EQ(fixture.pool->free_pages(), 6);
  KvSequence again = fixture.pool->NewSequence();
  EXPECT_EQ(fixture.pool->ShareCached(again, tokens, 10), 8);
  EXPECT_EQ(again.blocks(), 8);
  EXPECT_EQ(again.pages()[0], pages[0]);
  EXPECT_EQ(again.pages()[1], pages[1]);
  EXPECT_EQ(fixture.pool->cached_pages(), 0);
  EXPECT_TRUE(fixture.pool->CheckInvariants().ok());
}

TEST(KvPool, AHitStopsBeforeTheFirstBlockThatMustBeComputed) {
  Fixture fixture(8);
  const std::vector<int32_t> tokens = Tokens(8, 1);
  { KvSequence sequence = fixture.Computed(tokens); }
  for (const auto& [max_blocks, expected] :
       std::map<int64_t, int64_t>{{8, 8}, {7, 4}, {4, 4}, {3, 0}, {0, 0}}) {
    KvSequence again = fixture.pool->NewSequence();
    EXPECT_EQ(fixture.pool->ShareCached(again, tokens, max_blocks), expected) << max_blocks;
  }
}

TEST(KvPool, PagesAreOnlySharedWithinTheirCachePool) {
  // With hashes that are all equal too: what is compared is the pool itself.
  for (const bool collide : {false, true}) {
    Fixture fixture(16, /*prefix_cache=*/true,
                    collide ? +[](uint64_t, absl::Span<const int32_t>) -> uint64_t { return 1; }
                            : nullptr);
    KvPool& pool = *fixture.pool;
    const std::vector<int32_t> tokens = Tokens(8, 1);
    const CachePoolId low = 1, high = absl::MakeUint128(1, 0);
    { KvSequence common = fixture.Computed(tokens); }
    for (const CachePoolId id : {low, high}) {
      KvSequence sequence = pool.NewSequence(id);
      EXPECT_EQ(pool.ShareCached(sequence, tokens, 8), 0);
    }
    { KvSequence sequence = fixture.Computed(tokens, low); }
    EXPECT_EQ(pool.cached_pages(), 4) << "each pool has pages of its own";
    for (const auto& [id, expected] : std::map<CachePoolId, int64_t>{{0, 8}, {low, 8}, {high, 0}}) {
      KvSequence sequence = pool.NewSequence(id);
      EXPECT_EQ(pool.ShareCached(sequence, tokens, 8), expected) << id;
    }
    // Pages that are in use are no more shared than cached ones.
    KvSequence one = fixture.Computed(tokens, high);
    KvSequence same = fixture.Computed(tokens, high);
    KvSequence other = fixture.Computed(tokens, high + 1);
    EXPECT_EQ(same.pages(), one.pages());
    EXPECT_NE(other.pages()[0], one.pages()[0]);
    EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
  }
}

TEST(KvPool, AForkIsOfItsParentsCachePool) {
  Fixture fixture(16);
  KvPool& pool = *fixture.pool;
  const std::vector<int32_t> tokens = Tokens(8, 1);
  {
    KvSequence parent = fixture.Computed(Tokens(6, 1), 3);
    KvSequence child;
    ASSERT_TRUE(pool.Fork(parent, 6, 2, &child));
    EXPECT_EQ(child.cache_pool(), CachePoolId{3});
    pool.Commit(child, tokens, 2);
    EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants();
  }
  for (const auto& [id, expected] : std::map<CachePoolId, int64_t>{{0, 0}, {3, 8}}) {
    KvSequence sequence = pool.NewSequence(id);
    EXPECT_EQ(pool.ShareCached(sequence, tokens, 8), expected) << id;
  }
}

TEST(KvPool, APageIsOnlySharedBehindTheSamePages) {
  Fixture fixture(16);
  std::vector<int32_t> first = Tokens(8, 1);
  { KvSequence sequence = fixture.Computed(first); }
  // The second page's tokens are equal, the first page's are not.
  std::vector<int32_t> other = Tokens(8, 2);
  std::copy(first.begin() + 8, first.end(), other.begin() + 8);
  KvSequence sequence = fixture.pool->NewSequence();
  EXPECT_EQ(fixture.pool->ShareCached(sequence, other, 8), 0);
  // And the second page's tokens at the start of a sequence are another page too.
  const std::vector<int32_t> shifted(first.begin() + 8, first.end());
  KvSequence start = fixture.pool->NewSequence();
  EXPECT_EQ(fixture.pool->ShareCached(start, shifted, 4), 0);
}

TEST(KvPool, CollidingHashesNeverShareAPage) {
  Fixture fixture(16, true, [](uint64_t, absl::Span<const int32_t>) -> uint64_t { return 42; });
  const std::vector<int32_t> a = Tokens(8, 1), b = Tokens(8, 2);
  std::vector<int32_t> page_of_a, page_of_b;
  {
    KvSequence one = fixture.Computed(a);
    KvSequence two = fixture.Computed(b);
    page_of_a.assign(one.pages().begin(), one.pages().end());
    page_of_b.assign(two.pages().begin(), two.pages().end());
  }
  EXPECT_NE(page_of_a, page_of_b);
  KvSequence one = fixture.pool->NewSequence(), two = fixture.pool->NewSequence();
  EXPECT_EQ(fixture.pool->ShareCached(one, a, 8), 8);
  EXPECT_EQ(fixture.pool->ShareCached(two, b, 8), 8);
  EXPECT_THAT(one.pages(), testing::ElementsAreArray(page_of_a));
  EXPECT_THAT(two.pages(), testing::ElementsAreArray(page_of_b));
  KvSequence three = fixture.pool->NewSequence();
  EXPECT_EQ(fixture.pool->ShareCached(three, Tokens(8, 3), 8), 0);
  one = KvSequence();
  two = KvSequence();
  // Taking every page unfiles colliding entries from the middle of their chain.
  EXPECT_TRUE(fixture.pool->Reserve(three, 16 * kPageBlocks));
  EXPECT_TRUE(fixture.pool->CheckInvariants().ok()) << fixture.pool->CheckInvariants();
}

TEST(KvPool, TwoThatComputeTheSameEndWithOnePage) {
  Fixture fixture(8);
  const std::vector<int32_t> tokens = Tokens(4, 1);
  KvSequence one = fixture.Computed(tokens);
  KvSequence two = fixture.Computed(tokens);
  EXPECT_EQ(one.pages()[0], two.pages()[0]);
  EXPECT_EQ(fixture.pool->free_pages(), 7);
  EXPECT_TRUE(fixture.pool->CheckInvariants().ok());
}

TEST(KvPool, CachedPagesAreKeptUntilAnAdmissionNeedsThem) {
  Fixture fixture(4);
  const std::vector<int32_t> old = Tokens(4, 1), recent = Tokens(4, 2);
  { KvSequence sequence = fixture.Computed(old); }
  { KvSequence sequence = fixture.Computed(recent); }
  KvSequence big = fixture.pool->NewSequence();
  EXPECT_TRUE(fixture.pool->Reserve(big, 2 * kPageBlocks)) << "two free pages are enough";
  EXPECT_EQ(fixture.pool->cached_pages(), 2);
  EXPECT_TRUE(fixture.pool->Reserve(big, 3 * kPageBlocks));
  EXPECT_EQ(fixture.pool->cached_pages(), 1);
  KvSequence hit = fixture.pool->NewSequence();
  EXPECT_EQ(fixture.pool->ShareCached(hit, old, 4), 0) << "the least recently used went";
  EXPECT_EQ(fixture.pool->ShareCached(hit, recent, 4), 4);
}

TEST(KvPool, APrefixIsGivenUpFromItsTail) {
  Fixture fixture(4);
  const std::vector<int32_t> tokens = Tokens(12, 1);
  { KvSequence sequence = fixture.Computed(tokens); }
  KvSequence other = fixture.pool->NewSequence();
  ASSERT_TRUE(fixture.pool->Reserve(other, 2 * kPageBlocks));
  KvSequence hit = fixture.pool->NewSequence();
  EXPECT_EQ(fixture.pool->ShareCached(hit, tokens, 12), 8) << "the first two pages are still there";
  EXPECT_TRUE(fixture.pool->CheckInvariants().ok());
}

TEST(KvPool, AForkSharesFullPagesAndCopiesTheLast) {
  Fixture fixture(8);
  KvSequence parent = fixture.Computed(Tokens(10, 1));
  KvSequence child;
  ASSERT_TRUE(fixture.pool->Fork(parent, 9, 0, &child));
  EXPECT_EQ(child.blocks(), 9);
  EXPECT_EQ(child.pages()[0], parent.pages()[0]);
  EXPECT_EQ(child.pages()[1], parent.pages()[1]);
  ASSERT_EQ(fixture.copies.size(), 1u);
  EXPECT_EQ(fixture.copies[0].from, parent.pages()[2]);
  EXPECT_EQ(fixture.copies[0].to, child.pages()[2]);
  EXPECT_EQ(fixture.copies[0].blocks, 1);
  KvSequence at_edge;
  ASSERT_TRUE(fixture.pool->Fork(parent, 8, 0, &at_edge));
  EXPECT_EQ(fixture.copies.size(), 1u) << "nothing to copy at the edge of a page";
  // In the middle of a page that is full in the parent: the child's own copy, unnamed.
  KvSequence inside;
  ASSERT_TRUE(fixture.pool->Fork(parent, 6, 0, &inside));
  EXPECT_EQ(fixture.copies.size(), 2u);
  EXPECT_NE(inside.pages()[1], parent.pages()[1]);
  EXPECT_TRUE(fixture.pool->CheckInvariants().ok()) << fixture.pool->CheckInvariants();
}

TEST(KvPool, AForkThatDoesNotFitChangesNothing) {
  Fixture fixture(4);
  KvSequence parent = fixture.Computed(Tokens(10, 1));
  KvSequence child;
  EXPECT_FALSE(fixture.pool->Fork(parent, 10, kPageBlocks, &child));
  EXPECT_EQ(fixture.pool->free_pages(), 1);
  EXPECT_TRUE(fixture.copies.empty());
  EXPECT_TRUE(fixture.pool->CheckInvariants().ok());
}

TEST(KvPool, ASharedPageLivesAsLongAsAnyOfItsSequences) {
  Fixture fixture(8);
  auto parent = std::make_unique<KvSequence>(fixture.Computed(Tokens(8, 1)));
  KvSequence child;
  ASSERT_TRUE(fixture.pool->Fork(*parent, 8, 0, &child));
  parent.reset();
  EXPECT_EQ(fixture.pool->available_pages(), 6);
  child = KvSequence();
  EXPECT_EQ(fixture.pool->available_pages(), 8);
}

TEST(KvPool, WithoutPrefixCacheNothingIsKept) {
  Fixture fixture(8, /*prefix_cache=*/false);
  const std::vector<int32_t> tokens = Tokens(8, 1);
  { KvSequence sequence = fixture.Computed(tokens); }
  EXPECT_EQ(fixture.pool->free_pages(), 8);
  KvSequence again = fixture.pool->NewSequence();
  EXPECT_EQ(fixture.pool->ShareCached(again, tokens, 8), 0);
  EXPECT_TRUE(fixture.pool->CheckInvariants().ok());
}

// Random operations against what a page's content must be: for each sequence its tokens, and for
// each page the tokens written to it since it was last handed out.
class KvPoolRandom : public testing::TestWithParam<uint32_t> {};

TEST_P(KvPoolRandom, PagesHoldWhatTheirSequencesWrote) {
  std::mt19937 random(GetParam());
  const auto draw = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  constexpr int64_t kPages = 24;
  // [page][slot]: tokens of the whole sequence up to this block, that is what its KV depends on.
  std::vector<std::vector<std::vector<int32_t>>> memory(
      kPages, std::vector<std::vector<int32_t>>(kPageBlocks));
  struct Reference {
    KvSequence kv;
    std::vector<int32_t> tokens;
  };
  KvPoolOptions options;
  options.num_pages = kPages;
  options.page_blocks = kPageBlocks;
  options.block_length = kLength;
  if (GetParam() % 2 == 0) {
    options.hash = [](uint64_t, absl::Span<const int32_t> tokens) -> uint64_t {
      return static_cast<uint64_t>(tokens[0] & 1);
    };
  }
  options.copy_page = [&](int32_t from, int32_t to, int32_t blocks) {
    for (int32_t i = 0; i < blocks; ++i) {
      memory[static_cast<size_t>(to)][static_cast<size_t>(i)] =
          memory[static_cast<size_t>(from)][static_cast<size_t>(i)];
    }
  };
  KvPool pool(std::move(options));
  std::vector<Reference> live;
  int64_t hits = 0, refusals = 0;
  const auto write = [&](Reference& sequence, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t block = sequence.kv.blocks() + i;
      const int32_t page = sequence.kv.pages()[static_cast<size_t>(block / kPageBlocks)];
      memory[static_cast<size_t>(page)][static_cast<size_t>(block % kPageBlocks)] =
          std::vector<int32_t>(sequence.tokens.begin(),
                               sequence.tokens.begin() + (block + 1) * kLength);
    }
    pool.Commit(sequence.kv, sequence.tokens, count);
  };
  for (int step = 0; step < 3000; ++step) {
    switch (draw(5)) {
      case 0: {  // open: few different tokens, so that beginnings are often alike
        Reference sequence{pool.NewSequence(static_cast<uint64_t>(draw(3))), {}};
        const int64_t blocks = 1 + draw(14);
        for (int64_t i = 0; i < blocks * kLength; ++i) {
          sequence.tokens.push_back(static_cast<int32_t>(draw(40) == 0));
        }
        hits += pool.ShareCached(sequence.kv, sequence.tokens, blocks - 1);
        if (!pool.Reserve(sequence.kv, blocks + draw(5))) {
          ++refusals;
          break;
        }
        write(sequence, blocks - sequence.kv.blocks());
        live.push_back(std::move(sequence));
        break;
      }
      case 1:
      case 2: {  // append
        if (live.empty()) break;
        Reference& sequence = live[static_cast<size_t>(draw(static_cast<int64_t>(live.size())))];
        if (!pool.Reserve(sequence.kv, sequence.kv.blocks() + 1)) {
          ++refusals;
          break;
        }
        for (int32_t i = 0; i < kLength; ++i) {
          sequence.tokens.push_back(static_cast<int32_t>(draw(2)));
        }
        write(sequence, 1);
        break;
      }
      case 3: {  // fork
        if (live.empty()) break;
        const size_t parent = static_cast<size_t>(draw(static_cast<int64_t>(live.size())));
        Reference child;
        const int64_t blocks = 1 + draw(live[parent].kv.blocks());
        if (!pool.Fork(live[parent].kv, blocks, draw(4), &child.kv)) {
          ++refusals;
          break;
        }
        child.tokens.assign(live[parent].tokens.begin(),
                            live[parent].tokens.begin() + blocks * kLength);
        live.push_back(std::move(child));
        break;
      }
      case 4: {  // close
        if (live.empty()) break;
        live.erase(live.begin() + draw(static_cast<int64_t>(live.size())));
        break;
      }
    }
    ASSERT_TRUE(pool.CheckInvariants().ok()) << step << ": " << pool.CheckInvariants();
    std::vector<std::optional<CachePoolId>> pool_of(kPages);
    for (const Reference& sequence : live) {
      for (const int32_t page : sequence.kv.pages()) {
        auto& pool_of_page = pool_of[static_cast<size_t>(page)];
        ASSERT_EQ(pool_of_page.value_or(sequence.kv.cache_pool()), sequence.kv.cache_pool())
            << "step " << step << ": page " << page << " is of two cache pools";
        pool_of_page = sequence.kv.cache_pool();
      }
      for (int64_t block = 0; block < sequence.kv.blocks(); ++block) {
        const int32_t page = sequence.kv.pages()[static_cast<size_t>(block / kPageBlocks)];
        const auto& written =
            memory[static_cast<size_t>(page)][static_cast<size_t>(block % kPageBlocks)];
        ASSERT_TRUE(written.size() == static_cast<size_t>((block + 1) * kLength) &&
                    std::equal(written.begin(), written.end(), sequence.tokens.begin()))
            << "step " << step << ", block " << block;
      }
    }
  }
  EXPECT_GT(hits, 100);
  EXPECT_GT(refusals, 100);
  live.clear();
  EXPECT_EQ(pool.available_pages(), kPages);
  EXPECT_TRUE(pool.CheckInvariants().ok());
}

INSTANTIATE_TEST_SUITE_P(Seeds, KvPoolRandom, testing::Range(1u, 7u));

}  // namespace
}  // namespace blockserve
