#include "gateway/request_record.h"

#include "common/logging.h"
#include "common/status_catalogue.h"

namespace blockserve {

void RequestRecord::LeftQueue(absl::Time now, const RequestMetrics& metrics) {
  left_queue = now;
  metrics.queue_seconds.Observe(absl::ToDoubleSeconds(now - arrived));
  metrics.prompt_tokens.Add(static_cast<double>(prompt_tokens));
}

void RequestRecord::Tokens(uint32_t choice, int tokens, absl::Time now,
                           const RequestMetrics& metrics) {
  if (tokens <= 0) return;
  usage.set_completion_tokens(usage.completion_tokens() + tokens);
  metrics.completion_tokens.Add(tokens);
  if (!first_tokens.has_value()) {
    first_tokens = now;
    metrics.first_token_seconds.Observe(absl::ToDoubleSeconds(now - arrived));
  }
  if (choice >= last_tokens.size()) last_tokens.resize(choice + size_t{1}, absl::InfinitePast());
  absl::Time& last = last_tokens[choice];
  if (last != absl::InfinitePast()) {
    const double gap = absl::ToDoubleSeconds(now - last) / tokens;
    for (int i = 0; i < tokens; ++i) metrics.inter_token_seconds.Observe(gap);
  }
  last = now;
}

void RequestRecord::Finish(const absl::Status& outcome, absl::Time now,
                           const RequestMetrics& metrics, bool log) const {
  const absl::Duration total = now - arrived;
  metrics.CountOver(method, outcome);
  metrics.cached_prompt_tokens.Add(static_cast<double>(usage.cached_prompt_tokens()));
  if (outcome.ok()) {
    metrics.seconds[static_cast<size_t>(method)].Observe(absl::ToDoubleSeconds(total));
  }
  const absl::string_view name = LookUpStatus(outcome.code()).name;
  if (!span_id.empty()) {
    LogSpan("gateway.request", trace, span_id, total, request_id, name);
  }
  if (!log) return;
  // Negative: it did not come so far.
  const auto since_arrival = [&](const std::optional<absl::Time>& time) {
    return time.has_value() ? absl::ToDoubleMilliseconds(*time - arrived) : -1.0;
  };
  LogEvent(LogLevel::kInfo, "request finished",
           {{"request_id", request_id},
            {"method", MethodName(method)},
            {"key", key},
            {"outcome", name},
            {"error", outcome.message()},
            {"prompt_tokens", prompt_tokens},
            {"cached_prompt_tokens", int64_t{usage.cached_prompt_tokens()}},
            {"completion_tokens", int64_t{usage.completion_tokens()}},
            {"choices", int64_t{choices}},
            {"queue_ms", since_arrival(left_queue)},
            {"first_token_ms", since_arrival(first_tokens)},
            {"total_ms", absl::ToDoubleMilliseconds(total)},
            {"trace_id", trace.trace_id},
            {"prompt", prompt}});
}

}  // namespace blockserve
