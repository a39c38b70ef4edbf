// Spans of work that was begun and is not answered yet, by the id of its item.
#ifndef BLOCKSERVE_COMMON_OPEN_SPANS_H_
#define BLOCKSERVE_COMMON_OPEN_SPANS_H_

#include <atomic>
#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "common/trace_context.h"

namespace blockserve {

// Thread-safe. Costs next to nothing while no spans are wanted.
class OpenSpans {
 public:
  explicit OpenSpans(uint64_t seed) : ids_(seed) {}

  // `traceparent` as it came with the item; empty or malformed: no span. `name` is a constant.
  void Begin(uint64_t item, absl::string_view name, absl::string_view traceparent,
             absl::string_view request_id, absl::Time now);
  // Logs the item's span, if it has one.
  void End(uint64_t item, absl::StatusCode outcome, absl::Time now);

 private:
  struct Span {
    absl::string_view name;
    TraceContext context;
    std::string request_id;
    absl::Time begin;
  };
  TraceIds ids_;
  std::atomic<int64_t> open_{0};
  Mutex mutex_;
  absl::flat_hash_map<uint64_t, Span> spans_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_OPEN_SPANS_H_
