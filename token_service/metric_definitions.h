// Every metric of the token tier. docs/metrics.md tells operators what they mean.
#ifndef BLOCKSERVE_TOKEN_SERVICE_METRIC_DEFINITIONS_H_
#define BLOCKSERVE_TOKEN_SERVICE_METRIC_DEFINITIONS_H_

#include "common/metrics.h"

namespace blockserve {

inline constexpr MetricDefinition kTokenSteps = {
    MetricKind::kCounter, "blockserve_token_steps_total", "Batches of rows decoded."};
inline constexpr MetricDefinition kTokenGapSeconds = {
    MetricKind::kCounter, "blockserve_token_step_gap_seconds_total",
    "Time in which the engine had nothing to do while rows waited: the host's work between two "
    "batches."};
inline constexpr MetricDefinition kTokenStepSeconds = {
    MetricKind::kHistogram, "blockserve_token_step_seconds", "Time that a batch took.", {}, 1,
    kStepBucketsSeconds};
inline constexpr MetricDefinition kTokenStepRows = {
    MetricKind::kHistogram, "blockserve_token_step_rows", "Batch size: rows of a batch.", {}, 1,
    kBatchBuckets};
inline constexpr MetricDefinition kTokenRows = {
    MetricKind::kCounter,
    "blockserve_token_rows_total",
    "Rows by outcome: ok, error, expired (no time was left), cancelled, refused.",
    {"outcome"},
    5};
inline constexpr MetricDefinition kTokenTokens = {
    MetricKind::kCounter, "blockserve_token_tokens_total", "Tokens decoded, forced ones left out."};
inline constexpr MetricDefinition kTokenRowsWaiting = {
    MetricKind::kGauge, "blockserve_token_rows_waiting", "Rows that are not yet worked on."};
inline constexpr MetricDefinition kTokenRowsRunning = {
    MetricKind::kGauge, "blockserve_token_rows_running", "Rows of the batch under way."};
inline constexpr MetricDefinition kTokenBusy = {
    MetricKind::kGauge, "blockserve_token_busy_ratio",
    "Share of the last 5 s that was spent decoding, 0 to 1."};
inline constexpr MetricDefinition kTokenStreams = {MetricKind::kGauge, "blockserve_token_streams",
                                                   "Streams of gateways."};

inline constexpr const MetricDefinition* kTokenMetrics[] = {
    &kTokenSteps,  &kTokenGapSeconds,  &kTokenStepSeconds, &kTokenStepRows, &kTokenRows,
    &kTokenTokens, &kTokenRowsWaiting, &kTokenRowsRunning, &kTokenBusy,     &kTokenStreams};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_METRIC_DEFINITIONS_H_
