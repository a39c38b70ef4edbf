// The half of BlockScheduler that plans steps and takes their results.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "block_service/scheduler.h"
#include "common/finite.h"

namespace blockserve {
namespace {

using State = BlockSequence::State;

absl::Status NonFinite() {
  return absl::InternalError("the block decoder gave a context that is not finite");
}

}  // namespace

const BlockStep& BlockScheduler::PlanStep(absl::Time now) {
  DropExpired(now);
  ++steps_planned_;
  step_.chunks.clear();
  step_.context_rows = 0;
  step_.decode_blocks = 0;
  step_.prefill_blocks = 0;
  StepUnderWay plan;
  if (!spare_.empty()) {
    plan = std::move(spare_.back());
    spare_.pop_back();
  }
  PlanDecode(plan);
  PlanPrefill(plan);
  plan.context_rows = step_.context_rows;
  if (plan.entries.empty()) {
    spare_.push_back(std::move(plan));
  } else {
    under_way_.push_back(std::move(plan));
  }
  return step_;
}

int64_t BlockScheduler::plannable_blocks() const {
  int64_t prefill = 0;
  for (const BlockSequence* sequence : opening_) {
    prefill += BlocksOf(*sequence) - PlannedBlocks(*sequence);
    if (prefill >= options_.prefill_chunk_blocks) break;
  }
  return static_cast<int64_t>(DecodeBlocks()) +
         std::min<int64_t>(prefill, options_.prefill_chunk_blocks);
}

size_t BlockScheduler::DecodeBlocks() const {
  const int64_t group = (open_ + options_.groups - 1) / options_.groups;
  return std::min(ready_.size(),
                  static_cast<size_t>(std::max<int64_t>(group, options_.min_group_blocks)));
}

void BlockScheduler::AddEntry(StepUnderWay& plan, BlockSequence& sequence, int64_t first_block,
                              int64_t blocks, int64_t rows) {
  plan.entries.push_back({&sequence, first_block, blocks, rows});
  sequence.blocks_under_way += blocks;
}

void BlockScheduler::PlanDecode(StepUnderWay& plan) {
  // Pages first: growing may suspend sequences that are ready themselves.
  for (size_t i = 0; i < DecodeBlocks();) {
    const size_t before = ready_.size();
    const bool grown = Grow(*ready_[i]);
    i = grown && ready_.size() == before ? i + 1 : 0;
  }
  const size_t taken = DecodeBlocks();
  for (size_t i = 0; i < taken; ++i) {
    BlockSequence& sequence = *ready_[i];
    const bool again = AsksForLastRow(sequence);
    const KvSequence& kv = again ? sequence.kv_again : sequence.kv;
    const int64_t index = kv.blocks();
    BlockChunk& chunk = step_.chunks.emplace_back();
    chunk.tokens =
        again
            ? absl::MakeConstSpan(sequence.tokens).last(static_cast<size_t>(options_.block_length))
            : absl::MakeConstSpan(std::get<AppendCall>(sequence.queue.front().call).tokens);
    chunk.first_block = index;
    chunk.pages = kv.pages();
    chunk.first_context = index;
    AddEntry(plan, sequence, index, 1, 1);
    step_.context_rows += 1;
    step_.decode_blocks += 1;
  }
  ready_.erase(ready_.begin(), ready_.begin() + static_cast<std::ptrdiff_t>(taken));
}

bool BlockScheduler::AsksForLastRow(const BlockSequence& sequence) const {
  const auto* append = std::get_if<AppendCall>(&sequence.queue.front().call);
  return append == nullptr || append->block_index < BlocksOf(sequence);
}

bool BlockScheduler::Grow(BlockSequence& sequence) {
  const int64_t blocks = BlocksOf(sequence);
  const bool again = AsksForLastRow(sequence);
  while (true) {
    const bool has_pages = again ? !sequence.kv_again.pages().empty() ||
                                       pool_.Fork(sequence.kv, blocks - 1, 1, &sequence.kv_again)
                                 : pool_.Reserve(sequence.kv, blocks + 1);
    if (has_pages) return true;
    if (FreePages(1)) continue;
    BlockSequence* newest = table_.NewestUnprotected(sequence);
    if (newest == nullptr || newest->admitted < sequence.admitted) newest = &sequence;
    const bool itself = newest == &sequence;
    Suspend(*newest);
    if (itself) return false;
  }
}

void BlockScheduler::SharePrefill() {
  shares_.clear();
  by_need_.clear();
  for (BlockSequence* sequence : opening_) shares_.push_back({sequence, 0});
  // Nobody starves: half of the chunk is for those whose turn it is.
  const int64_t in_turn = (options_.prefill_chunk_blocks + 1) / 2;
  int64_t budget = in_turn;
  for (PrefillShare& share : shares_) {
    if (budget == 0) break;
    budget -= Prefill(share, budget);
  }
  // The rest is for those that need the least, so that a short prompt does not wait behind long
  // ones.
  budget += options_.prefill_chunk_blocks - in_turn;
  for (PrefillShare& share : shares_) by_need_.push_back(&share);
  const auto need = [this](const PrefillShare* share) {
    const BlockSequence& sequence = *share->sequence;
    return std::make_pair(sequence.priority_rank,
                          BlocksOf(sequence) - PlannedBlocks(sequence) - share->blocks);
  };
  std::stable_sort(by_need_.begin(), by_need_.end(),
                   [&](const PrefillShare* a, const PrefillShare* b) { return need(a) < need(b); });
  for (PrefillShare* share : by_need_) {
    if (budget == 0) break;
    budget -= Prefill(*share, budget);
  }
}

int64_t BlockScheduler::Prefill(PrefillShare& share, int64_t budget) {
  BlockSequence& sequence = *share.sequence;
  if (WaitsForItsReader(sequence)) return 0;
  if (share.blocks == 0 && sequence.blocks_under_way == 0) {
    // What another prompt has computed since this one was admitted need not be computed again.
    sequence.cached_blocks +=
        pool_.ShareCached(sequence.kv, sequence.tokens, sequence.first_context);
  }
  if (share.blocks == 0 && IsPrefilledByAnother(sequence)) return 0;
  const int64_t missing = BlocksOf(sequence) - PlannedBlocks(sequence) - share.blocks;
  const int64_t count = std::min(missing, budget);
  share.blocks += count;
  return count;
}

bool BlockScheduler::WaitsForItsReader(const BlockSequence& sequence) const {
  return sequence.first_context < BlocksOf(sequence) - 1 &&
         std::find(slow_readers_.begin(), slow_readers_.end(), sequence.queue.front().stream) !=
             slow_readers_.end();
}

bool BlockScheduler::IsPrefilledByAnother(const BlockSequence& sequence) const {
  const int64_t first = PlannedBlocks(sequence);
  const int64_t end = first + options_.page_blocks;
  if (!options_.prefix_cache || first % options_.page_blocks != 0 || end > sequence.first_context) {
    return false;
  }
  const auto page = sequence.tokens.begin() + first * options_.block_length;
  const auto page_end = sequence.tokens.begin() + end * options_.block_length;
  return std::any_of(shares_.begin(), shares_.end(), [&](const PrefillShare& share) {
    const BlockSequence& other = *share.sequence;
    return &other != &sequence && other.kv.cache_pool() == sequence.kv.cache_pool() &&
           other.kv.blocks() <= first && PlannedBlocks(other) + share.blocks >= end &&
           // The page first: many texts begin alike, and go on otherwise.
           std::equal(page, page_end, other.tokens.begin() + first * options_.block_length) &&
           std::equal(sequence.tokens.begin(), page, other.tokens.begin());
  });
}

void BlockScheduler::PlanPrefill(StepUnderWay& plan) {
  if (opening_.empty()) return;
  SharePrefill();
  for (const PrefillShare& share : shares_) {
    if (share.blocks == 0) continue;
    BlockSequence* const sequence = share.sequence;
    const int64_t first = PlannedBlocks(*sequence);
    const int64_t count = share.blocks;
    const int64_t rows =
        std::max<int64_t>(first + count - std::max(first, sequence->first_context), 0);
    BlockChunk& chunk = step_.chunks.emplace_back();
    chunk.tokens = absl::MakeConstSpan(sequence->tokens)
                       .subspan(static_cast<size_t>(first * options_.block_length),
                                static_cast<size_t>(count * options_.block_length));
    chunk.first_block = first;
    chunk.pages = sequence->kv.pages();
    chunk.first_context = sequence->first_context;
    AddEntry(plan, *sequence, first, count, rows);
    step_.context_rows += rows;
    step_.prefill_blocks += static_cast<int32_t>(count);
  }
}

void BlockScheduler::FinishStep(const absl::Status& status,
                                std::shared_ptr<const float[]> contexts) {
  // Stays among those under way to the end: sequences of it that end on the way are taken out.
  StepUnderWay& step = under_way_.front();
  const size_t width = static_cast<size_t>(options_.context_width);
  absl::Span<const float> left(contexts.get(), static_cast<size_t>(step.context_rows) * width);
  if (status.ok() && !left.empty()) {
    outbox_.kept.push_back(contexts);
    recent_.Add(std::move(contexts));
  }
  for (StepEntry& entry : step.entries) {
    const absl::Span<const float> rows = left.subspan(0, static_cast<size_t>(entry.rows) * width);
    left.remove_prefix(rows.size());
    if (entry.sequence == nullptr) continue;
    if (!status.ok()) {
      Erase(*entry.sequence, status);
    } else {
      FinishEntry(std::exchange(entry, {}), rows);
    }
  }
  step.entries.clear();
  spare_.push_back(std::move(step));
  under_way_.pop_front();
}

void BlockScheduler::FinishEntry(const StepEntry& entry, absl::Span<const float> rows) {
  BlockSequence& sequence = *entry.sequence;
  sequence.blocks_under_way -= entry.blocks;
  if (!AllFinite(rows)) {
    Erase(sequence, NonFinite());
  } else if (sequence.state == State::kOpening) {
    FinishPrefill(entry, rows);
  } else {
    FinishDecode(entry, rows);
  }
}

void BlockScheduler::FinishDecode(const StepEntry& entry, absl::Span<const float> rows) {
  BlockSequence& sequence = *entry.sequence;
  const BlockWorkItem& head = sequence.queue.front();
  if (AsksForLastRow(sequence)) {
    sequence.kv_again = KvSequence();
  } else {
    const auto& tokens = std::get<AppendCall>(head.call).tokens;
    sequence.tokens.insert(sequence.tokens.end(), tokens.begin(), tokens.end());
    pool_.Commit(sequence.kv, sequence.tokens, 1);
  }
  recent_.Keep(rows, sequence.last_row);
  ReplyRows(head, entry.first_block, rows, /*last=*/true, /*cached_blocks=*/0);
  const auto* open = std::get_if<OpenCall>(&head.call);
  const bool close_after = open != nullptr && open->close_after;
  PopHead(sequence);
  if (close_after) return Erase(sequence, absl::CancelledError("the sequence was closed"));
  Advance(sequence);
}

void BlockScheduler::FinishPrefill(const StepEntry& entry, absl::Span<const float> rows) {
  BlockSequence& sequence = *entry.sequence;
  pool_.Commit(sequence.kv, sequence.tokens, entry.blocks);
  const bool done = sequence.kv.blocks() == BlocksOf(sequence);
  ReplyRows(sequence.queue.front(), entry.first_block + entry.blocks - entry.rows, rows, done,
            sequence.cached_blocks);
  if (!done) return ResolveForks(sequence);
  recent_.Keep(rows.last(static_cast<size_t>(options_.context_width)), sequence.last_row);
  RemoveFromLists(sequence);
  SetState(sequence, State::kOpen);
  PopHead(sequence);
  if (sequence.close_after) return Erase(sequence, absl::CancelledError("the sequence was closed"));
  Advance(sequence);
}

absl::Status BlockScheduler::CheckInvariants() const {
  if (absl::Status status = pool_.CheckInvariants(); !status.ok()) return status;
  absl::Status status;
  int64_t open = 0, waiting = 0;
  table_.ForEach([&](const BlockSequence& sequence) {
    open += sequence.state == State::kOpen;
    waiting += static_cast<int64_t>(sequence.queue.size());
    const auto in = [&](const std::vector<BlockSequence*>& list) {
      return std::count(list.begin(), list.end(), &sequence);
    };
    const bool opening = sequence.state == State::kOpening;
    int64_t blocks = 0;
    for (const StepUnderWay& step : under_way_) {
      for (const StepEntry& entry : step.entries) {
        if (entry.sequence == &sequence) blocks += entry.blocks;
      }
    }
    const bool works = sequence.state == State::kOpen && !sequence.queue.empty() && blocks == 0;
    if (in(opening_) != opening || in(ready_) != works) {
      status = absl::InternalError(
          absl::StrCat("sequence ", sequence.key.sequence, " is not in the lists of its state"));
    }
    if (blocks != sequence.blocks_under_way || (blocks > 0 && sequence.queue.empty())) {
      status =
          absl::InternalError(absl::StrCat("sequence ", sequence.key.sequence, " has ", blocks,
                                           " blocks under way, not ", sequence.blocks_under_way));
    }
    if (sequence.state == State::kOpen && sequence.kv.blocks() != BlocksOf(sequence)) {
      status = absl::InternalError(absl::StrCat("sequence ", sequence.key.sequence, " holds ",
                                                sequence.kv.blocks(), " blocks of ",
                                                BlocksOf(sequence)));
    }
  });
  if (open != open_ || waiting != waiting_) {
    status = absl::InternalError(absl::StrCat(open, " sequences are open and ", waiting,
                                              " items wait, not ", open_, " and ", waiting_));
  }
  return status;
}

}  // namespace blockserve
