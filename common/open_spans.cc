#include "common/open_spans.h"

#include <optional>
#include <utility>

#include "common/status_catalogue.h"

namespace blockserve {

void OpenSpans::Begin(uint64_t item, absl::string_view name, absl::string_view traceparent,
                      absl::string_view request_id, absl::Time now) {
  if (traceparent.empty()) return;
  std::optional<TraceContext> context = ParseTraceparent(traceparent);
  if (!context.has_value() || !context->sampled) return;
  MutexLock lock(&mutex_);
  spans_[item] = {name, *std::move(context), std::string(request_id), now};
  open_.store(static_cast<int64_t>(spans_.size()));
}

void OpenSpans::End(uint64_t item, absl::StatusCode outcome, absl::Time now) {
  if (open_.load() == 0) return;
  Span span;
  {
    MutexLock lock(&mutex_);
    const auto found = spans_.find(item);
    if (found == spans_.end()) return;
    span = std::move(found->second);
    spans_.erase(found);
    open_.store(static_cast<int64_t>(spans_.size()));
  }
  LogSpan(span.name, span.context, ids_.NewSpanId(), now - span.begin, span.request_id,
          LookUpStatus(outcome).name);
}

}  // namespace blockserve
