// Every metric of the gateway. docs/metrics.md tells operators what they mean.
#ifndef BLOCKSERVE_GATEWAY_METRIC_DEFINITIONS_H_
#define BLOCKSERVE_GATEWAY_METRIC_DEFINITIONS_H_

#include "common/metrics.h"

namespace blockserve {

// Workers of a tier that have series of their own.
inline constexpr int32_t kMaxWorkerSeries = 256;

inline constexpr MetricDefinition kRequests = {
    MetricKind::kCounter,
    "blockserve_gateway_requests_total",
    "Requests that are over, by method (generate, score, tokenize, detokenize) and outcome (a "
    "status code).",
    {"method", "outcome"},
    80};
inline constexpr MetricDefinition kRefused = {
    MetricKind::kCounter,
    "blockserve_gateway_requests_refused_total",
    "Requests that ended RESOURCE_EXHAUSTED, by reason: limit (their key is beyond a limit of its "
    "own), room (all else).",
    {"reason"},
    2};
inline constexpr MetricDefinition kQueueSeconds = {
    MetricKind::kHistogram,
    "blockserve_gateway_queue_seconds",
    "Time in the queue of requests that left it for the tiers.",
    {},
    1,
    kLatencyBucketsSeconds};
inline constexpr MetricDefinition kFirstTokenSeconds = {
    MetricKind::kHistogram,
    "blockserve_gateway_time_to_first_token_seconds",
    "From a request's arrival to its first tokens.",
    {},
    1,
    kLatencyBucketsSeconds};
inline constexpr MetricDefinition kInterTokenSeconds = {
    MetricKind::kHistogram,
    "blockserve_gateway_inter_token_seconds",
    "Time between two blocks of a choice over the tokens of the second one, once for each token.",
    {},
    1,
    kStepBucketsSeconds};
inline constexpr MetricDefinition kRequestSeconds = {
    MetricKind::kHistogram,
    "blockserve_gateway_request_seconds",
    "From arrival to end, of requests that ended OK.",
    {"method"},
    4,
    kLatencyBucketsSeconds};
inline constexpr MetricDefinition kPromptTokens = {
    MetricKind::kCounter, "blockserve_gateway_prompt_tokens_total",
    "Tokens in: of the prompts and scored texts of requests that began."};
inline constexpr MetricDefinition kCachedPromptTokens = {
    MetricKind::kCounter, "blockserve_gateway_cached_prompt_tokens_total",
    "Prefix hits: prompt tokens whose KV was there already, of requests that are over."};
inline constexpr MetricDefinition kCompletionTokens = {MetricKind::kCounter,
                                                       "blockserve_gateway_completion_tokens_total",
                                                       "Tokens out: generated and kept."};
inline constexpr MetricDefinition kQueued = {
    MetricKind::kGauge,
    "blockserve_gateway_requests_queued",
    "Requests in the queue, by priority (high, normal, batch).",
    {"priority"},
    3};
inline constexpr MetricDefinition kStarting = {
    MetricKind::kGauge, "blockserve_gateway_requests_starting",
    "Requests that have left the queue and wait for KV or for their first block."};
inline constexpr MetricDefinition kLiveChoices = {
    MetricKind::kGauge, "blockserve_gateway_live_choices",
    "Choices of the requests that have left the queue; a text to be scored counts as several."};
inline constexpr MetricDefinition kLiveChoicesLimit = {
    MetricKind::kGauge, "blockserve_gateway_live_choices_limit",
    "The most of them at the moment, going by what the token workers can use."};
inline constexpr MetricDefinition kStreams = {MetricKind::kGauge, "blockserve_gateway_streams",
                                              "Requests that are not over."};
inline constexpr MetricDefinition kSequencesWaiting = {
    MetricKind::kGauge, "blockserve_gateway_sequences_waiting",
    "Sequences that wait for room in a block replica."};
inline constexpr MetricDefinition kRows = {
    MetricKind::kGauge, "blockserve_gateway_rows",
    "Rows of the token tier that are not answered, those that wait for a worker included."};

inline constexpr MetricDefinition kRowsWaiting = {
    MetricKind::kGauge, "blockserve_gateway_rows_waiting",
    "Rows of the token tier that wait for a worker: all are full, or none is there."};
inline constexpr MetricDefinition kWorkers = {MetricKind::kGauge,
                                              "blockserve_gateway_workers",
                                              "Workers that take new work, by tier (block, token).",
                                              {"tier"},
                                              2};
inline constexpr MetricDefinition kTiersSilent = {
    MetricKind::kGauge, "blockserve_gateway_tiers_silent_seconds",
    "Since a block last came back from both tiers, of a request or a probe; at first, since the "
    "gateway's start."};
inline constexpr MetricDefinition kWorkerInFlight = {
    MetricKind::kGauge,
    "blockserve_gateway_worker_rows_in_flight",
    "Rows (token tier) or calls (block tier) that a worker has not answered.",
    {"tier", "worker"},
    2 * kMaxWorkerSeries};
inline constexpr MetricDefinition kWorkerBatch = {
    MetricKind::kGauge,
    "blockserve_gateway_worker_batch_rows",
    "Batch size: rows of a worker's last step, as it told with its last answer.",
    {"tier", "worker"},
    2 * kMaxWorkerSeries};
inline constexpr MetricDefinition kWorkerBusy = {
    MetricKind::kGauge,
    "blockserve_gateway_worker_busy_ratio",
    "Share of the last seconds that a worker spent computing, as it told last, 0 to 1.",
    {"tier", "worker"},
    2 * kMaxWorkerSeries};
inline constexpr MetricDefinition kWorkerKvPages = {
    MetricKind::kGauge,
    "blockserve_gateway_worker_kv_pages",
    "KV pages of a block replica: used by sequences, or available (cached prefixes included).",
    {"worker", "state"},
    2 * kMaxWorkerSeries};
inline constexpr MetricDefinition kRowRetries = {
    MetricKind::kCounter,
    "blockserve_gateway_row_retries_total",
    "Rows sent to another worker, by why: died, silent, refused, failed.",
    {"reason"},
    4};
inline constexpr MetricDefinition kHedges = {
    MetricKind::kCounter, "blockserve_gateway_hedged_rows_total",
    "Rows sent to a second worker because the first was slow."};
inline constexpr MetricDefinition kHedgesWon = {
    MetricKind::kCounter, "blockserve_gateway_hedges_won_total",
    "Of the hedged rows, those that the second worker answered first."};
inline constexpr MetricDefinition kEjections = {MetricKind::kCounter,
                                                "blockserve_gateway_worker_ejections_total",
                                                "Times that a worker was taken out of turn."};
inline constexpr MetricDefinition kReturns = {
    MetricKind::kCounter, "blockserve_gateway_worker_returns_total",
    "Times that a worker answered a probe and was taken in again."};
inline constexpr MetricDefinition kCondemned = {
    MetricKind::kCounter, "blockserve_gateway_workers_condemned_total",
    "Workers that were shut out because they answered wrong bits."};
inline constexpr MetricDefinition kAudits = {
    MetricKind::kCounter,
    "blockserve_gateway_audits_total",
    "Audited answers, by what was audited (row, context) and result: compared (alike), differed, "
    "settled (of those that differed, a third worker told who was wrong), skipped (nobody could "
    "compare).",
    {"kind", "result"},
    8};
inline constexpr MetricDefinition kReopened = {
    MetricKind::kCounter,
    "blockserve_gateway_sequences_reopened_total",
    "Sequences opened again from their tokens, by what their replica did: lost, silent, leaving, "
    "failed, suspended.",
    {"reason"},
    5};

inline constexpr const MetricDefinition* kGatewayMetrics[] = {&kRequests,
                                                              &kRefused,
                                                              &kQueueSeconds,
                                                              &kFirstTokenSeconds,
                                                              &kInterTokenSeconds,
                                                              &kRequestSeconds,
                                                              &kPromptTokens,
                                                              &kCachedPromptTokens,
                                                              &kCompletionTokens,
                                                              &kQueued,
                                                              &kStarting,
                                                              &kLiveChoices,
                                                              &kLiveChoicesLimit,
                                                              &kStreams,
                                                              &kSequencesWaiting,
                                                              &kRows,
                                                              &kWorkers,
                                                              &kTiersSilent,
                                                              &kWorkerInFlight,
                                                              &kWorkerBatch,
                                                              &kWorkerBusy,
                                                              &kWorkerKvPages,
                                                              &kRowRetries,
                                                              &kHedges,
                                                              &kHedgesWon,
                                                              &kEjections,
                                                              &kReturns,
                                                              &kCondemned,
                                                              &kAudits,
                                                              &kRowsWaiting,
                                                              &kReopened};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_METRIC_DEFINITIONS_H_
