// TokenTier: workers come and go, and what they say.
#include "gateway/token_tier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_catalogue.h"
#include "gateway/token_worker.h"

namespace blockserve {
namespace {

// That a worker may say that it runs or lets wait.
constexpr int32_t kMostRows = 1 << 24;
// A worker that has refused a row is left alone for so long.
constexpr absl::Duration kHold = absl::Milliseconds(20);
// So many refusals one after another, not for want of room, make a worker ill.
constexpr int kMostRefusals = 3;
// So many rows one after another that a second worker answered first make a worker slow.
constexpr int kLostHedges = 5;

TierIdentity IdentityOf(const v1::TokenServiceHello& hello) {
  const v1::TierHello& tier = hello.tier();
  return {tier.protocol_version(),
          tier.incarnation(),
          tier.config_hash(),
          tier.tokenizer_hash(),
          tier.part_hash(),
          tier.numeric_id(),
          tier.name(),
          hello.block_length(),
          hello.context_width(),
          hello.vocab_size(),
          /*knows_context_type=*/true,
          tier.model_digest(),
          ImpossibleCapacity({{"max_rows", hello.max_rows(), kMostRows},
                              {"max_queued_rows", hello.max_queued_rows(), kMostRows}})};
}

// A report is never trusted further than sums of such can hold.
v1::TokenLoad Bounded(v1::TokenLoad load) {
  load.set_waiting(std::clamp(load.waiting(), 0, kMostRows));
  load.set_running(std::clamp(load.running(), 0, kMostRows));
  if (!(load.busy_share() >= 0)) load.set_busy_share(0);  // NaN too
  load.set_busy_share(std::min(load.busy_share(), 1.0f));
  return load;
}

absl::Status StatusOf(const v1::ItemStatus& status) {
  return absl::Status(StatusCodeFromWire(status.code()), status.message());
}

}  // namespace

TokenTier::TokenTier(Loop& loop, TierOptions options, ExpectedModel expected, LinkFactory make_link)
    : loop_(loop),
      options_(options),
      make_link_(std::move(make_link)),
      membership_("token worker", std::move(expected), loop.Now()) {}

TokenTier::~TokenTier() { *alive_ = false; }

void TokenTier::Disconnect() {
  to_flush_.clear();
  workers_.clear();
}

void TokenTier::AddWorker(const std::string& address) {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->member.address != address) continue;
    worker->member.removed = false;
    membership_.Update(worker->member, loop_.Now());
    SchedulePump();
    return;
  }
  workers_.push_back(std::make_unique<Worker>(*this, address));
  Connect(*workers_.back());
}

void TokenTier::Connect(Worker& worker) {
  worker.member.twin = 0;
  worker.link = make_link_(worker.member.address);
  worker.link->Start(&worker);
}

void TokenTier::DisconnectTwin(Worker& worker) {
  // Not at once: this is one of the link's own callbacks.
  loop_.Post([this, alive = alive_, address = worker.member.address] {
    if (!*alive) return;
    for (const std::unique_ptr<Worker>& candidate : workers_) {
      if (candidate->member.address == address && candidate->member.twin != 0) {
        candidate->link.reset();
      }
    }
  });
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
    std::erase(to_flush_, &gone);
    workers_.erase(std::find_if(workers_.begin(), workers_.end(),
                                [&](const auto& candidate) { return candidate.get() == &gone; }));
    if (on_change_) on_change_();
  });
}

std::vector<WorkerStatus> TokenTier::WorkerStatuses() const {
  std::vector<WorkerStatus> statuses;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    WorkerStatus& status = statuses.emplace_back();
    status.address = worker->member.address;
    status.name = worker->member.identity.name;
    status.connected = worker->member.connected;
    status.usable = worker->member.usable();
    status.in_flight = static_cast<int64_t>(worker->attempts.size());
    if (!status.connected) continue;
    status.steps = worker->load.steps();
    if (status.in_flight == 0 && loop_.Now() - worker->load_told > kLoadGoodFor) continue;
    status.batch = worker->load.running();
    status.busy_share = worker->load.busy_share();
  }
  return statuses;
}

TokenCapacity TokenTier::Capacity(double most_waiting_batches) const {
  TokenCapacity capacity;
  capacity.waiting_rows = waiting();
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (!worker->member.usable() || worker->health.ejected()) continue;
    capacity.best_rows += worker->best_rows;
    // What one has too much of, because it is slow or says nothing more, is no sign of the others.
    capacity.waiting_rows += std::min<int64_t>(
        worker->load.waiting(), static_cast<int64_t>(most_waiting_batches * worker->best_rows));
  }
  return capacity;
}

// ---- what workers say

void TokenTier::OnReady(Worker& worker, v1::TokenReplyBatch first) {
  const v1::TokenServiceHello& hello = first.hello();
  if (membership_.IsTwin(worker.member, IdentityOf(hello), loop_.Now())) {
    DisconnectTwin(worker);
    return;
  }
  const uint64_t incarnation = hello.tier().incarnation();
  const bool same_process = incarnation != 0 && incarnation == worker.member.identity.incarnation;
  if (same_process) {
    Acquit(worker);
  } else {
    OnGone(worker);
    if (worker.died || worker.health.ejected()) {
      // The one before it broke off with rows of ours: this one is tried with a probe first.
      worker.health.Eject(loop_.Now());
    } else {
      worker.health.Reset();
    }
  }
  worker.blamed.clear();
  worker.died = false;
  worker.lost_hedges = 0;
  worker.refusals = 0;
  worker.reserved = false;
  worker.hold_until = absl::InfinitePast();
  worker.outgoing.clear();
  worker.ping.Reset(hello.tier().answers_pings());
  worker.load = Bounded(first.load());
  worker.load_told = loop_.Now();
  // What it runs and what it lets wait; room is left for other gateways.
  worker.best_rows = std::clamp(hello.max_rows(), 1, kMostRows);
  worker.most_in_flight = worker.best_rows + std::clamp(hello.max_queued_rows(), 0, kMostRows) / 2;
  membership_.Connected(worker.member, IdentityOf(hello), loop_.Now());
  worker.group = &groups_[worker.member.group];
  worker.identity = std::make_shared<const RowWorker>(
      RowWorker{worker.member.identity.name, worker.member.process()});
  if (on_change_) on_change_();
  OnMessage(worker, std::move(first));
}

void TokenTier::Acquit(Worker& worker) {
  for (const auto& [handle, alone] : worker.blamed) {
    const auto found = rows_.find(handle);
    if (found == rows_.end()) continue;
    Row& row = *found->second;
    row.history.WorkerIsBack(alone);
    row.not_before = absl::InfinitePast();
    if (row.waiting) Enqueue(handle, row, /*is_new=*/false);
  }
}

void TokenTier::OnGone(Worker& worker) {
  for (const auto& [handle, alone] : worker.blamed) {
    const auto found = rows_.find(handle);
    if (found == rows_.end()) continue;
    Row& row = *found->second;
    if (row.died_last != worker.member.identity.incarnation || !row.history.given_up()) continue;
    row.not_before = absl::InfinitePast();  // the end is told by GiveUp
  }
}

void TokenTier::OnMessage(Worker& worker, v1::TokenReplyBatch batch) {
  const absl::Time now = loop_.Now();
  if (batch.pong() != 0) worker.ping.Pong(batch.pong());
  if (batch.has_load()) {
    if (batch.load().steps() != worker.load.steps()) worker.progress.Progress(now);
    worker.load = Bounded(batch.load());
    worker.load_told = now;
  }
  if (batch.draining() && !worker.member.draining) {
    worker.member.draining = true;
    membership_.Update(worker.member, now);
    if (on_change_) on_change_();
  }
  // What is told of each row is told of this message.
  const auto message = std::make_shared<const v1::TokenReplyBatch>(std::move(batch));
  for (const v1::TokenRowReply& reply : message->rows()) OnRow(worker, {message, &reply}, now);
  RetireIfEmpty(worker);
  SchedulePump();
}

void TokenTier::OnRow(Worker& worker, std::shared_ptr<const v1::TokenRowReply> reply,
                      absl::Time now) {
  const uint64_t id = reply->id();
  const auto found = worker.attempts.find(id);
  // Cancelled, or answered by another worker first.
  if (found == worker.attempts.end()) return;
  const Attempt attempt = found->second;
  const uint64_t handle = attempt.handle;
  worker.attempts.erase(found);
  worker.progress.Progress(now);
  const absl::Status status = StatusOf(reply->status());
  const RowAction action = JudgeRowReply(status);
  if (handle == 0) {
    if (action == RowAction::kDone) OnAnswered(worker, attempt, nullptr, now);
    return;
  }
  Row& row = *rows_.at(handle);
  std::erase(row.attempts, std::make_pair(&worker, id));

  switch (action) {
    case RowAction::kDone:
      OnAnswered(worker, attempt, &row, now);
      ++stats_.rows;
      if (!row.failure.ok()) Strike(row.failed_by, row.job.request);
      Finish(handle, TokenRowAnswer{std::move(reply), worker.identity});
      return;
    case RowAction::kSecondOpinion:
      OnFailed(worker, handle, row, status);
      return;
    case RowAction::kFail:
      Finish(handle, ClientStatus(
                         status, absl::StrCat("token worker '", worker.member.identity.name, "'")));
      return;
    case RowAction::kElsewhere:
    case RowAction::kWorkerFull:
      OnRefused(worker, action, status, handle, row);
      return;
  }
}

void TokenTier::OnFailed(Worker& worker, uint64_t handle, Row& row, const absl::Status& status) {
  absl::Status failure =
      ClientStatus(status, absl::StrCat("token worker '", worker.member.identity.name, "'"));
  const bool first = row.failure.ok();
  row.job.not_by.push_back(worker.member.process());
  if (!first || (!SomebodyMayDo(row.job, /*in_turn=*/false) && !IsUnderWay(row))) {
    Finish(handle, std::move(failure));
    return;
  }
  row.failure = std::move(failure);
  row.failed_by = worker.member.identity.incarnation;
  row.hedge = false;
  ++stats_.retried_failed;
  if (!IsUnderWay(row)) Enqueue(handle, row, /*is_new=*/false);
}

void TokenTier::OnRefused(Worker& worker, RowAction action, const absl::Status& status,
                          uint64_t handle, Row& row) {
  const absl::Time now = loop_.Now();
  const bool full = action == RowAction::kWorkerFull;
  // One that is full is well; and what it had when it began to refuse counts as one.
  if (!full && !worker.member.draining && now >= worker.hold_until &&
      ++worker.refusals >= kMostRefusals) {
    Eject(worker, "refuses rows again and again");
  }
  worker.hold_until = now + kHold;
  if (IsUnderWay(row)) return;
  if (!full) row.refused_since = std::min(row.refused_since, now);
  // Workers that refuse everything are a tier that is gone.
  if (!full && worker.health.ejected() && !HasOther(*row.job.group, worker) &&
      now >= GiveUpTime(row.refused_since, options_.tier_wait, row.job.deadline)) {
    Finish(handle, absl::UnavailableError(absl::StrCat("no token worker takes rows; '",
                                                       worker.member.identity.name,
                                                       "' says: ", status.message())));
    return;
  }
  if (!row.waiting) ++stats_.retried_refused;
  row.hedge = false;
  Enqueue(handle, row, /*is_new=*/false);
}

void TokenTier::Strike(uint64_t incarnation, uint64_t request) {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->member.identity.incarnation != incarnation || !worker->member.connected) continue;
    if (worker->health.Strike(request, loop_.Now())) {
      Eject(*worker, "fails rows that others answer");
    }
  }
}

// `row`: null for a probe.
void TokenTier::OnAnswered(Worker& worker, const Attempt& attempt, Row* row, absl::Time now) {
  Group& group = *worker.group;
  if (worker.health.Answered()) {
    ++stats_.returned;
    LogInfo(absl::StrCat("token worker '", worker.member.identity.name,
                         "' answers again: it gets rows, few at first"));
  }
  worker.refusals = 0;
  if (row == nullptr) return;
  group.hedges.Done();
  // An answer that came when the row had been given away says that too little was allowed; of the
  // many that a worker brings when it wakes up, each would say so.
  const absl::Duration took = now - std::max(attempt.sent, resumed_at_);
  group.times.Add(
      attempt.stalled ? std::min(took, group.times.SilenceAllowed(options_.progress_bound)) : took);
  if (!attempt.hedged) worker.lost_hedges = 0;
  if (!attempt.is_hedge) return;
  ++stats_.hedges_won;
  for (const auto& [slow, id] : row->attempts) {
    const auto tried = slow->attempts.find(id);
    if (tried == slow->attempts.end() || !tried->second.hedged) continue;
    if (++slow->lost_hedges >= kLostHedges) {
      Eject(*slow, "is slower than the others again and again");
    }
  }
}

void TokenTier::OnLost(Worker& worker, absl::Status status) {
  const bool was_connected = worker.member.connected;
  const bool was_usable = worker.member.usable();
  const bool died = membership_.Lost(worker.member, status, loop_.Now());
  worker.reserved = false;
  worker.ping.Reset(false);
  worker.outgoing.clear();
  const std::unordered_map<uint64_t, Attempt> lost = std::exchange(worker.attempts, {});
  if (died && !lost.empty()) worker.died = true;
  const int64_t rows = std::count_if(lost.begin(), lost.end(), [](const auto& entry) {
    return entry.second.handle != 0 && !entry.second.stalled;
  });
  for (const auto& [attempt, what] : lost) {
    if (what.handle == 0) continue;
    Row& row = *rows_.at(what.handle);
    std::erase(row.attempts, std::make_pair(&worker, attempt));
    if (died && !what.stalled) {
      row.history.WorkerDied(what.alone, rows);
      worker.blamed.emplace_back(what.handle, what.alone);
      row.died_last = worker.member.identity.incarnation;
      if (row.history.given_up()) {
        row.not_before = loop_.Now() + kReturnWait;  // the end is told by GiveUp
      } else if (what.alone) {
        row.not_before = loop_.Now() + WaitApart(row.Draw());
      }
    }
    if (!IsUnderWay(row) || row.waiting) {
      if (!row.waiting && !row.history.given_up()) ++stats_.retried_died;
      row.hedge = false;
      Enqueue(what.handle, row, /*is_new=*/false);
    }
  }
  // Told again of each attempt to connect that fails.
  if (!was_connected) OnGone(worker);
  if (was_usable && on_change_) on_change_();
  RetireIfEmpty(worker);
  SchedulePump();
}

void TokenTier::Condemn(uint64_t incarnation, absl::string_view why) {
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->member.identity.incarnation != incarnation || worker->member.condemned) continue;
    ++stats_.condemned;
    LogError(absl::StrCat("token worker '", worker->member.identity.name, "' at ",
                          worker->member.address, " ", why,
                          ": it gets nothing more until it is another process"));
    worker->member.condemned = true;
    membership_.Update(worker->member, loop_.Now());
    const std::unordered_map<uint64_t, Attempt> had = std::exchange(worker->attempts, {});
    for (const auto& [attempt, what] : had) {
      if (worker->member.connected) AddCancel(*worker, attempt);
      if (what.handle == 0) continue;
      Row& row = *rows_.at(what.handle);
      std::erase(row.attempts, std::make_pair(worker.get(), attempt));
      if (!IsUnderWay(row)) Enqueue(what.handle, row, /*is_new=*/false);
    }
    RetireIfEmpty(*worker);
    if (on_change_) on_change_();
  }
  SchedulePump();
}

}  // namespace blockserve
