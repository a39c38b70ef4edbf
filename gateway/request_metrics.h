// The gateway's series of requests, resolved once.
#ifndef BLOCKSERVE_GATEWAY_REQUEST_METRICS_H_
#define BLOCKSERVE_GATEWAY_REQUEST_METRICS_H_

#include <array>

#include "absl/status/status.h"
#include "common/metrics.h"
#include "gateway/request_method.h"

namespace blockserve {

// Without a registry it counts nothing.
struct RequestMetrics {
  RequestMetrics() = default;
  explicit RequestMetrics(MetricRegistry& registry);

  const MetricCounter& Requests(RequestMethod method, absl::StatusCode outcome) const;
  // Counts one that is over: RESOURCE_EXHAUSTED by its reason too.
  void CountOver(RequestMethod method, const absl::Status& outcome) const;

  std::array<std::array<MetricCounter, 17>, kRequestMethods> requests;  // by google.rpc.Code
  std::array<MetricHistogram, kRequestMethods> seconds;
  MetricCounter refused_by_limit, refused_for_room;
  MetricHistogram queue_seconds, first_token_seconds, inter_token_seconds;
  MetricCounter prompt_tokens, cached_prompt_tokens, completion_tokens;
  std::array<MetricGauge, 3> queued;  // high, normal, batch
  MetricGauge starting, live_choices, live_choices_limit, streams;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_REQUEST_METRICS_H_
