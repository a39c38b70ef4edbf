// Pages of the block decoder's KV cache: who refers to them, and which prefixes they hold.
//
// A page holds the KV of `page_blocks` consecutive blocks. Sequences refer to pages through tables;
// full pages may be shared. A full page is named by its content: its own tokens and the page before
// it, down to the start. KV is a pure function of exactly that (docs/architecture.md, Same bits),
// so two pages of one name hold the same bits, and any sequence that begins alike may use either.
//
// Names are of one cache pool each (CachePoolId): a page is found by sequences of the pool that
// named it, and by no others. Hashes only lead to it: pool, tokens and the page before are compared
// themselves, and a page before is told by a number that is never used twice. So sequences of
// different pools never share a page, whatever their tokens are, with certainty and not only with
// high probability. What pools have in common is the memory: pages that one needs may be taken from
// what another has cached.
//
//   free        nobody refers to it, it holds nothing
//   referenced  at least one table names it
//   cached      nobody refers to it, it holds a named prefix; least recently used goes first
//
// Cached pages are given up only when a table needs pages and none is free. A prefix is only of use
// with all that comes before it, so pages are given up from their tails: releasing a table makes
// its last page the oldest, and what hangs on a page is always older than the page itself.
//
// Not thread-safe: the thread that runs steps owns it.
#ifndef BLOCKSERVE_BLOCK_SERVICE_KV_POOL_H_
#define BLOCKSERVE_BLOCK_SERVICE_KV_POOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/numeric/int128.h"
#include "absl/status/status.h"
#include "absl/types/span.h"

namespace blockserve {

class KvPool;

// Whose prompts may share KV: OpenSequence.cache_pool_* of block_decoder.proto. 0: the common pool.
using CachePoolId = absl::uint128;

// One sequence's page table. Gives its references back when destroyed; must not outlive the pool.
class KvSequence {
 public:
  KvSequence() = default;  // of no pool: only to be assigned to
  ~KvSequence();
  KvSequence(KvSequence&& other) noexcept;
  KvSequence& operator=(KvSequence&& other) noexcept;

  // Blocks whose KV has been computed.
  int64_t blocks() const { return table_ == nullptr ? 0 : table_->blocks; }
  // pages()[i] holds blocks [i * page_blocks, (i + 1) * page_blocks); reserved pages are among
  // them.
  absl::Span<const int32_t> pages() const {
    return table_ == nullptr ? absl::Span<const int32_t>() : absl::MakeConstSpan(table_->pages);
  }
  CachePoolId cache_pool() const { return table_ == nullptr ? 0 : table_->cache_pool; }
  // Whether it may be made to give its pages up for others (KvPool::yielding_pages). One that may
  // must not be changed.
  void SetYielding(bool yielding);

 private:
  friend class KvPool;
  struct Table {
    std::vector<int32_t> pages;
    int64_t blocks = 0;
    CachePoolId cache_pool = 0;
    bool yielding = false;
  };

  KvPool* pool_ = nullptr;
  std::unique_ptr<Table> table_;
};

struct KvPoolOptions {
  int64_t num_pages = 0;
  int32_t page_blocks = 16;
  int32_t block_length = 1;  // L, tokens
  bool prefix_cache = true;
  // Copies the first `blocks` blocks of page `from` to page `to` (BlockEngine::CopyPage).
  std::function<void(int32_t from, int32_t to, int32_t blocks)> copy_page;
  // Tests force collisions with it; null: Abseil's hash. Equal hashes cost time, never a wrong
  // page.
  uint64_t (*hash)(uint64_t parent, absl::Span<const int32_t> tokens) = nullptr;
};

class KvPool {
 public:
  explicit KvPool(KvPoolOptions options);
  // Every sequence must be gone.
  ~KvPool();
  KvPool(const KvPool&) = delete;
  KvPool& operator=(const KvPool&) = delete;

  KvSequence NewSequence(CachePoolId cache_pool = 0);

  // Makes pages that hold the next blocks of `tokens` ([blocks, L], from the sequence's start) part
  // of the sequence, as far as its cache pool has them and they lie within the first `max_blocks`
  // blocks. Only
  // where sequence.blocks() is a multiple of the page. Returns the blocks gained.
  int64_t ShareCached(KvSequence& sequence, absl::Span<const int32_t> tokens, int64_t max_blocks);

  // Gives the sequence pages for at least `blocks` blocks in all. False when there are not enough;
  // then nothing has changed.
  bool Reserve(KvSequence& sequence, int64_t blocks);

  // The KV of `count` more blocks has been computed. `tokens`: [>= blocks, L] from the start. Pages
  // that became full get their names; where a page of that name is there already, the sequence
  // takes that one and its own is freed.
  void Commit(KvSequence& sequence, absl::Span<const int32_t> tokens, int64_t count);

  // Makes `child` the first `blocks` blocks of `parent` with pages for `reserve_blocks` more: full
  // pages are shared, the last one is copied; it is of the parent's cache pool. False when there
  // are not enough pages; then nothing has changed. 0 <= blocks <= parent.blocks(). `child` may be
  // the parent itself.
  bool Fork(const KvSequence& parent, int64_t blocks, int64_t reserve_blocks, KvSequence* child);

  int64_t PagesFor(int64_t blocks) const {
    return (blocks + options_.page_blocks - 1) / options_.page_blocks;
  }
  int64_t num_pages() const { return options_.num_pages; }
  int32_t page_blocks() const { return options_.page_blocks; }
  int64_t free_pages() const { return static_cast<int64_t>(free_.size()); }
  int64_t cached_pages() const { return cached_; }
  // What Reserve can give.
  int64_t available_pages() const { return free_pages() + cached_; }
  // Pages that only yielding sequences refer to: what it would be more without these.
  int64_t yielding_pages() const { return yielding_; }

  // Recounts everything; INTERNAL naming the first thing that does not hold. For tests.
  absl::Status CheckInvariants() const;

 private:
  friend class KvSequence;
  static constexpr int32_t kNone = -1;

  struct Page {
    int32_t references = 0;
    int32_t yielding = 0;  // of these, from yielding sequences
    uint64_t name = 0;     // 0: not named; never used twice
    uint64_t parent = 0;   // name of the page before; 0: this is a first page
    CachePoolId cache_pool = 0;
    uint64_t hash = 0;
    std::vector<int32_t> tokens;  // [page_blocks, L] where named
    int32_t next_same_hash = kNone;
    int32_t newer = kNone, older = kNone;  // neighbours among the cached pages
  };

  uint64_t Hash(CachePoolId cache_pool, uint64_t parent, absl::Span<const int32_t> tokens) const;
  int32_t FindNamed(CachePoolId cache_pool, uint64_t parent,
                    absl::Span<const int32_t> tokens) const;
  void Name(int32_t page, CachePoolId cache_pool, uint64_t parent,
            absl::Span<const int32_t> tokens);
  void Forget(int32_t page);
  void AddReference(int32_t page);
  void DropReference(int32_t page, bool yielding = false);
  void SetYielding(KvSequence::Table& table, bool yielding);
  static bool Yields(const Page& page) {
    return page.references > 0 && page.references == page.yielding;
  }
  int32_t TakePage();
  void AppendToCached(int32_t page);
  void RemoveFromCached(int32_t page);
  void Release(KvSequence::Table& table);
  absl::Span<const int32_t> PageTokens(absl::Span<const int32_t> tokens, int64_t index) const;
  uint64_t ParentName(const KvSequence::Table& table, int64_t index) const;

  const KvPoolOptions options_;
  std::vector<Page> pages_;                         // [num_pages]
  std::vector<int32_t> free_;                       // a stack
  absl::flat_hash_map<uint64_t, int32_t> by_hash_;  // first page of a chain by next_same_hash
  absl::flat_hash_set<const KvSequence::Table*> tables_;
  int32_t oldest_ = kNone, newest_ = kNone;  // ends of the cached pages
  int64_t cached_ = 0;
  int64_t yielding_ = 0;
  uint64_t last_name_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_KV_POOL_H_
