// The token tier's series, resolved once.
#ifndef BLOCKSERVE_TOKEN_SERVICE_TOKEN_METRICS_H_
#define BLOCKSERVE_TOKEN_SERVICE_TOKEN_METRICS_H_

#include "common/metrics.h"
#include "token_service/metric_definitions.h"

namespace blockserve {

// Without a registry it counts nothing.
struct TokenMetrics {
  TokenMetrics() = default;
  explicit TokenMetrics(MetricRegistry& registry)
      : steps(registry.Counter(kTokenSteps)),
        gap_seconds(registry.Counter(kTokenGapSeconds)),
        step_seconds(registry.Histogram(kTokenStepSeconds)),
        step_rows(registry.Histogram(kTokenStepRows)),
        rows_ok(registry.Counter(kTokenRows, {"ok"})),
        rows_failed(registry.Counter(kTokenRows, {"error"})),
        rows_expired(registry.Counter(kTokenRows, {"expired"})),
        rows_cancelled(registry.Counter(kTokenRows, {"cancelled"})),
        rows_refused(registry.Counter(kTokenRows, {"refused"})),
        tokens(registry.Counter(kTokenTokens)),
        rows_waiting(registry.Gauge(kTokenRowsWaiting)),
        rows_running(registry.Gauge(kTokenRowsRunning)),
        busy(registry.Gauge(kTokenBusy)),
        streams(registry.Gauge(kTokenStreams)) {}

  // Counted as it happens.
  MetricCounter steps;
  MetricCounter gap_seconds;
  MetricHistogram step_seconds, step_rows;
  MetricCounter rows_ok, rows_failed, rows_expired, rows_cancelled, rows_refused;
  MetricCounter tokens;
  // Set when somebody looks.
  MetricGauge rows_waiting, rows_running, busy, streams;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_TOKEN_METRICS_H_
