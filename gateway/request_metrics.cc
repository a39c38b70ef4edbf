#include "gateway/request_metrics.h"

#include <algorithm>
#include <string>

#include "absl/strings/ascii.h"
#include "common/status_catalogue.h"
#include "gateway/metric_definitions.h"
#include "gateway/retry_after.h"

namespace blockserve {

RequestMetrics::RequestMetrics(MetricRegistry& registry)
    : refused_by_limit(registry.Counter(kRefused, {"limit"})),
      refused_for_room(registry.Counter(kRefused, {"room"})),
      queue_seconds(registry.Histogram(kQueueSeconds)),
      first_token_seconds(registry.Histogram(kFirstTokenSeconds)),
      inter_token_seconds(registry.Histogram(kInterTokenSeconds)),
      prompt_tokens(registry.Counter(kPromptTokens)),
      cached_prompt_tokens(registry.Counter(kCachedPromptTokens)),
      completion_tokens(registry.Counter(kCompletionTokens)),
      queued{registry.Gauge(kQueued, {"high"}), registry.Gauge(kQueued, {"normal"}),
             registry.Gauge(kQueued, {"batch"})},
      starting(registry.Gauge(kStarting)),
      live_choices(registry.Gauge(kLiveChoices)),
      live_choices_limit(registry.Gauge(kLiveChoicesLimit)),
      streams(registry.Gauge(kStreams)) {
  for (int method = 0; method < kRequestMethods; ++method) {
    const absl::string_view name = MethodName(static_cast<RequestMethod>(method));
    seconds[method] = registry.Histogram(kRequestSeconds, {name});
    for (size_t code = 0; code < requests[method].size(); ++code) {
      const StatusEntry& entry = LookUpStatus(static_cast<absl::StatusCode>(code));
      requests[method][code] =
          registry.Counter(kRequests, {name, absl::AsciiStrToLower(entry.name)});
    }
  }
}

const MetricCounter& RequestMetrics::Requests(RequestMethod method,
                                              absl::StatusCode outcome) const {
  const auto& counters = requests[static_cast<size_t>(method)];
  return counters[static_cast<size_t>(StatusCodeToWire(LookUpStatus(outcome).code))];
}

void RequestMetrics::CountOver(RequestMethod method, const absl::Status& outcome) const {
  Requests(method, outcome.code()).Add();
  if (!absl::IsResourceExhausted(outcome)) return;
  (IsOfKeyLimit(outcome) ? refused_by_limit : refused_for_room).Add();
}

}  // namespace blockserve
