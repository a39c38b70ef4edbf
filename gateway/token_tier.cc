#include "gateway/token_tier.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_catalogue.h"
#include "gateway/remaining.h"

namespace blockserve {
namespace {

// A worker that has refused a row is left alone for so long.
constexpr absl::Duration kHold = absl::Milliseconds(20);
// Of one message; more rows go into the next. A row may carry counts and a bias of many tokens.
constexpr size_t kMaxBatchBytes = size_t{1} << 20;
// Of a row beside what its job says: its frame, id and remaining time.
constexpr size_t kRowOverheadBytes = 32;
// Late answers of stalled workers are still welcome, but a row is not sent everywhere.
constexpr size_t kMaxAttempts = 4;

TierIdentity IdentityOf(const v1::TokenServiceHello& hello) {
  const v1::TierHello& tier = hello.tier();
  return {tier.protocol_version(),    tier.incarnation(), tier.config_hash(), tier.tokenizer_hash(),
          tier.part_hash(),           tier.numeric_id(),  tier.name(),        hello.block_length(),
          hello.context_width(),      hello.vocab_size(),
          /*knows_context_type=*/true};
}

absl::Status StatusOf(const v1::ItemStatus& status) {
  return absl::Status(StatusCodeFromWire(status.code()), status.message());
}

}  // namespace

struct TokenTier::Worker final : public TokenLink::Observer {
  Worker(TokenTier& tier, const std::string& address) : tier(tier) { member.address = address; }

  void OnReady(v1::TokenReplyBatch first) override { tier.OnReady(*this, std::move(first)); }
  void OnMessage(v1::TokenReplyBatch batch) override { tier.OnMessage(*this, std::move(batch)); }
  void OnLost(absl::Status status) override { tier.OnLost(*this, std::move(status)); }

  bool takes_rows(const TierGroup& group, absl::Time now) const {
    return member.usable() && member.group == group && now >= hold_until;
  }

  std::vector<v1::TokenRequestBatch> TakeOutgoing() {
    last_batch_bytes = 0;
    return std::exchange(outgoing, {});
  }

  TokenTier& tier;
  TierMember member;
  std::unordered_map<uint64_t, Attempt> attempts;  // by the id on the wire
  int32_t most_in_flight = 0;
  v1::TokenLoad load;
  bool suspect = false;   // did not answer in time; until it is heard of again
  bool reserved = false;  // kept free of other rows for one that must run alone
  absl::Time hold_until = absl::InfinitePast();
  std::vector<v1::TokenRequestBatch> outgoing;  // of this turn
  size_t last_batch_bytes = 0;                  // of its rows and their contexts
  std::unique_ptr<TokenLink> link;  // last: its end must not meet a half-destroyed worker
};

struct TokenTier::Row {
  RowJob job;
  RowHistory history;
  std::vector<std::pair<Worker*, uint64_t>> attempts;
  bool waiting = false;
  WaitQueue::Place place;
  bool alone_queue = false;  // which queue `place` is in
};

TokenTier::TokenTier(Loop& loop, TierOptions options, ExpectedModel expected, LinkFactory make_link)
    : loop_(loop),
      options_(options),
      make_link_(std::move(make_link)),
      membership_("token worker", std::move(expected), loop.Now()) {}

TokenTier::~TokenTier() { *alive_ = false; }

void TokenTier::Disconnect() { workers_.clear(); }

void TokenTier::AddWorker(const std::string& address) {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->member.address != address) continue;
    worker->member.removed = false;
    membership_.Update(worker->member, loop_.Now());
    SchedulePump();
    return;
  }
  workers_.push_back(std::make_unique<Worker>(*this, address));
  Worker& worker = *workers_.back();
  worker.link = make_link_(address);
  worker.link->Start(&worker);
}

void TokenTier::RemoveWorker(const std::string& address) {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->member.address != address) continue;
    worker->member.removed = true;
    membership_.Update(worker->member, loop_.Now());
    RetireIfEmpty(*worker);
    return;
  }
}

void TokenTier::RetireIfEmpty(Worker& worker) {
  if (!worker.member.removed || (worker.member.connected && !worker.attempts.empty())) return;
  // Not at once: this may be one of the link's own callbacks.
  loop_.Post([this, alive = alive_, address = worker.member.address] {
    if (!*alive) return;
    const auto found = std::find_if(workers_.begin(), workers_.end(), [&](const auto& candidate) {
      return candidate->member.address == address;
    });
    if (found == workers_.end() || !(*found)->member.removed) return;
    Worker& gone = **found;
    if (gone.member.connected && !gone.attempts.empty()) return;
    if (gone.member.connected) OnLost(gone, absl::OkStatus());
    membership_.Forget(gone.member);
    workers_.erase(std::find_if(workers_.begin(), workers_.end(),
                                [&](const auto& candidate) { return candidate.get() == &gone; }));
    if (on_change_) on_change_();
  });
}

uint64_t TokenTier::Submit(RowJob job) {
  const uint64_t handle = next_handle_++;
  std::unique_ptr<Row>& row = rows_[handle];
  row = std::make_unique<Row>();
  row->job = std::move(job);
  Enqueue(handle, *row, /*is_new=*/true);
  return handle;
}

void TokenTier::Cancel(uint64_t handle) { Take(handle); }

std::unique_ptr<TokenTier::Row> TokenTier::Take(uint64_t handle) {
  const auto found = rows_.find(handle);
  if (found == rows_.end()) return nullptr;
  std::unique_ptr<Row> row = std::move(found->second);
  rows_.erase(found);
  if (row->waiting) (row->alone_queue ? waiting_alone_ : waiting_).Erase(row->place);
  for (const auto& [worker, attempt] : row->attempts) {
    worker->attempts.erase(attempt);
    if (!worker->member.connected) continue;
    if (worker->outgoing.empty()) worker->outgoing.emplace_back();
    worker->outgoing.back().add_cancel(attempt);
    RetireIfEmpty(*worker);
  }
  SchedulePump();
  return row;
}

void TokenTier::Finish(uint64_t handle, absl::StatusOr<TokenRowAnswer> answer) {
  const std::unique_ptr<Row> row = Take(handle);
  if (row != nullptr) row->job.done(std::move(answer));
}

void TokenTier::Enqueue(uint64_t handle, Row& row, bool is_new) {
  if (row.waiting) {
    if (row.alone_queue == row.history.must_run_alone()) return;
    // It fell under suspicion while it waited.
    waiting_.Erase(row.place);
  }
  row.waiting = true;
  row.alone_queue = row.history.must_run_alone();
  WaitQueue& queue = row.alone_queue ? waiting_alone_ : waiting_;
  row.place = queue.NextPlace(is_new, row.job.row.header().priority());
  queue.Insert(row.place, handle);
  SchedulePump();
}

// ---- what workers say

void TokenTier::OnReady(Worker& worker, v1::TokenReplyBatch first) {
  const v1::TokenServiceHello& hello = first.hello();
  worker.suspect = false;
  worker.reserved = false;
  worker.hold_until = absl::InfinitePast();
  worker.TakeOutgoing();
  worker.load = first.load();
  // What it runs and what it lets wait; room is left for other gateways.
  worker.most_in_flight = std::max(1, hello.max_rows() + hello.max_queued_rows() / 2);
  membership_.Connected(worker.member, IdentityOf(hello), loop_.Now());
  if (on_change_) on_change_();
  OnMessage(worker, std::move(first));
}

void TokenTier::OnMessage(Worker& worker, v1::TokenReplyBatch batch) {
  if (batch.has_load()) worker.load = batch.load();
  worker.suspect = false;
  if (batch.draining() && !worker.member.draining) {
    worker.member.draining = true;
    membership_.Update(worker.member, loop_.Now());
    if (on_change_) on_change_();
  }
  for (v1::TokenRowReply& reply : *batch.mutable_rows()) OnRow(worker, reply);
  RetireIfEmpty(worker);
  SchedulePump();
}

void TokenTier::OnRow(Worker& worker, v1::TokenRowReply& reply) {
  const auto found = worker.attempts.find(reply.id());
  // Cancelled, or answered by another worker first.
  if (found == worker.attempts.end()) return;
  const uint64_t handle = found->second.handle;
  worker.attempts.erase(found);
  Row& row = *rows_.at(handle);
  std::erase(row.attempts, std::make_pair(&worker, reply.id()));

  const absl::Status status = StatusOf(reply.status());
  switch (JudgeRowReply(status)) {
    case RowAction::kDone:
      Finish(handle, TokenRowAnswer{std::move(reply), worker.member.identity.name});
      return;
    case RowAction::kFail:
      Finish(handle, ClientStatus(
                         status, absl::StrCat("token worker '", worker.member.identity.name, "'")));
      return;
    case RowAction::kElsewhere:
    case RowAction::kWorkerFull:
      worker.hold_until = loop_.Now() + kHold;
      if (row.attempts.empty()) Enqueue(handle, row, /*is_new=*/false);
      return;
  }
}

void TokenTier::OnLost(Worker& worker, absl::Status status) {
  // A worker that drains or ends its stream in order was not killed by a row, nor was one whose
  // stream ended for a message or a queue that was too large.
  const bool died = worker.member.connected && !worker.member.draining && !status.ok() &&
                    status.code() != absl::StatusCode::kFailedPrecondition &&
                    status.code() != absl::StatusCode::kResourceExhausted;
  const bool was_usable = worker.member.usable();
  membership_.Lost(worker.member, status, loop_.Now());
  worker.reserved = false;
  worker.suspect = false;
  worker.TakeOutgoing();
  const std::unordered_map<uint64_t, Attempt> lost = std::exchange(worker.attempts, {});
  std::vector<uint64_t> given_up;
  for (const auto& [attempt, what] : lost) {
    Row& row = *rows_.at(what.handle);
    std::erase(row.attempts, std::make_pair(&worker, attempt));
    if (died && !what.stalled) row.history.WorkerDied(what.alone);
    if (row.history.given_up()) {
      given_up.push_back(what.handle);
    } else if (row.attempts.empty() || row.waiting) {
      Enqueue(what.handle, row, /*is_new=*/false);
    }
  }
  for (const uint64_t handle : given_up) {
    Finish(handle, absl::InternalError(
                       "two token workers died while they decoded this request's block alone"));
  }
  if (was_usable && on_change_) on_change_();
  RetireIfEmpty(worker);
  SchedulePump();
}

// ---- rows to workers

void TokenTier::SchedulePump() {
  if (pump_posted_) return;
  pump_posted_ = true;
  loop_.Post([this, alive = alive_] {
    if (*alive) Pump();
  });
}

void TokenTier::Pump() {
  pump_posted_ = false;
  PumpAlone();
  std::vector<TokenWorkerView> views(workers_.size());
  std::set<TierGroup> full;  // groups that take nothing more in this turn
  const absl::Time now = loop_.Now();
  for (auto next = waiting_.waiting().begin(); next != waiting_.waiting().end();) {
    const uint64_t handle = next->second;
    ++next;  // SendRow takes the row out of the queue
    Row& row = *rows_.at(handle);
    if (full.contains(row.job.group)) continue;
    for (size_t i = 0; i < workers_.size(); ++i) {
      const Worker& worker = *workers_[i];
      views[i] = {worker.takes_rows(row.job.group, now) && !worker.reserved, worker.suspect,
                  static_cast<int32_t>(worker.attempts.size()), worker.load.waiting(),
                  worker.most_in_flight};
      for (const auto& [tried, attempt] : row.attempts) views[i].usable &= tried != &worker;
    }
    const int chosen = router_.Pick(views);
    if (chosen >= 0) {
      SendRow(handle, row, *workers_[static_cast<size_t>(chosen)], /*alone=*/false);
    } else if (row.attempts.empty()) {
      full.insert(row.job.group);
    }
  }
  for (const std::unique_ptr<Worker>& worker : workers_) {
    for (v1::TokenRequestBatch& batch : worker->TakeOutgoing()) {
      worker->link->Send(std::move(batch));
    }
  }
}

// Rows under suspicion go one at a time to a worker that has no other row of ours. One worker of
// each group is kept for them while there are any; with a single worker, the other rows wait.
void TokenTier::PumpAlone() {
  std::set<TierGroup> busy;
  for (auto next = waiting_alone_.waiting().begin(); next != waiting_alone_.waiting().end();) {
    const uint64_t handle = next->second;
    ++next;
    Row& row = *rows_.at(handle);
    if (busy.contains(row.job.group)) continue;
    busy.insert(row.job.group);
    Worker* const worker = WorkerForAlone(row.job.group);
    if (worker == nullptr) continue;
    worker->reserved = true;
    if (worker->attempts.empty()) SendRow(handle, row, *worker, /*alone=*/true);
  }
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (!worker->reserved || busy.contains(worker->member.group)) continue;
    worker->reserved = std::any_of(worker->attempts.begin(), worker->attempts.end(),
                                   [](const auto& entry) { return entry.second.alone; });
  }
}

TokenTier::Worker* TokenTier::WorkerForAlone(const TierGroup& group) {
  Worker* best = nullptr;
  const absl::Time now = loop_.Now();
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->suspect && worker->reserved) worker->reserved = false;
    if (!worker->takes_rows(group, now)) continue;
    if (worker->reserved) return worker.get();
    const auto rank = [](const Worker& w) { return std::make_pair(w.suspect, w.attempts.size()); };
    if (best == nullptr || rank(*worker) < rank(*best)) best = worker.get();
  }
  return best;
}

void TokenTier::SendRow(uint64_t handle, Row& row, Worker& worker, bool alone) {
  (row.alone_queue ? waiting_alone_ : waiting_).Erase(row.place);
  row.waiting = false;
  const uint64_t attempt = next_attempt_++;
  const absl::Time now = loop_.Now();
  worker.attempts[attempt] = {handle, now, alone, /*stalled=*/false};
  row.attempts.emplace_back(&worker, attempt);

  std::vector<v1::TokenRequestBatch>& outgoing = worker.outgoing;
  const ContextRow& context = *row.job.context;
  const size_t bytes = context.bytes.size() + row.job.row.ByteSizeLong() + kRowOverheadBytes;
  if (outgoing.empty() ||
      (outgoing.back().rows_size() > 0 && (outgoing.back().context_type() != context.type ||
                                           worker.last_batch_bytes + bytes > kMaxBatchBytes))) {
    outgoing.emplace_back();
    worker.last_batch_bytes = 0;
  }
  worker.last_batch_bytes += bytes;
  v1::TokenRequestBatch& batch = outgoing.back();
  batch.set_context_type(context.type);
  batch.mutable_contexts()->append(context.bytes);
  v1::TokenRowRequest& request = *batch.add_rows();
  request = row.job.row;
  request.set_id(attempt);
  request.mutable_header()->set_remaining_ms(RemainingMs(row.job.deadline, now));
}

// ---- time

bool TokenTier::HasOther(const TierGroup& group, const Worker& worker) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const auto& other) {
    return other.get() != &worker && other->member.usable() && other->member.group == group &&
           !other->suspect;
  });
}

void TokenTier::Tick() {
  const absl::Time now = loop_.Now();
  for (const std::unique_ptr<Worker>& worker : workers_) {
    for (auto& [id, attempt] : worker->attempts) {
      Row& row = *rows_.at(attempt.handle);
      if (attempt.stalled || now - attempt.sent < row.history.Patience(options_.progress_bound)) {
        continue;
      }
      if (row.attempts.size() >= kMaxAttempts || !HasOther(row.job.group, *worker)) continue;
      if (!worker->suspect) {
        LogWarning(absl::StrCat("token worker '", worker->member.identity.name,
                                "' has not answered for ", absl::FormatDuration(now - attempt.sent),
                                ": its rows go elsewhere"));
      }
      worker->suspect = true;
      attempt.stalled = true;
      row.history.Stalled();
      Enqueue(attempt.handle, row, /*is_new=*/false);
    }
  }
  std::vector<uint64_t> given_up;
  for (const WaitQueue* queue : {&waiting_, &waiting_alone_}) {
    for (const auto& [place, handle] : queue->waiting()) {
      const Row& row = *rows_.at(handle);
      if (!row.attempts.empty() || membership_.presence().workers(row.job.group) > 0) continue;
      const absl::Time away = membership_.presence().AwaySince(row.job.group);
      if (now >= GiveUpTime(away, options_.tier_wait, row.job.deadline)) given_up.push_back(handle);
    }
  }
  for (const uint64_t handle : given_up) {
    Finish(handle, absl::UnavailableError("every token worker is gone"));
  }
  if (!waiting_.waiting().empty() || !waiting_alone_.waiting().empty()) SchedulePump();
}

}  // namespace blockserve
