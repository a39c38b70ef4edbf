// The gateway's series of its workers: looked at now and then, on the loop.
#ifndef BLOCKSERVE_GATEWAY_TIER_METRICS_H_
#define BLOCKSERVE_GATEWAY_TIER_METRICS_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/metrics.h"
#include "gateway/audit.h"
#include "gateway/block_tier.h"
#include "gateway/deployment_status.h"
#include "gateway/token_tier.h"

namespace blockserve {

class TierMetrics {
 public:
  // `registry` must outlive this.
  TierMetrics(MetricRegistry& registry, absl::Time now);

  void Update(const BlockTier& blocks, const TokenTier& tokens, const AuditStats& row_audits,
              absl::Time now);

 private:
  // A worker's series; they go with it.
  struct Worker {
    MetricGauge in_flight, batch, busy;
    MetricGauge pages_used, pages_available;  // block tier
    uint64_t seen = 0;                        // in which update
  };
  using WorkerName = std::pair<std::string, std::string>;  // tier, address

  struct Audits {
    Audits(MetricRegistry& registry, absl::string_view kind);
    void Set(const AuditStats& stats) const;
    MetricCounter compared, differed, settled, skipped;
  };

  void UpdateTier(const std::string& tier, const MetricGauge& usable,
                  const std::vector<WorkerStatus>& statuses);
  void ForgetGone();

  MetricRegistry& registry_;
  MetricGauge block_workers_, token_workers_, tiers_silent_, sequences_waiting_, rows_,
      rows_waiting_;
  MetricCounter retried_died_, retried_silent_, retried_refused_, retried_failed_, hedged_,
      hedges_won_, ejected_, returned_, condemned_, reopened_lost_, reopened_silent_,
      reopened_leaving_, reopened_failed_, reopened_suspended_;
  Audits row_audits_, context_audits_;
  std::map<WorkerName, Worker> workers_;
  uint64_t updates_ = 0;
  int64_t answered_rows_ = 0;
  absl::Time answered_at_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TIER_METRICS_H_
