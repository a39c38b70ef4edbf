// What one request did, for metrics, the log and its span.
#ifndef BLOCKSERVE_GATEWAY_REQUEST_RECORD_H_
#define BLOCKSERVE_GATEWAY_REQUEST_RECORD_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "blockserve/v1/generation.pb.h"
#include "common/trace_context.h"
#include "gateway/request_metrics.h"

namespace blockserve {

struct RequestRecord {
  RequestMethod method = RequestMethod::kGenerate;
  std::string request_id;
  std::string key;
  std::string prompt;  // its text, where prompts are logged
  int64_t prompt_tokens = 0;
  int32_t choices = 1;
  TraceContext trace;   // without a trace id: none
  std::string span_id;  // of the gateway's span; empty: it is not recorded

  absl::Time arrived;
  std::optional<absl::Time> left_queue;
  std::optional<absl::Time> first_tokens;
  std::vector<absl::Time> last_tokens;  // by choice
  v1::Usage usage;                      // as far as it is known

  void LeftQueue(absl::Time now, const RequestMetrics& metrics);
  void Tokens(uint32_t choice, int tokens, absl::Time now, const RequestMetrics& metrics);
  // Counts its end; writes its line where `log` is true, and its span where it is recorded.
  void Finish(const absl::Status& outcome, absl::Time now, const RequestMetrics& metrics,
              bool log) const;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_REQUEST_RECORD_H_
