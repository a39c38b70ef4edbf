// Every metric of the block tier. docs/metrics.md tells operators what they mean.
#ifndef BLOCKSERVE_BLOCK_SERVICE_METRIC_DEFINITIONS_H_
#define BLOCKSERVE_BLOCK_SERVICE_METRIC_DEFINITIONS_H_

#include "common/metrics.h"

namespace blockserve {

inline constexpr MetricDefinition kBlockSteps = {
    MetricKind::kCounter, "blockserve_block_steps_total", "Steps of the block decoder."};
inline constexpr MetricDefinition kBlockStepSeconds = {
    MetricKind::kHistogram, "blockserve_block_step_seconds", "Time that a step took.", {}, 1,
    kStepBucketsSeconds};
inline constexpr MetricDefinition kBlockStepGapSeconds = {
    MetricKind::kCounter, "blockserve_block_step_gap_seconds_total",
    "Time that the engine stood before steps although there was work: what else its thread does."};
inline constexpr MetricDefinition kBlockStepBlocks = {
    MetricKind::kHistogram,
    "blockserve_block_step_blocks",
    "Batch size: blocks that a step took, decoded and prefilled ones together.",
    {},
    1,
    kBatchBuckets};
inline constexpr MetricDefinition kBlockBlocks = {
    MetricKind::kCounter,
    "blockserve_block_blocks_total",
    "Blocks by what was done: decode, prefill, or cached (prefix hits: nothing to compute).",
    {"kind"},
    3};
inline constexpr MetricDefinition kBlockItemsWaiting = {
    MetricKind::kGauge, "blockserve_block_rows_waiting",
    "Calls of gateways (opens, appends, forks) that are not yet answered."};
inline constexpr MetricDefinition kBlockSequences = {
    MetricKind::kGauge, "blockserve_block_sequences", "Sequences that are open."};
inline constexpr MetricDefinition kBlockKvPages = {
    MetricKind::kGauge,
    "blockserve_block_kv_pages",
    "KV pages by state: used by sequences, cached (prefixes that nobody refers to), free.",
    {"state"},
    3};
inline constexpr MetricDefinition kBlockKvPageBytes = {
    MetricKind::kGauge, "blockserve_block_kv_page_bytes", "Size of a KV page."};
inline constexpr MetricDefinition kBlockBusy = {
    MetricKind::kGauge, "blockserve_block_busy_ratio",
    "Share of the last 5 s that was spent in steps, 0 to 1."};
inline constexpr MetricDefinition kBlockStreams = {MetricKind::kGauge, "blockserve_block_streams",
                                                   "Streams of gateways."};

inline constexpr const MetricDefinition* kBlockMetrics[] = {
    &kBlockSteps,       &kBlockStepSeconds,  &kBlockStepGapSeconds, &kBlockStepBlocks,
    &kBlockBlocks,      &kBlockItemsWaiting, &kBlockSequences,      &kBlockKvPages,
    &kBlockKvPageBytes, &kBlockBusy,         &kBlockStreams};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_METRIC_DEFINITIONS_H_
