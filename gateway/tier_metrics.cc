#include "gateway/tier_metrics.h"

#include <algorithm>
#include <utility>

#include "gateway/metric_definitions.h"

namespace blockserve {
namespace {

void SetTotal(const MetricCounter& counter, int64_t total) {
  counter.Add(std::max(0.0, static_cast<double>(total) - counter.Value()));
}

}  // namespace

TierMetrics::TierMetrics(MetricRegistry& registry, absl::Time now)
    : registry_(registry),
      block_workers_(registry.Gauge(kWorkers, {"block"})),
      token_workers_(registry.Gauge(kWorkers, {"token"})),
      tiers_silent_(registry.Gauge(kTiersSilent)),
      sequences_waiting_(registry.Gauge(kSequencesWaiting)),
      rows_(registry.Gauge(kRows)),
      rows_waiting_(registry.Gauge(kRowsWaiting)),
      retried_died_(registry.Counter(kRowRetries, {"died"})),
      retried_silent_(registry.Counter(kRowRetries, {"silent"})),
      retried_refused_(registry.Counter(kRowRetries, {"refused"})),
      retried_failed_(registry.Counter(kRowRetries, {"failed"})),
      hedged_(registry.Counter(kHedges)),
      hedges_won_(registry.Counter(kHedgesWon)),
      ejected_(registry.Counter(kEjections)),
      returned_(registry.Counter(kReturns)),
      condemned_(registry.Counter(kCondemned)),
      reopened_lost_(registry.Counter(kReopened, {"lost"})),
      reopened_silent_(registry.Counter(kReopened, {"silent"})),
      reopened_leaving_(registry.Counter(kReopened, {"leaving"})),
      reopened_failed_(registry.Counter(kReopened, {"failed"})),
      reopened_suspended_(registry.Counter(kReopened, {"suspended"})),
      row_audits_(registry, "row"),
      context_audits_(registry, "context"),
      answered_at_(now) {}

TierMetrics::Audits::Audits(MetricRegistry& registry, absl::string_view kind)
    : compared(registry.Counter(kAudits, {kind, "compared"})),
      differed(registry.Counter(kAudits, {kind, "differed"})),
      settled(registry.Counter(kAudits, {kind, "settled"})),
      skipped(registry.Counter(kAudits, {kind, "skipped"})) {}

void TierMetrics::Audits::Set(const AuditStats& stats) const {
  SetTotal(compared, stats.compared);
  SetTotal(differed, stats.differed);
  SetTotal(settled, stats.settled);
  SetTotal(skipped, stats.skipped);
}

void TierMetrics::Update(const BlockTier& blocks, const TokenTier& tokens,
                         const AuditStats& row_audits, absl::Time now) {
  ++updates_;
  // A row that is answered has come through the block tier before.
  if (std::exchange(answered_rows_, tokens.stats().rows) != tokens.stats().rows) {
    answered_at_ = now;
  }
  tiers_silent_.Set(absl::ToDoubleSeconds(now - answered_at_));
  UpdateTier("block", block_workers_, blocks.WorkerStatuses());
  UpdateTier("token", token_workers_, tokens.WorkerStatuses());
  ForgetGone();
  sequences_waiting_.Set(static_cast<double>(blocks.waiting()));
  rows_.Set(static_cast<double>(tokens.rows()));
  rows_waiting_.Set(static_cast<double>(tokens.waiting()));
  const TokenTierStats& stats = tokens.stats();
  const BlockTierStats& block_stats = blocks.stats();
  SetTotal(retried_died_, stats.retried_died);
  SetTotal(retried_silent_, stats.retried_silent);
  SetTotal(retried_refused_, stats.retried_refused);
  SetTotal(retried_failed_, stats.retried_failed);
  SetTotal(hedged_, stats.hedged);
  SetTotal(hedges_won_, stats.hedges_won);
  SetTotal(ejected_, stats.ejected + block_stats.ejected);
  SetTotal(returned_, stats.returned + block_stats.returned);
  SetTotal(condemned_, stats.condemned + block_stats.condemned);
  SetTotal(reopened_lost_, block_stats.reopened_lost);
  SetTotal(reopened_silent_, block_stats.reopened_silent);
  SetTotal(reopened_leaving_, block_stats.reopened_leaving);
  SetTotal(reopened_failed_, block_stats.reopened_failed);
  SetTotal(reopened_suspended_, block_stats.reopened_suspended);
  row_audits_.Set(row_audits);
  context_audits_.Set(blocks.audit_stats());
}

void TierMetrics::UpdateTier(const std::string& tier, const MetricGauge& usable,
                             const std::vector<WorkerStatus>& statuses) {
  usable.Set(static_cast<double>(std::count_if(
      statuses.begin(), statuses.end(), [](const WorkerStatus& status) { return status.usable; })));
  for (const WorkerStatus& status : statuses) {
    const auto [found, is_new] = workers_.try_emplace({tier, status.address});
    Worker& worker = found->second;
    if (is_new) {
      worker.in_flight = registry_.Gauge(kWorkerInFlight, {tier, status.address});
      worker.batch = registry_.Gauge(kWorkerBatch, {tier, status.address});
      worker.busy = registry_.Gauge(kWorkerBusy, {tier, status.address});
      if (tier == "block") {
        worker.pages_used = registry_.Gauge(kWorkerKvPages, {status.address, "used"});
        worker.pages_available = registry_.Gauge(kWorkerKvPages, {status.address, "available"});
      }
    }
    worker.seen = updates_;
    worker.in_flight.Set(static_cast<double>(status.in_flight));
    worker.batch.Set(status.batch);
    worker.busy.Set(status.busy_share);
    worker.pages_used.Set(static_cast<double>(status.pages - status.free_pages));
    worker.pages_available.Set(static_cast<double>(status.free_pages));
  }
}

void TierMetrics::ForgetGone() {
  for (auto next = workers_.begin(); next != workers_.end();) {
    if (next->second.seen == updates_) {
      ++next;
      continue;
    }
    const auto& [tier, address] = next->first;
    for (const MetricDefinition* metric : {&kWorkerInFlight, &kWorkerBatch, &kWorkerBusy}) {
      registry_.Remove(*metric, {tier, address});
    }
    for (const absl::string_view state : {"used", "available"}) {
      registry_.Remove(kWorkerKvPages, {address, state});
    }
    next = workers_.erase(next);
  }
}

}  // namespace blockserve
