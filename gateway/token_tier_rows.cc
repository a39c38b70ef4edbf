// TokenTier: rows come in, wait, and go to workers.
#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "gateway/remaining.h"
#include "gateway/token_tier.h"
#include "gateway/token_worker.h"

namespace blockserve {
namespace {

// Of one message; more rows go into the next. A row may carry counts and a bias of many tokens.
constexpr size_t kMaxMessageBytes = size_t{1} << 20;
// Of a row beside what its job says: its frame, id and remaining time.
constexpr size_t kRowOverheadBytes = 32;

// Of a worker's best batches, how many rows that give way may fill: one that it works on, and one
// that waits.
constexpr int32_t kGivingWayBatches = 2;

// Those of a text that is scored come by the thousand at once, and nobody waits for one of them;
// behind them a stream would stand still.
bool GivesWay(const v1::TokenRowRequest& row) { return row.score_forced(); }

}  // namespace

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
  if (row->waiting) (row->suspects_queue ? suspects_ : waiting_).Erase(row->place);
  for (const auto& [worker, attempt] : row->attempts) {
    worker->attempts.erase(attempt);
    if (!worker->member.connected) continue;
    AddCancel(*worker, attempt);
    RetireIfEmpty(*worker);
  }
  SchedulePump();
  return row;
}

void TokenTier::Finish(uint64_t handle, absl::StatusOr<TokenRowAnswer> answer) {
  const std::unique_ptr<Row> row = Take(handle);
  if (row != nullptr) row->job.done(std::move(answer));
}

bool TokenTier::IsUnderWay(const Row& row) {
  return std::any_of(row.attempts.begin(), row.attempts.end(), [](const auto& entry) {
    const auto found = entry.first->attempts.find(entry.second);
    return found != entry.first->attempts.end() && !found->second.stalled;
  });
}

void TokenTier::Enqueue(uint64_t handle, Row& row, bool is_new) {
  if (row.waiting) {
    if (row.suspects_queue == row.history.suspect()) return;
    // It fell under suspicion while it waited, or was cleared of it.
    (row.suspects_queue ? suspects_ : waiting_).Erase(row.place);
  }
  row.waiting = true;
  row.waits_since = loop_.Now();
  row.suspects_queue = row.history.suspect();
  WaitQueue& queue = row.suspects_queue ? suspects_ : waiting_;
  row.place = queue.NextPlace(is_new, row.job.row->header().priority(), GivesWay(*row.job.row));
  queue.Insert(row.place, handle);
  SchedulePump();
}

void TokenTier::SchedulePump() {
  if (pump_posted_) return;
  pump_posted_ = true;
  loop_.Post([this, alive = alive_] {
    if (*alive) Pump();
  });
}

void TokenTier::Pump() {
  pump_posted_ = false;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    worker->unwritten_bytes = worker->member.connected ? worker->link->queued_bytes() : 0;
  }
  Trials trials = FindTrials();
  PumpSuspects(trials);
  if (!waiting_.waiting().empty()) SendWaitingRows(trials);
  Flush();
}

void TokenTier::SendWaitingRows(const Trials& trials) {
  // Whose fresh rows (not sent before, welcome everywhere) `views` is for. With hundreds of
  // workers, looking at all of them again for every row is most of what a row costs.
  std::vector<TokenWorkerView> views(workers_.size());
  std::shared_ptr<const TierGroup> views_of;
  bool views_hold = false;
  // Of the fresh rows that go to one worker together: whose they are, and how many more.
  size_t packed = 0;
  int64_t pack_left = 0;
  std::set<TierGroup> full;          // groups that take nothing more in this turn
  std::set<TierGroup> full_for_way;  // nothing more that gives way
  const auto rows_of_turn = static_cast<int64_t>(waiting_.waiting().size());
  const absl::Time now = loop_.Now();
  const auto view_of = [now](const Worker& worker, const RowJob& job) {
    return TokenWorkerView{
        worker.takes_rows(*job.group, now) && !worker.reserved && worker.may_do(job),
        worker.health.ejected(),
        static_cast<int32_t>(worker.attempts.size()),
        worker.load.waiting(),
        worker.health.Allowed(worker.most_in_flight),
        worker.health.Allowed(
            std::min(worker.most_in_flight, kGivingWayBatches * worker.best_rows))};
  };
  for (auto next = waiting_.waiting().begin(); next != waiting_.waiting().end();) {
    const uint64_t handle = next->second;
    ++next;  // SendRow takes the row out of the queue
    Row& row = *rows_.at(handle);
    const bool gives_way = GivesWay(*row.job.row);
    if (full.contains(*row.job.group) || (gives_way && full_for_way.contains(*row.job.group))) {
      continue;
    }
    if (!trials.empty() && trials.contains(row.job.request)) continue;
    const bool fresh = row.attempts.empty() && row.job.not_by.empty();
    // Those of one group share it, for the most part.
    const bool views_fit = views_hold && (views_of == row.job.group || *views_of == *row.job.group);
    if (!fresh || !views_fit) {
      for (size_t i = 0; i < workers_.size(); ++i) {
        const Worker& worker = *workers_[i];
        views[i] = view_of(worker, row.job);
        // Of a row that somebody has already, nobody is asked who may be frozen himself; nor is one
        // who may fail all rows, whether he fails this one too.
        if (!row.attempts.empty() || !row.failure.ok()) views[i].usable &= !worker.health.ejected();
        for (const auto& [tried, attempt] : row.attempts) views[i].usable &= tried != &worker;
      }
      views_hold = fresh;
      if (fresh) views_of = row.job.group;
      pack_left = 0;
    }
    const bool goes_along = fresh && pack_left > 0 && views[packed].takes_more(gives_way);
    const int chosen = goes_along ? static_cast<int>(packed) : router_.Pick(views, gives_way);
    if (chosen >= 0) {
      Worker& worker = *workers_[static_cast<size_t>(chosen)];
      if (goes_along) {
        --pack_left;
      } else if (fresh) {
        packed = static_cast<size_t>(chosen);
        pack_left = PackSize(rows_of_turn, workers_.size(), worker.best_rows) - 1;
      }
      SendRow(handle, row, worker, /*suspect=*/false, now);
      TokenWorkerView& view = views[static_cast<size_t>(chosen)];
      view.in_flight = static_cast<int32_t>(worker.attempts.size());
      view.usable &= worker.unwritten_bytes < kMostUnwrittenBytes;
    } else if (fresh) {
      (gives_way ? full_for_way : full).insert(*row.job.group);
    }
  }
}

void TokenTier::Flush() {
  for (Worker* const worker : std::exchange(to_flush_, {})) {
    worker->to_be_flushed = false;
    for (v1::TokenRequestBatch& batch : worker->TakeOutgoing()) {
      worker->link->Send(std::move(batch));
    }
  }
}

TokenTier::Trials TokenTier::FindTrials() const {
  Trials trials;
  if (suspects_.waiting().empty() && !some_reserved_) return trials;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (!worker->reserved && !worker->health.ejected()) continue;  // it has none
    for (const auto& [id, attempt] : worker->attempts) {
      if (!attempt.suspect || attempt.stalled) continue;
      Trial& trial = trials[rows_.at(attempt.handle)->job.request];
      if (attempt.alone) {
        trial.alone = attempt.handle;
      } else {
        trial.cohort = worker.get();
      }
    }
  }
  // First those with which a worker has died alone, then those that are to be tried alone.
  for (const bool died_alone : {true, false}) {
    for (const auto& [place, handle] : suspects_.waiting()) {
      const Row& row = *rows_.at(handle);
      if (died_alone ? row.history.deaths_alone() == 0 : row.history.cohort() != 1) continue;
      // One that not every worker may do could wait for long.
      if (row.job.not_by.empty()) trials.try_emplace(row.job.request, Trial{.alone = handle});
    }
  }
  return trials;
}

// Rows under suspicion go, a cohort at a time, to workers that have no other row of ours. A part of
// each group's workers is kept for them while there are any; with a single worker, the other rows
// wait.
void TokenTier::PumpSuspects(Trials& trials) {
  struct Places {
    int left = 0;  // in this turn
    // The cohort that is being sent: to whom, how many it has and may have.
    Worker* worker = nullptr;
    int size = 0;
    int most = 0;
  };
  std::map<TierGroup, Places> groups;
  const absl::Time now = loop_.Now();
  for (auto next = suspects_.waiting().begin(); next != suspects_.waiting().end();) {
    const uint64_t handle = next->second;
    ++next;
    Row& row = *rows_.at(handle);
    if (row.history.given_up() || now < row.not_before) continue;
    // For one that nobody who is there may do nobody is kept free.
    if (!row.job.not_by.empty() && !SomebodyMayDo(row.job, /*in_turn=*/false)) continue;
    const auto trial = trials.find(row.job.request);
    const bool tried = trial != trials.end();
    if (tried && trial->second.alone != 0 && trial->second.alone != handle) continue;
    const auto [found, is_new] = groups.try_emplace(*row.job.group);
    Places& places = found->second;
    if (is_new) places.left = PlacesForSuspects(*row.job.group);
    const int most = row.history.cohort();
    if (places.size < std::min(places.most, most) && places.worker->may_do(row.job) &&
        !HasTried(row, *places.worker) && (!tried || trial->second.cohort == places.worker)) {
      ++places.size;
      places.most = std::min(places.most, most);
      trials[row.job.request].cohort = places.worker;
      SendRow(handle, row, *places.worker, /*suspect=*/true, now);
      continue;
    }
    if (places.left == 0 || (tried && trial->second.cohort != nullptr)) continue;
    Worker* const worker = WorkerForSuspect(row);
    if (worker == nullptr) continue;
    --places.left;
    worker->reserved = true;
    some_reserved_ = true;
    if (!worker->attempts.empty()) continue;
    places.worker = worker;
    places.size = 1;
    places.most = most;
    trials[row.job.request] = most == 1 ? Trial{.alone = handle} : Trial{.cohort = worker};
    SendRow(handle, row, *worker, /*suspect=*/true, now);
  }
  if (!std::exchange(some_reserved_, false)) return;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->reserved && !groups.contains(worker->member.group)) {
      worker->reserved = std::any_of(worker->attempts.begin(), worker->attempts.end(),
                                     [](const auto& entry) { return entry.second.suspect; });
    }
    some_reserved_ |= worker->reserved;
  }
}

// Half of the workers that are there, at least one, less those that have such rows already.
int TokenTier::PlacesForSuspects(const TierGroup& group) const {
  int there = 0;
  int taken = 0;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (!worker->member.usable() || !(worker->member.group == group)) continue;
    ++there;
    taken += std::any_of(worker->attempts.begin(), worker->attempts.end(), [](const auto& entry) {
      return entry.second.suspect && !entry.second.stalled;
    });
  }
  return std::max(0, std::max(1, there / 2) - taken);
}

bool TokenTier::HasTried(const Row& row, const Worker& worker) {
  return std::any_of(row.attempts.begin(), row.attempts.end(),
                     [&](const auto& entry) { return entry.first == &worker; });
}

TokenTier::Worker* TokenTier::WorkerForSuspect(const Row& row) {
  Worker* best = nullptr;
  const absl::Time now = loop_.Now();
  const size_t first = row.Draw();  // of equals
  for (size_t i = 0; i < workers_.size(); ++i) {
    Worker* const worker = workers_[(first + i) % workers_.size()].get();
    if (worker->health.ejected()) worker->reserved = false;
    if (!worker->takes_rows(*row.job.group, now) || !worker->may_do(row.job)) continue;
    if (HasTried(row, *worker) || (worker->health.ejected() && !row.attempts.empty())) continue;
    // One that has been kept free, and is; then the one that will be free first.
    const auto rank = [](const Worker& w) {
      return std::make_tuple(w.health.ejected(), !w.reserved, w.attempts.size());
    };
    if (worker->reserved && !worker->attempts.empty()) {
      const bool has_some = std::any_of(worker->attempts.begin(), worker->attempts.end(),
                                        [](const auto& entry) { return entry.second.suspect; });
      if (has_some) continue;
    }
    if (best == nullptr || rank(*worker) < rank(*best)) best = worker;
  }
  return best;
}

void TokenTier::SendRow(uint64_t handle, Row& row, Worker& worker, bool suspect, absl::Time now) {
  (row.suspects_queue ? suspects_ : waiting_).Erase(row.place);
  row.waiting = false;
  const uint64_t attempt = next_attempt_++;
  const bool is_hedge = row.hedge && !row.attempts.empty();
  if (worker.attempts.empty()) worker.progress.Begin(now);
  worker.attempts[attempt] = {.handle = handle,
                              .sent = now,
                              .suspect = suspect,
                              .alone = row.history.cohort() == 1,
                              .is_hedge = is_hedge};
  row.attempts.emplace_back(&worker, attempt);
  if (is_hedge) ++stats_.hedged;

  Group& group = *worker.group;
  if (group.probe_context == nullptr) {
    // One token, drawn from the likeliest alone: as little work as a row can be.
    group.probe.set_limit(1);
    group.probe.set_position(row.job.row->position());
    group.probe_context = row.job.context;
  }
  AddToMessage(worker, attempt, *row.job.row, row.job.context, row.job.deadline, now);
}

void TokenTier::MarkForFlush(Worker& worker) {
  if (std::exchange(worker.to_be_flushed, true)) return;
  to_flush_.push_back(&worker);
}

void TokenTier::AddCancel(Worker& worker, uint64_t attempt) {
  MarkForFlush(worker);
  if (worker.outgoing.empty()) worker.outgoing.emplace_back();
  worker.outgoing.back().batch.add_cancel(attempt);
}

void TokenTier::AddToMessage(Worker& worker, uint64_t attempt, const v1::TokenRowRequest& row,
                             const ContextRowPtr& context, absl::Time deadline, absl::Time now) {
  MarkForFlush(worker);
  std::vector<Worker::Outgoing>& outgoing = worker.outgoing;
  const size_t bytes = context->bytes.size() + row.ByteSizeLong() + kRowOverheadBytes;
  if (outgoing.empty() || (!outgoing.back().contexts.empty() &&
                           (outgoing.back().batch.context_type() != context->type ||
                            outgoing.back().bytes + bytes > kMaxMessageBytes))) {
    outgoing.emplace_back();
  }
  Worker::Outgoing& message = outgoing.back();
  message.bytes += bytes;
  worker.unwritten_bytes += static_cast<int64_t>(bytes);
  message.batch.set_context_type(context->type);
  message.contexts.push_back(context);
  v1::TokenRowRequest& request = *message.batch.add_rows();
  request = row;
  request.set_id(attempt);
  request.mutable_header()->set_remaining_ms(RemainingMs(deadline, now));
}

}  // namespace blockserve
