#include "block_service/kv_pool.h"

#include <algorithm>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"

namespace blockserve {

KvSequence::~KvSequence() {
  if (table_ != nullptr) {
    pool_->Release(*table_);
    pool_->tables_.erase(table_.get());
  }
}

KvSequence::KvSequence(KvSequence&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), table_(std::move(other.table_)) {}

KvSequence& KvSequence::operator=(KvSequence&& other) noexcept {
  if (this != &other) {
    KvSequence old(std::move(*this));
    pool_ = std::exchange(other.pool_, nullptr);
    table_ = std::move(other.table_);
  }
  return *this;
}

void KvSequence::SetYielding(bool yielding) {
  if (table_ != nullptr) pool_->SetYielding(*table_, yielding);
}

KvPool::KvPool(KvPoolOptions options)
    : options_(std::move(options)), pages_(static_cast<size_t>(options_.num_pages)) {
  free_.reserve(pages_.size());
  for (int64_t page = options_.num_pages - 1; page >= 0; --page) {
    free_.push_back(static_cast<int32_t>(page));
  }
}

KvPool::~KvPool() = default;

KvSequence KvPool::NewSequence(CachePoolId cache_pool) {
  KvSequence sequence;
  sequence.pool_ = this;
  sequence.table_ = std::make_unique<KvSequence::Table>();
  sequence.table_->cache_pool = cache_pool;
  tables_.insert(sequence.table_.get());
  return sequence;
}

int64_t KvPool::ShareCached(KvSequence& sequence, absl::Span<const int32_t> tokens,
                            int64_t max_blocks) {
  KvSequence::Table& table = *sequence.table_;
  if (!options_.prefix_cache || table.blocks % options_.page_blocks != 0) return 0;
  const int64_t before = table.blocks;
  while (table.blocks + options_.page_blocks <= max_blocks) {
    const int64_t index = table.blocks / options_.page_blocks;
    const int32_t page =
        FindNamed(table.cache_pool, ParentName(table, index), PageTokens(tokens, index));
    if (page == kNone) break;
    AddReference(page);
    if (index < static_cast<int64_t>(table.pages.size())) {
      DropReference(std::exchange(table.pages[static_cast<size_t>(index)], page));
    } else {
      table.pages.push_back(page);
    }
    table.blocks += options_.page_blocks;
  }
  return table.blocks - before;
}

bool KvPool::Reserve(KvSequence& sequence, int64_t blocks) {
  KvSequence::Table& table = *sequence.table_;
  const int64_t missing = PagesFor(blocks) - static_cast<int64_t>(table.pages.size());
  if (missing > available_pages()) return false;
  for (int64_t i = 0; i < missing; ++i) table.pages.push_back(TakePage());
  return true;
}

void KvPool::Commit(KvSequence& sequence, absl::Span<const int32_t> tokens, int64_t count) {
  KvSequence::Table& table = *sequence.table_;
  const int64_t first_full = table.blocks / options_.page_blocks;
  table.blocks += count;
  if (!options_.prefix_cache) return;
  for (int64_t index = first_full; index < table.blocks / options_.page_blocks; ++index) {
    int32_t& page = table.pages[static_cast<size_t>(index)];
    const uint64_t parent = ParentName(table, index);
    const absl::Span<const int32_t> page_tokens = PageTokens(tokens, index);
    const int32_t same = FindNamed(table.cache_pool, parent, page_tokens);
    if (same == kNone) {
      Name(page, table.cache_pool, parent, page_tokens);
    } else {
      AddReference(same);
      DropReference(std::exchange(page, same));
    }
  }
}

bool KvPool::Fork(const KvSequence& parent, int64_t blocks, int64_t reserve_blocks,
                  KvSequence* child) {
  const int64_t full = blocks / options_.page_blocks;
  const int32_t rest = static_cast<int32_t>(blocks % options_.page_blocks);
  KvSequence copy = NewSequence(parent.cache_pool());
  KvSequence::Table& table = *copy.table_;
  const absl::Span<const int32_t> from = parent.pages();
  // The references come first: the pages must not be given up to make room for the rest.
  for (int64_t i = 0; i < full; ++i) {
    AddReference(from[static_cast<size_t>(i)]);
    table.pages.push_back(from[static_cast<size_t>(i)]);
  }
  if (!Reserve(copy, blocks + reserve_blocks)) return false;
  if (rest > 0) {
    options_.copy_page(from[static_cast<size_t>(full)], table.pages[static_cast<size_t>(full)],
                       rest);
  }
  table.blocks = blocks;
  *child = std::move(copy);
  return true;
}

uint64_t KvPool::Hash(CachePoolId cache_pool, uint64_t parent,
                      absl::Span<const int32_t> tokens) const {
  if (options_.hash != nullptr) return options_.hash(parent, tokens);
  return absl::HashOf(cache_pool, parent, tokens);
}

absl::Span<const int32_t> KvPool::PageTokens(absl::Span<const int32_t> tokens,
                                             int64_t index) const {
  const size_t page_tokens =
      static_cast<size_t>(options_.page_blocks) * static_cast<size_t>(options_.block_length);
  return tokens.subspan(static_cast<size_t>(index) * page_tokens, page_tokens);
}

uint64_t KvPool::ParentName(const KvSequence::Table& table, int64_t index) const {
  if (index == 0) return 0;
  return pages_[static_cast<size_t>(table.pages[static_cast<size_t>(index - 1)])].name;
}

int32_t KvPool::FindNamed(CachePoolId cache_pool, uint64_t parent,
                          absl::Span<const int32_t> tokens) const {
  const auto chain = by_hash_.find(Hash(cache_pool, parent, tokens));
  if (chain == by_hash_.end()) return kNone;
  for (int32_t page = chain->second; page != kNone;) {
    const Page& candidate = pages_[static_cast<size_t>(page)];
    if (candidate.cache_pool == cache_pool && candidate.parent == parent &&
        absl::MakeConstSpan(candidate.tokens) == tokens) {
      return page;
    }
    page = candidate.next_same_hash;
  }
  return kNone;
}

void KvPool::Name(int32_t page, CachePoolId cache_pool, uint64_t parent,
                  absl::Span<const int32_t> tokens) {
  Page& named = pages_[static_cast<size_t>(page)];
  named.name = ++last_name_;
  named.parent = parent;
  named.cache_pool = cache_pool;
  named.hash = Hash(cache_pool, parent, tokens);
  named.tokens.assign(tokens.begin(), tokens.end());
  const auto [chain, is_new] = by_hash_.try_emplace(named.hash, page);
  named.next_same_hash = is_new ? kNone : std::exchange(chain->second, page);
}

void KvPool::Forget(int32_t page) {
  Page& named = pages_[static_cast<size_t>(page)];
  const auto chain = by_hash_.find(named.hash);
  if (chain->second == page) {
    if (named.next_same_hash == kNone) {
      by_hash_.erase(chain);
    } else {
      chain->second = named.next_same_hash;
    }
  } else {
    int32_t before = chain->second;
    while (pages_[static_cast<size_t>(before)].next_same_hash != page) {
      before = pages_[static_cast<size_t>(before)].next_same_hash;
    }
    pages_[static_cast<size_t>(before)].next_same_hash = named.next_same_hash;
  }
  named.name = 0;
  named.parent = 0;
  named.cache_pool = 0;
  named.next_same_hash = kNone;
}

void KvPool::AddReference(int32_t page) {
  Page& entry = pages_[static_cast<size_t>(page)];
  yielding_ -= Yields(entry);
  if (entry.references++ == 0) RemoveFromCached(page);
}

void KvPool::DropReference(int32_t page, bool yielding) {
  Page& entry = pages_[static_cast<size_t>(page)];
  yielding_ -= Yields(entry);
  --entry.references;
  entry.yielding -= yielding;
  yielding_ += Yields(entry);
  if (entry.references > 0) return;
  if (entry.name != 0) {
    AppendToCached(page);
  } else {
    free_.push_back(page);
  }
}

void KvPool::SetYielding(KvSequence::Table& table, bool yielding) {
  if (table.yielding == yielding) return;
  table.yielding = yielding;
  for (const int32_t page : table.pages) {
    Page& entry = pages_[static_cast<size_t>(page)];
    yielding_ -= Yields(entry);
    entry.yielding += yielding ? 1 : -1;
    yielding_ += Yields(entry);
  }
}

int32_t KvPool::TakePage() {
  int32_t page = kNone;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else {
    page = oldest_;
    RemoveFromCached(page);
    Forget(page);
  }
  pages_[static_cast<size_t>(page)].references = 1;
  return page;
}

void KvPool::AppendToCached(int32_t page) {
  Page& entry = pages_[static_cast<size_t>(page)];
  entry.older = newest_;
  entry.newer = kNone;
  (newest_ == kNone ? oldest_ : pages_[static_cast<size_t>(newest_)].newer) = page;
  newest_ = page;
  ++cached_;
}

void KvPool::RemoveFromCached(int32_t page) {
  Page& entry = pages_[static_cast<size_t>(page)];
  (entry.older == kNone ? oldest_ : pages_[static_cast<size_t>(entry.older)].newer) = entry.newer;
  (entry.newer == kNone ? newest_ : pages_[static_cast<size_t>(entry.newer)].older) = entry.older;
  entry.older = entry.newer = kNone;
  --cached_;
}

void KvPool::Release(KvSequence::Table& table) {
  // From the tail, so that it is given up before what it hangs on.
  for (auto page = table.pages.rbegin(); page != table.pages.rend(); ++page) {
    DropReference(*page, table.yielding);
  }
  table.pages.clear();
  table.blocks = 0;
}

absl::Status KvPool::CheckInvariants() const {
  const auto fails = [](auto&&... parts) { return absl::InternalError(absl::StrCat(parts...)); };
  std::vector<int32_t> references(pages_.size(), 0);
  std::vector<int32_t> yielding(pages_.size(), 0);
  for (const KvSequence::Table* table : tables_) {
    if (PagesFor(table->blocks) > static_cast<int64_t>(table->pages.size())) {
      return fails("a table of ", table->pages.size(), " pages holds ", table->blocks, " blocks");
    }
    const int64_t full = table->blocks / options_.page_blocks;
    for (size_t i = 0; i < table->pages.size(); ++i) {
      const int32_t page = table->pages[i];
      ++references[static_cast<size_t>(page)];
      yielding[static_cast<size_t>(page)] += table->yielding;
      const Page& entry = pages_[static_cast<size_t>(page)];
      const bool is_full = static_cast<int64_t>(i) < full;
      if (options_.prefix_cache && is_full != (entry.name != 0)) {
        return fails("page ", page, is_full ? " is full and has no name" : " has a name too early");
      }
      if (is_full && entry.name != 0 &&
          entry.parent != ParentName(*table, static_cast<int64_t>(i))) {
        return fails("page ", page, " does not follow the page before it");
      }
      if (entry.name != 0 && entry.cache_pool != table->cache_pool) {
        return fails("page ", page, " is of another cache pool than a sequence that holds it");
      }
      if (!is_full && entry.references != 1) return fails("page ", page, " is shared and not full");
    }
  }
  absl::flat_hash_set<uint64_t> names;
  for (const Page& page : pages_) {
    if (page.name != 0 && !names.insert(page.name).second) return fails("a name is used twice");
  }
  std::vector<bool> is_free(pages_.size(), false);
  for (const int32_t page : free_) {
    if (is_free[static_cast<size_t>(page)]) return fails("page ", page, " is free twice");
    is_free[static_cast<size_t>(page)] = true;
  }
  std::vector<bool> is_cached(pages_.size(), false);
  int64_t cached = 0;
  int32_t before = kNone;
  for (int32_t page = oldest_; page != kNone; page = pages_[static_cast<size_t>(page)].newer) {
    if (++cached > cached_) return fails("more pages are cached than ", cached_);
    if (pages_[static_cast<size_t>(page)].older != before)
      return fails("cached pages are unlinked");
    is_cached[static_cast<size_t>(page)] = true;
    before = page;
  }
  if (cached != cached_ || before != newest_) return fails("cached pages are miscounted");
  size_t in_chains = 0;
  for (const auto& [hash, first] : by_hash_) {
    for (int32_t page = first; page != kNone;
         page = pages_[static_cast<size_t>(page)].next_same_hash) {
      if (pages_[static_cast<size_t>(page)].hash != hash)
        return fails("page ", page, " is misfiled");
      ++in_chains;
    }
  }
  if (in_chains != names.size()) return fails(names.size(), " names, ", in_chains, " are filed");
  int64_t yielding_pages = 0;
  for (size_t i = 0; i < pages_.size(); ++i) {
    const Page& page = pages_[i];
    if (page.yielding != yielding[i]) {
      return fails("page ", i, " counts ", page.yielding, " yielding of ", yielding[i]);
    }
    yielding_pages += Yields(page);
    if (page.references != references[i]) {
      return fails("page ", i, " counts ", page.references, " references of ", references[i]);
    }
    const int states = (page.references > 0) + is_free[i] + is_cached[i];
    if (states != 1) return fails("page ", i, " is in ", states, " states");
    if (is_free[i] && page.name != 0) return fails("free page ", i, " has a name");
    if (is_cached[i] && page.name == 0) return fails("cached page ", i, " has no name");
    if (page.parent != 0 && !names.contains(page.parent)) {
      return fails("page ", i, " outlives the page before it");
    }
  }
  if (yielding_pages != yielding_) return fails("yielding pages are miscounted");
  return absl::OkStatus();
}

}  // namespace blockserve
