#include "common/trace_context.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/logging.h"

namespace blockserve {
namespace {

bool IsHex(absl::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool IsZero(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c == '0'; });
}

}  // namespace

// version "-" trace id "-" parent id "-" flags; a later version may have more behind another dash.
std::optional<TraceContext> ParseTraceparent(absl::string_view header) {
  if (header.size() < 55 || header[2] != '-' || header[35] != '-' || header[52] != '-') {
    return std::nullopt;
  }
  const absl::string_view version = header.substr(0, 2), trace = header.substr(3, 32),
                          span = header.substr(36, 16), flags = header.substr(53, 2);
  if (!IsHex(version) || version == "ff" || !IsHex(trace) || !IsHex(span) || !IsHex(flags) ||
      IsZero(trace) || IsZero(span)) {
    return std::nullopt;
  }
  if (header.size() > 55 && (version == "00" || header[55] != '-')) return std::nullopt;
  const bool sampled = std::string("13579bdf").find(flags[1]) != std::string::npos;
  return TraceContext{std::string(trace), std::string(span), sampled};
}

std::string FormatTraceparent(const TraceContext& context) {
  return absl::StrCat("00-", context.trace_id, "-", context.span_id, "-",
                      context.sampled ? "01" : "00");
}

// SplitMix64.
uint64_t TraceIds::Draw() {
  uint64_t x = state_.fetch_add(0x9e3779b97f4a7c15u) + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return x == 0 ? 1 : x;
}

std::string TraceIds::NewTraceId() { return absl::StrFormat("%016x%016x", Draw(), Draw()); }
std::string TraceIds::NewSpanId() { return absl::StrFormat("%016x", Draw()); }
bool TraceIds::Sample(double ratio) { return static_cast<double>(Draw() >> 11) * 0x1p-53 < ratio; }

void LogSpan(absl::string_view name, const TraceContext& context, absl::string_view span_id,
             absl::Duration duration, absl::string_view request_id, absl::string_view outcome) {
  // By the wall clock, so that the spans of several machines can be laid side by side.
  const std::string start =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", absl::Now() - duration, absl::UTCTimeZone());
  LogEvent(LogLevel::kInfo, "span",
           {{"span", name},
            {"trace_id", context.trace_id},
            {"span_id", span_id},
            {"parent_span_id", context.span_id},
            {"start", start},
            {"duration_ms", absl::ToDoubleMilliseconds(duration)},
            {"request_id", request_id},
            {"outcome", outcome}});
}

}  // namespace blockserve
