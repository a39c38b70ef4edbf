// W3C trace context: which trace a request belongs to, and who in it called us.
#ifndef BLOCKSERVE_COMMON_TRACE_CONTEXT_H_
#define BLOCKSERVE_COMMON_TRACE_CONTEXT_H_

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace blockserve {

inline constexpr char kTraceparentKey[] = "traceparent";  // of metadata and HTTP headers

struct TraceContext {
  std::string trace_id;  // 32 lower-case hexadecimal digits; empty: none
  std::string span_id;   // 16; of the caller
  bool sampled = false;  // the caller records it
};

// None where the header is malformed or all zeros, as the recommendation asks.
std::optional<TraceContext> ParseTraceparent(absl::string_view header);
std::string FormatTraceparent(const TraceContext& context);

// Draws ids that are unique for all practical purposes. Thread-safe.
class TraceIds {
 public:
  explicit TraceIds(uint64_t seed) : state_(seed) {}
  std::string NewTraceId();
  std::string NewSpanId();
  // True for this share of all calls.
  bool Sample(double ratio);

 private:
  uint64_t Draw();  // never 0
  std::atomic<uint64_t> state_;
};

// A span that is over, written to the log (level info, message "span"): `context` names its trace
// and parent. It ends now.
void LogSpan(absl::string_view name, const TraceContext& context, absl::string_view span_id,
             absl::Duration duration, absl::string_view request_id, absl::string_view outcome);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_TRACE_CONTEXT_H_
