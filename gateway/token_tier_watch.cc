// TokenTier: what time tells: who is slow, who has fallen silent, who may come back.
#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "gateway/token_tier.h"
#include "gateway/token_worker.h"

namespace blockserve {
namespace {

// A tick that comes so late says that the gateway itself did not run: what was to be read then
// waits still, and nobody else is to blame.
constexpr absl::Duration kLateTick = absl::Milliseconds(200);
// A row is with two workers at once at most because the first is slow, never where the tier is
// busy.
constexpr float kBusy = 0.8f;

}  // namespace

bool TokenTier::HasOther(const TierGroup& group, const Worker& worker) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const auto& other) {
    return other.get() != &worker && other->member.usable() && other->member.group == group &&
           !other->health.ejected();
  });
}

bool TokenTier::SomebodyMayDo(const RowJob& job, bool in_turn) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const auto& worker) {
    return worker->member.usable() && worker->member.group == *job.group &&
           !(in_turn && worker->health.ejected()) && worker->may_do(job);
  });
}

// Where nobody answers, it is not this worker that has fallen silent.
bool TokenTier::PeersMove(const Worker& worker, absl::Duration allowed, absl::Time now) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const auto& other) {
    return other.get() != &worker && other->member.usable() &&
           other->member.group == worker.member.group && !other->health.ejected() &&
           (other->attempts.empty() || other->progress.Silent(now) < allowed);
  });
}

bool TokenTier::PeersCanBeReached(const Worker& worker, absl::Time now) const {
  return std::any_of(workers_.begin(), workers_.end(), [&](const auto& other) {
    return other.get() != &worker && other->member.usable() &&
           other->member.group == worker.member.group && !other->health.ejected() &&
           !other->ping.Doubtful(now);
  });
}

void TokenTier::Ping(Worker& worker, absl::Time now) {
  absl::Time oldest = absl::InfiniteFuture();
  for (const auto& [id, attempt] : worker.attempts) oldest = std::min(oldest, attempt.sent);
  const uint64_t ping = worker.ping.Next(oldest, now);
  if (ping == 0) return;
  v1::TokenRequestBatch message;
  message.set_ping(ping);
  worker.link->Send(std::move(message));
}

void TokenTier::Tick() {
  const absl::Time now = loop_.Now();
  if (now - std::exchange(last_tick_, now) > kLateTick) {
    resumed_at_ = now;
    for (const std::unique_ptr<Worker>& worker : workers_) {
      worker->progress.NotBefore(now);
      worker->ping.NotBefore(now);
    }
  }
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (worker->link == nullptr && !membership_.HasTwin(worker->member, now)) Connect(*worker);
    if (!worker->member.connected) continue;
    if (!worker->attempts.empty()) {
      Ping(*worker, now);
      WatchWorker(*worker, now);
    }
    if (worker->health.WantsProbe(now)) Probe(*worker, now);
  }
  GiveUp(now);
  if (!waiting_.waiting().empty() || !suspects_.waiting().empty()) SchedulePump();
}

void TokenTier::WatchWorker(Worker& worker, absl::Time now) {
  const absl::Duration bound = options_.progress_bound;
  const absl::Duration allowed = worker.group->times.SilenceAllowed(bound);
  const absl::Duration silent = worker.progress.Silent(now);
  if (worker.ping.Unreachable(now) && PeersCanBeReached(worker, now)) {
    Eject(worker, "cannot be reached");
    MoveRows(worker);
  } else if (HasOther(worker.member.group, worker)) {
    if (silent >= allowed && (silent >= bound || PeersMove(worker, allowed, now))) {
      Eject(worker, absl::StrCat("has said nothing for ", absl::FormatDuration(silent)));
      MoveRows(worker);
    } else {
      Hedge(worker, now);
    }
  }
  // A worker that answers others but not this one.
  for (auto& [id, attempt] : worker.attempts) {
    if (attempt.stalled || attempt.handle == 0) continue;
    Row& row = *rows_.at(attempt.handle);
    const absl::Duration age = now - std::max(attempt.sent, resumed_at_);
    if (row.history.last_try() || age < row.history.Patience(bound)) continue;
    if (!HasOther(*row.job.group, worker)) continue;
    attempt.stalled = true;
    row.history.Stalled();
    row.hedge = false;
    if (!row.waiting) ++stats_.retried_silent;
    Enqueue(attempt.handle, row, /*is_new=*/false);
  }
}

void TokenTier::MoveRows(Worker& worker) {
  for (auto& [id, attempt] : worker.attempts) {
    if (attempt.stalled || attempt.handle == 0) continue;
    Row& row = *rows_.at(attempt.handle);
    // What has silenced two workers already is not given to a fourth: see GiveUp.
    if (row.history.last_try()) continue;
    attempt.stalled = true;
    row.history.Stalled();
    row.hedge = false;
    if (IsUnderWay(row)) continue;  // a hedge
    if (!row.waiting) ++stats_.retried_silent;
    Enqueue(attempt.handle, row, /*is_new=*/false);
  }
}

bool TokenTier::IsBusy(const TierGroup& group) const {
  float busy = 0;
  int there = 0;
  for (const std::unique_ptr<Worker>& worker : workers_) {
    if (!worker->member.usable() || !(worker->member.group == group)) continue;
    busy += worker->load.busy_share();
    ++there;
  }
  return there == 0 || busy > kBusy * static_cast<float>(there);
}

void TokenTier::Hedge(Worker& worker, absl::Time now) {
  Group& group = groups_[worker.member.group];
  const absl::Duration after = group.times.HedgeAfter(options_.progress_bound);
  for (auto& [id, attempt] : worker.attempts) {
    if (attempt.handle == 0 || attempt.hedged || attempt.stalled || attempt.suspect) continue;
    if (now - std::max(attempt.sent, resumed_at_) < after) continue;
    Row& row = *rows_.at(attempt.handle);
    if (row.attempts.size() > 1 || row.waiting || row.history.suspect()) continue;
    if (IsBusy(*row.job.group) || !group.hedges.Take()) return;
    attempt.hedged = true;
    row.hedge = true;
    Enqueue(attempt.handle, row, /*is_new=*/false);
  }
}

void TokenTier::Eject(Worker& worker, absl::string_view why) {
  if (worker.health.ejected()) return;
  ++stats_.ejected;
  LogWarning(absl::StrCat("token worker '", worker.member.identity.name, "' at ",
                          worker.member.address, " ", why,
                          ": its rows run elsewhere until it answers a probe"));
  worker.health.Eject(loop_.Now());
}

void TokenTier::Probe(Worker& worker, absl::Time now) {
  worker.health.ProbeSent(now);
  const Group& group = groups_[worker.member.group];
  if (group.probe_context == nullptr) {
    worker.health.Reset();  // it has never had a row
    return;
  }
  const bool under_way = std::any_of(worker.attempts.begin(), worker.attempts.end(),
                                     [](const auto& entry) { return entry.second.handle == 0; });
  if (under_way || !worker.member.usable()) return;
  const uint64_t attempt = next_attempt_++;
  if (worker.attempts.empty()) worker.progress.Begin(now);
  worker.attempts[attempt] = {.handle = 0, .sent = now};
  AddToMessage(worker, attempt, group.probe, group.probe_context, now + kProbeTime, now);
  SchedulePump();
}

void TokenTier::GiveUp(absl::Time now) {
  std::vector<std::pair<uint64_t, absl::Status>> given_up;
  for (const WaitQueue* queue : {&waiting_, &suspects_}) {
    for (const auto& [place, handle] : queue->waiting()) {
      const Row& row = *rows_.at(handle);
      if (row.history.given_up()) {
        if (now < row.not_before) continue;
        given_up.emplace_back(handle,
                              absl::InternalError("token workers died while they decoded this "
                                                  "request's block, at last alone"));
        continue;
      }
      if (IsUnderWay(row)) continue;
      const TierGroup& group = *row.job.group;
      if (membership_.presence().workers(group) > 0) {
        if (!row.failure.ok()) {
          // Who is out of turn may answer a probe soon.
          const bool in_turn = now - row.waits_since >= kReturnWait;
          if (!SomebodyMayDo(row.job, in_turn)) given_up.emplace_back(handle, row.failure);
          continue;
        }
        if (row.job.not_by.empty() || now - row.waits_since < options_.tier_wait) continue;
        if (SomebodyMayDo(row.job, /*in_turn=*/false)) continue;
        given_up.emplace_back(handle, absl::UnavailableError("no other token worker is there"));
        continue;
      }
      const absl::Time away = membership_.presence().AwaySince(group);
      if (now >= GiveUpTime(away, options_.tier_wait, row.job.deadline)) {
        given_up.emplace_back(handle, absl::UnavailableError("every token worker is gone"));
      }
    }
  }
  for (const std::unique_ptr<Worker>& worker : workers_) {
    for (const auto& [id, attempt] : worker->attempts) {
      if (attempt.handle == 0 || attempt.stalled) continue;
      if (!rows_.at(attempt.handle)->history.last_try()) continue;
      if (now - std::max(attempt.sent, resumed_at_) < options_.progress_bound) continue;
      given_up.emplace_back(attempt.handle,
                            absl::InternalError("token workers died or fell silent when they "
                                                "were given this request's block"));
    }
  }
  for (auto& [handle, status] : given_up) Finish(handle, std::move(status));
}

}  // namespace blockserve
