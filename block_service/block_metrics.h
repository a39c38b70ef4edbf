// The block tier's series, resolved once.
#ifndef BLOCKSERVE_BLOCK_SERVICE_BLOCK_METRICS_H_
#define BLOCKSERVE_BLOCK_SERVICE_BLOCK_METRICS_H_

#include <cstdint>

#include "absl/time/time.h"
#include "block_service/metric_definitions.h"
#include "common/metrics.h"

namespace blockserve {

// Without a registry it counts nothing.
struct BlockMetrics {
  BlockMetrics() = default;
  explicit BlockMetrics(MetricRegistry& registry)
      : steps(registry.Counter(kBlockSteps)),
        step_seconds(registry.Histogram(kBlockStepSeconds)),
        step_gap_seconds(registry.Counter(kBlockStepGapSeconds)),
        step_blocks(registry.Histogram(kBlockStepBlocks)),
        decode_blocks(registry.Counter(kBlockBlocks, {"decode"})),
        prefill_blocks(registry.Counter(kBlockBlocks, {"prefill"})),
        cached_blocks(registry.Counter(kBlockBlocks, {"cached"})),
        rows_waiting(registry.Gauge(kBlockItemsWaiting)),
        sequences(registry.Gauge(kBlockSequences)),
        pages_used(registry.Gauge(kBlockKvPages, {"used"})),
        pages_cached(registry.Gauge(kBlockKvPages, {"cached"})),
        pages_free(registry.Gauge(kBlockKvPages, {"free"})),
        page_bytes(registry.Gauge(kBlockKvPageBytes)),
        busy(registry.Gauge(kBlockBusy)),
        streams(registry.Gauge(kBlockStreams)) {}

  // `gap`: how long the engine stood before, although there was work.
  void Step(int32_t decode, int32_t prefill, absl::Duration gap, absl::Duration took) const {
    steps.Add();
    step_gap_seconds.Add(absl::ToDoubleSeconds(gap));
    step_seconds.Observe(absl::ToDoubleSeconds(took));
    step_blocks.Observe(decode + prefill);
    decode_blocks.Add(decode);
    prefill_blocks.Add(prefill);
  }

  // Counted as it happens, on the engine's thread and that of its deliveries.
  MetricCounter steps;
  MetricHistogram step_seconds;
  MetricCounter step_gap_seconds;
  MetricHistogram step_blocks;
  MetricCounter decode_blocks, prefill_blocks, cached_blocks;
  // Set when somebody looks.
  MetricGauge rows_waiting, sequences, pages_used, pages_cached, pages_free, page_bytes, busy,
      streams;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_BLOCK_METRICS_H_
