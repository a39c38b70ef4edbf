#include "block_service/scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

using State = BlockSequence::State;

// A prompt of the next lower priority is prefilled as if it had come so many steps later: ahead of
// others, but nobody waits for ever.
constexpr uint64_t kPriorityHeadStartSteps = 64;
// Longer reservations are the same as endless ones; keeps sums away from overflow.
constexpr int64_t kEndlessBlocks = int64_t{1} << 40;

uint64_t PriorityRank(uint32_t priority) {
  return priority >= 1 && priority <= 3 ? priority - 1 : 1;
}

KvPoolOptions PoolOptions(const BlockSchedulerOptions& options) {
  KvPoolOptions pool;
  pool.num_pages = options.num_pages;
  pool.page_blocks = options.page_blocks;
  pool.block_length = options.block_length;
  pool.prefix_cache = options.prefix_cache;
  pool.copy_page = options.copy_page;
  return pool;
}

// Groups take turns: with the results of one step more than there are groups, each sequence has its
// next step before the last one's are given up. They are large, though.
size_t RecentStepsOf(const BlockSchedulerOptions& options) {
  return static_cast<size_t>(std::clamp(options.groups, 1, 3)) + 1;
}

absl::Status SuspendedError() {
  return absl::UnavailableError("the sequence gave its pages up to older ones; open it again");
}

}  // namespace

BlockScheduler::BlockScheduler(BlockSchedulerOptions options)
    : options_(std::move(options)),
      pool_(PoolOptions(options_)),
      recent_(RecentStepsOf(options_)),
      table_(options_.lease) {}

BlockScheduler::~BlockScheduler() = default;

void BlockScheduler::OpenStream(StreamId stream, uint64_t incarnation, absl::Time now) {
  // A gateway has one stream: a new one means that the old one is dead, even where its end is heard
  // of later. Until then what it asked for would stand before its repetition, and take that with
  // it.
  absl::flat_hash_set<StreamId> old;
  table_.ForEach([&](const BlockSequence& sequence) {
    if (sequence.key.incarnation != incarnation) return;
    old.insert(sequence.stream);
    for (const BlockWorkItem& item : sequence.queue) old.insert(item.stream);
  });
  for (const StreamId ended : old) {
    if (ended != 0 && ended != stream) CloseStream(ended, now);
  }
  table_.Attach(incarnation, stream);
}

void BlockScheduler::CloseStream(StreamId stream, absl::Time now) {
  table_.Detach(stream, now);
  const size_t answered = outbox_.items.size();
  std::vector<SequenceKey> busy;
  table_.ForEach([&](const BlockSequence& sequence) {
    if (!sequence.queue.empty()) busy.push_back(sequence.key);
  });
  for (const SequenceKey& key : busy) {
    if (BlockSequence* sequence = table_.Find(key)) {
      DropItems(
          *sequence, [&](const BlockWorkItem& item) { return item.stream == stream; },
          absl::OkStatus());
    }
  }
  // A fork of this stream whose parent went before its own turn came was answered.
  outbox_.items.erase(
      std::remove_if(
          outbox_.items.begin() + static_cast<std::ptrdiff_t>(answered), outbox_.items.end(),
          [&](const BlockItemReply& reply) { return reply.stream == stream && reply.rows == 0; }),
      outbox_.items.end());
}

void BlockScheduler::Submit(BlockWorkItem&& item, absl::Time now) {
  // Giving up is never too late.
  if (std::holds_alternative<CloseCall>(item.call)) return Close(item);
  if (std::holds_alternative<CancelCall>(item.call)) return Cancel(item);
  if (item.deadline <= now) {
    return Reply(item, absl::DeadlineExceededError("the deadline passed before the item came"));
  }
  next_deadline_ = std::min(next_deadline_, item.deadline);
  if (std::holds_alternative<OpenCall>(item.call)) return Open(item);
  if (std::holds_alternative<AppendCall>(item.call)) return Append(item);
  if (std::holds_alternative<ForkCall>(item.call)) return Fork(item);
  Reply(item, absl::InvalidArgumentError("call: none of open, append, fork, close and cancel"));
}

absl::Status BlockScheduler::CheckTokens(absl::Span<const int32_t> tokens) const {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= options_.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("tokens[", i, "] is ", tokens[i],
                                                     "; ids are 0 to ", options_.vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status BlockScheduler::CheckFits(absl::string_view field, int64_t blocks,
                                       int64_t reserve_blocks) const {
  if (blocks > kEndlessBlocks) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", blocks, " blocks; at most ", kEndlessBlocks, " are counted"));
  }
  if (reserve_blocks < 0) {
    return absl::InvalidArgumentError(absl::StrCat("reserve_blocks is ", reserve_blocks));
  }
  int64_t total = blocks + std::min(reserve_blocks, kEndlessBlocks);
  if (options_.max_positions > 0) {
    if (blocks > options_.max_positions) {
      return absl::InvalidArgumentError(
          absl::StrCat(field, ": ", blocks, " blocks; the model's max_position_embeddings is ",
                       options_.max_positions, " (--allow-long-contexts lifts it)"));
    }
    total = std::min(total, options_.max_positions);
  }
  if (pool_.PagesFor(total) > pool_.num_pages()) {
    return absl::InvalidArgumentError(absl::StrCat(
        field, " and reserve_blocks: ", total, " blocks need ", pool_.PagesFor(total),
        " KV pages; there are ", pool_.num_pages(), " in all (--kv-memory-mib, --kv-pages)"));
  }
  return absl::OkStatus();
}

int64_t BlockScheduler::ReserveAhead(int64_t blocks, int64_t reserve_blocks) const {
  const int64_t most =
      (options_.reserve_tokens + options_.block_length - 1) / options_.block_length;
  // No sequence grows beyond its longest: a reservation counts the last block too, which is never
  // embedded.
  const int64_t room = max_blocks_per_sequence() - blocks;
  return std::max<int64_t>(std::min({reserve_blocks, most, room}), 0);
}

bool BlockScheduler::HasRoomForSequence() {
  if (table_.size() < options_.max_sequences) return true;
  BlockSequence* const away = table_.OldestLease(/*with_pages=*/false);
  if (away == nullptr) return false;
  Erase(*away, absl::NotFoundError("the sequence made room while its gateway was away"));
  return true;
}

bool BlockScheduler::FreePages(int64_t pages) {
  if (pages > pool_.available_pages() + pool_.yielding_pages()) return false;
  while (pages > pool_.available_pages()) Suspend(*table_.OldestLease(/*with_pages=*/true));
  return true;
}

void BlockScheduler::Open(BlockWorkItem& item) {
  OpenCall& open = std::get<OpenCall>(item.call);
  const int64_t length = options_.block_length;
  if (open.tokens.empty() || open.tokens.size() % static_cast<size_t>(length) != 0) {
    return Reply(
        item, absl::InvalidArgumentError(absl::StrCat(
                  "open.tokens has ", open.tokens.size(),
                  " ids; it must be a multiple of the block length ", length, ", at least one")));
  }
  const int64_t blocks = static_cast<int64_t>(open.tokens.size()) / length;
  if (open.first_context >= blocks) {
    return Reply(
        item, absl::InvalidArgumentError(absl::StrCat("open.first_context is ", open.first_context,
                                                      "; there are ", blocks, " blocks")));
  }
  absl::Status status = CheckTokens(open.tokens);
  if (status.ok()) status = CheckFits("tokens", blocks, open.reserve_blocks);
  if (!status.ok()) {
    return Reply(item, absl::Status(status.code(), absl::StrCat("open.", status.message())));
  }
  if (QueueIfKnown(item)) return;
  if (draining_) {
    return Reply(item, absl::UnavailableError("this replica drains; open the sequence elsewhere"));
  }
  if (!HasRoomForSequence()) {
    return Reply(item, absl::ResourceExhaustedError(absl::StrCat(
                           options_.max_sequences, " sequences are open (--max-sequences)")));
  }
  BlockSequence& sequence = table_.Insert(item.sequence, item.stream);
  SetState(sequence, State::kOpening);
  sequence.tokens = std::move(open.tokens);
  sequence.first_context = open.first_context < 0 ? blocks - 1 : open.first_context;
  sequence.close_after = open.close_after;
  sequence.kv = pool_.NewSequence(open.cache_pool);
  sequence.cached_blocks = pool_.ShareCached(sequence.kv, sequence.tokens, sequence.first_context);
  const int64_t ahead = ReserveAhead(blocks, open.reserve_blocks);
  Enqueue(sequence, item);
  const int64_t pages = pool_.PagesFor(blocks + ahead);
  if (!FreePages(pages - static_cast<int64_t>(sequence.kv.pages().size())) ||
      !pool_.Reserve(sequence.kv, blocks + ahead)) {
    return Erase(sequence, absl::ResourceExhaustedError(absl::StrCat(
                               "no KV pages for ", blocks, " blocks and ", ahead, " ahead; ",
                               pool_.available_pages() + pool_.yielding_pages(), " of ",
                               pool_.num_pages(), " pages are free")));
  }
  sequence.admitted = ++admissions_;
  sequence.protected_blocks = blocks + ahead;
  sequence.priority_rank = PriorityRank(sequence.queue.front().priority);
  sequence.prefill_turn = steps_planned_ + sequence.priority_rank * kPriorityHeadStartSteps;
  const auto later = std::upper_bound(
      opening_.begin(), opening_.end(), sequence.prefill_turn,
      [](uint64_t turn, const BlockSequence* other) { return turn < other->prefill_turn; });
  opening_.insert(later, &sequence);
}

bool BlockScheduler::QueueIfKnown(BlockWorkItem& item) {
  BlockSequence* known = table_.Find(item.sequence);
  if (known == nullptr) return false;
  if (known->state == State::kSuspended) {
    Erase(*known, absl::OkStatus());
    return false;
  }
  Enqueue(*known, item);
  if (known->queue.size() == 1) Advance(*known);
  return true;
}

void BlockScheduler::Append(BlockWorkItem& item) {
  const AppendCall& append = std::get<AppendCall>(item.call);
  if (append.tokens.size() != static_cast<size_t>(options_.block_length)) {
    return Reply(item, absl::InvalidArgumentError(
                           absl::StrCat("append.tokens has ", append.tokens.size(),
                                        " ids; the block length is ", options_.block_length)));
  }
  if (absl::Status status = CheckTokens(append.tokens); !status.ok()) {
    return Reply(item, absl::Status(status.code(), absl::StrCat("append.", status.message())));
  }
  BlockSequence* sequence = table_.Find(item.sequence);
  if (sequence == nullptr) {
    return Reply(item, absl::NotFoundError(
                           absl::StrCat("sequence ", item.sequence.sequence, " is not open here")));
  }
  Enqueue(*sequence, item);
  if (sequence->state == State::kSuspended) return Erase(*sequence, SuspendedError(), true);
  if (sequence->queue.size() == 1) Advance(*sequence);
}

void BlockScheduler::Fork(BlockWorkItem& item) {
  const ForkCall fork = std::get<ForkCall>(item.call);
  if (fork.blocks < 1) {
    return Reply(item, absl::InvalidArgumentError(absl::StrCat("fork.blocks is ", fork.blocks,
                                                               "; it must be at least 1")));
  }
  if (absl::Status status = CheckFits("blocks", fork.blocks, fork.reserve_blocks); !status.ok()) {
    return Reply(item, absl::Status(status.code(), absl::StrCat("fork.", status.message())));
  }
  if (QueueIfKnown(item)) return;
  if (!HasRoomForSequence()) {
    return Reply(item, absl::ResourceExhaustedError(absl::StrCat(
                           options_.max_sequences, " sequences are open (--max-sequences)")));
  }
  const SequenceKey parent_key{item.sequence.incarnation, fork.parent};
  BlockSequence* parent = table_.Find(parent_key);
  BlockSequence& child = table_.Insert(item.sequence, item.stream);
  SetState(child, State::kForking);
  child.fork_parent = fork.parent;
  child.fork_blocks = fork.blocks;
  child.fork_reserve = fork.reserve_blocks;
  Enqueue(child, item);
  if (!ResolveFork(child, parent)) parent->forks_waiting.push_back(child.key);
}

bool BlockScheduler::ResolveFork(BlockSequence& child, BlockSequence* parent) {
  if (parent != nullptr && parent->state == State::kSuspended) {
    Erase(child, SuspendedError(), true);
    return true;
  }
  if (parent == nullptr) {
    Erase(child, absl::NotFoundError(absl::StrCat("fork.parent: sequence ", child.fork_parent,
                                                  " is not open here")));
    return true;
  }
  const int64_t blocks = child.fork_blocks;
  if (parent->state == State::kForking || blocks > parent->kv.blocks()) {
    if (!parent->queue.empty()) return false;
    Erase(child, absl::InvalidArgumentError(absl::StrCat("fork.blocks is ", blocks,
                                                         "; the parent has ", BlocksOf(*parent))));
    return true;
  }
  const int64_t ahead = ReserveAhead(blocks, child.fork_reserve);
  const int64_t shared = blocks / options_.page_blocks;
  if (!FreePages(pool_.PagesFor(blocks + ahead) - shared) ||
      !pool_.Fork(parent->kv, blocks, ahead, &child.kv)) {
    Erase(child, absl::ResourceExhaustedError(
                     absl::StrCat("no KV pages for a fork at ", blocks, " blocks and ", ahead,
                                  " ahead; ", pool_.available_pages() + pool_.yielding_pages(),
                                  " of ", pool_.num_pages(), " pages are free")));
    return true;
  }
  child.tokens.assign(parent->tokens.begin(),
                      parent->tokens.begin() + blocks * options_.block_length);
  if (parent->state == State::kOpen && blocks == BlocksOf(*parent)) {
    child.last_row.Assign(parent->last_row.values());
  }
  SetState(child, State::kOpen);
  child.admitted = ++admissions_;
  child.protected_blocks = blocks + ahead;
  AnswerHead(child, absl::OkStatus());
  Advance(child);
  return true;
}

void BlockScheduler::ResolveForks(BlockSequence& parent) {
  std::vector<SequenceKey> waiting = std::exchange(parent.forks_waiting, {});
  for (const SequenceKey& key : waiting) {
    BlockSequence* child = table_.Find(key);
    if (child == nullptr || child->state != State::kForking ||
        child->fork_parent != parent.key.sequence) {
      continue;
    }
    if (!ResolveFork(*child, &parent)) parent.forks_waiting.push_back(key);
  }
}

void BlockScheduler::Close(const BlockWorkItem& item) {
  if (BlockSequence* sequence = table_.Find(item.sequence)) {
    Erase(*sequence, absl::CancelledError("the sequence was closed"));
  }
  Reply(item, absl::OkStatus());
}

void BlockScheduler::Cancel(const BlockWorkItem& item) {
  const uint64_t target = std::get<CancelCall>(item.call).item;
  const auto is_target = [&](const BlockWorkItem& waiting) {
    return waiting.stream == item.stream && waiting.id == target;
  };
  BlockSequence* const sequence = table_.Find(item.sequence);
  if (sequence != nullptr &&
      std::any_of(sequence->queue.begin(), sequence->queue.end(), is_target)) {
    DropItems(*sequence, is_target, absl::CancelledError("cancelled"));
  }
  Reply(item, absl::OkStatus());
}

void BlockScheduler::Advance(BlockSequence& sequence) {
  while (sequence.state == State::kOpen && !sequence.queue.empty()) {
    const BlockWorkItem& head = sequence.queue.front();
    bool answered = true;
    if (const auto* append = std::get_if<AppendCall>(&head.call)) {
      answered = AnswerAppend(sequence, *append);
    } else if (const auto* open = std::get_if<OpenCall>(&head.call)) {
      const bool close_after = open->close_after;
      answered = AnswerOpen(sequence, *open);
      if (answered && close_after) return Erase(sequence, absl::CancelledError("closed"));
    } else {
      const auto& fork = std::get<ForkCall>(head.call);
      const bool same = fork.parent == sequence.fork_parent && fork.blocks == sequence.fork_blocks;
      AnswerHead(sequence, same ? absl::OkStatus()
                                : absl::AbortedError("fork: the sequence is open and was not "
                                                     "made by this fork"));
    }
    if (!answered) {
      ready_.push_back(&sequence);
      break;
    }
  }
  if (!sequence.forks_waiting.empty()) ResolveForks(sequence);
}

bool BlockScheduler::AnswerAppend(BlockSequence& sequence, const AppendCall& append) {
  const int64_t blocks = BlocksOf(sequence);
  if (append.block_index == blocks) {
    if (blocks < max_blocks_per_sequence()) return false;
    AnswerHead(sequence, absl::InvalidArgumentError(absl::StrCat(
                             "append.block_index is ", append.block_index,
                             "; a sequence has at most ", max_blocks_per_sequence(), " blocks")));
    return true;
  }
  if (append.block_index != blocks - 1) {
    AnswerHead(sequence,
               absl::InvalidArgumentError(absl::StrCat("append.block_index is ", append.block_index,
                                                       "; the sequence has ", blocks, " blocks")));
    return true;
  }
  if (!std::equal(append.tokens.begin(), append.tokens.end(),
                  sequence.tokens.end() - options_.block_length)) {
    AnswerHead(sequence, absl::AbortedError(absl::StrCat("append: block ", append.block_index,
                                                         " is there with other tokens")));
    return true;
  }
  return AnswerLastRow(sequence);
}

bool BlockScheduler::AnswerOpen(BlockSequence& sequence, const OpenCall& open) {
  if (open.tokens != sequence.tokens) {
    AnswerHead(sequence, absl::AbortedError("open: the sequence is open with other tokens"));
    return true;
  }
  if (open.cache_pool != sequence.kv.cache_pool()) {
    AnswerHead(sequence, absl::AbortedError("open: the sequence is of another cache pool"));
    return true;
  }
  return AnswerLastRow(sequence);
}

bool BlockScheduler::AnswerLastRow(BlockSequence& sequence) {
  // A fork in the middle of its parent does not know its last row: a step computes it again.
  const absl::Span<const float> row = sequence.last_row.values();
  if (row.empty()) return false;
  const auto copy = std::make_shared<float[]>(row.size());
  std::copy(row.begin(), row.end(), copy.get());
  outbox_.kept.push_back(copy);
  ReplyRows(sequence.queue.front(), BlocksOf(sequence) - 1, {copy.get(), row.size()},
            /*last=*/true, /*cached_blocks=*/0);
  PopHead(sequence);
  return true;
}

void BlockScheduler::SetState(BlockSequence& sequence, State state) {
  open_ += (state == State::kOpen) - (sequence.state == State::kOpen);
  sequence.state = state;
}

void BlockScheduler::Enqueue(BlockSequence& sequence, BlockWorkItem& item) {
  sequence.queue.push_back(std::move(item));
  ++waiting_;
}

void BlockScheduler::PopHead(BlockSequence& sequence) {
  sequence.queue.pop_front();
  --waiting_;
}

void BlockScheduler::AnswerHead(BlockSequence& sequence, absl::Status status) {
  Reply(sequence.queue.front(), std::move(status));
  PopHead(sequence);
}

void BlockScheduler::Reply(const BlockWorkItem& item, absl::Status status, bool suspended) {
  BlockItemReply& reply = outbox_.items.emplace_back();
  reply.stream = item.stream;
  reply.id = item.id;
  reply.status = std::move(status);
  reply.suspended = suspended;
}

void BlockScheduler::ReplyRows(const BlockWorkItem& item, int64_t first_block,
                               absl::Span<const float> rows, bool last, int64_t cached_blocks) {
  const size_t width = static_cast<size_t>(options_.context_width);
  const size_t most = static_cast<size_t>(options_.max_rows_per_reply) * width;
  while (!rows.empty()) {
    const absl::Span<const float> part = rows.subspan(0, most);
    rows.remove_prefix(part.size());
    BlockItemReply& reply = outbox_.items.emplace_back();
    reply.stream = item.stream;
    reply.id = item.id;
    reply.first_block = first_block;
    reply.rows = static_cast<int32_t>(part.size() / width);
    reply.last = last && rows.empty();
    reply.contexts = part;
    reply.cached_blocks = cached_blocks;
    first_block += reply.rows;
  }
}

void BlockScheduler::DropItems(BlockSequence& sequence,
                               absl::FunctionRef<bool(const BlockWorkItem&)> which,
                               const absl::Status& status) {
  ItemQueue kept;
  bool head_dropped = false;
  for (BlockWorkItem& item : sequence.queue) {
    if (!which(item)) {
      kept.push_back(std::move(item));
      continue;
    }
    if (&item == &sequence.queue.front()) head_dropped = true;
    if (!status.ok()) Reply(item, status);
  }
  waiting_ += static_cast<int64_t>(kept.size()) - static_cast<int64_t>(sequence.queue.size());
  sequence.queue = std::move(kept);
  if (!head_dropped) return;
  Abandon(sequence);
  if (sequence.state == State::kOpening || sequence.state == State::kForking) {
    return Erase(sequence, absl::NotFoundError("the sequence was given up before it was open"));
  }
  RemoveFromLists(sequence);
  Advance(sequence);
}

void BlockScheduler::Erase(BlockSequence& sequence, const absl::Status& status, bool suspended) {
  RemoveFromLists(sequence);
  Abandon(sequence);
  const SequenceKey key = sequence.key;
  SetState(sequence, State::kForking);  // not one of those that are open
  const ItemQueue queue = std::exchange(sequence.queue, {});
  waiting_ -= static_cast<int64_t>(queue.size());
  const std::vector<SequenceKey> forks = std::move(sequence.forks_waiting);
  table_.Erase(key);
  for (const BlockWorkItem& item : queue) Reply(item, status, suspended);
  for (const SequenceKey& fork : forks) {
    BlockSequence* child = table_.Find(fork);
    if (child == nullptr || child->state != State::kForking || child->fork_parent != key.sequence) {
      continue;
    }
    if (suspended) {
      Erase(*child, status, true);
    } else {
      ResolveFork(*child, nullptr);
    }
  }
}

void BlockScheduler::Suspend(BlockSequence& sequence) {
  if (!sequence.queue.empty()) return Erase(sequence, SuspendedError(), true);
  // Kept without its pages until the gateway asks for it and can be told.
  RemoveFromLists(sequence);
  SetState(sequence, State::kSuspended);
  sequence.kv = KvSequence();
  sequence.tokens = {};
  sequence.last_row.Clear();
  ResolveForks(sequence);
}

void BlockScheduler::RemoveFromLists(BlockSequence& sequence) {
  ready_.erase(std::remove(ready_.begin(), ready_.end(), &sequence), ready_.end());
  opening_.erase(std::remove(opening_.begin(), opening_.end(), &sequence), opening_.end());
}

void BlockScheduler::Abandon(BlockSequence& sequence) {
  for (auto step = under_way_.begin(); sequence.blocks_under_way > 0; ++step) {
    for (StepEntry& entry : step->entries) {
      if (entry.sequence != &sequence) continue;
      entry.sequence = nullptr;
      sequence.blocks_under_way -= entry.blocks;
    }
  }
  sequence.kv_again = KvSequence();
}

void BlockScheduler::DropExpired(absl::Time now) {
  for (const SequenceKey& key : table_.Expired(now)) {
    if (BlockSequence* sequence = table_.Find(key)) {
      Erase(*sequence, absl::NotFoundError("the sequence's lease is over"));
    }
  }
  if (now < next_deadline_) return;
  std::vector<SequenceKey> late;
  const auto is_late = [&](const BlockWorkItem& item) { return item.deadline <= now; };
  table_.ForEach([&](const BlockSequence& sequence) {
    if (std::any_of(sequence.queue.begin(), sequence.queue.end(), is_late)) {
      late.push_back(sequence.key);
    }
  });
  for (const SequenceKey& key : late) {
    if (BlockSequence* sequence = table_.Find(key)) {
      DropItems(*sequence, is_late,
                absl::DeadlineExceededError("the deadline passed while the item waited"));
    }
  }
  next_deadline_ = absl::InfiniteFuture();
  table_.ForEach([&](const BlockSequence& sequence) {
    for (const BlockWorkItem& item : sequence.queue) {
      next_deadline_ = std::min(next_deadline_, item.deadline);
    }
  });
}

BlockSchedulerLoad BlockScheduler::load() const {
  BlockSchedulerLoad load;
  load.free_pages = pool_.free_pages();
  load.cached_pages = pool_.cached_pages() + pool_.yielding_pages();
  load.sequences = static_cast<int32_t>(table_.size());
  load.waiting = static_cast<int32_t>(waiting_);
  return load;
}

int64_t BlockScheduler::max_blocks_per_sequence() const {
  const int64_t by_pages = pool_.num_pages() * pool_.page_blocks();
  return options_.max_positions > 0 ? std::min(by_pages, options_.max_positions) : by_pages;
}

}  // namespace blockserve
