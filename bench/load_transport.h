// How requests reach a server. One transport a thread, driven by that thread alone.
#ifndef BLOCKSERVE_BENCH_LOAD_TRANSPORT_H_
#define BLOCKSERVE_BENCH_LOAD_TRANSPORT_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/types/span.h"
#include "bench/load_workload.h"

namespace blockserve {

// Microseconds of the steady clock.
int64_t SteadyMicros();

struct UsageReport {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_prompt_tokens = 0;
};

// What happens to one request, in order; OnEnd is the last call, and comes exactly once.
class RequestObserver {
 public:
  virtual ~RequestObserver() = default;
  // `count` tokens of a choice; `ids` is empty where the server tells no ids.
  virtual void OnTokens(uint32_t choice, int64_t count, absl::Span<const int32_t> ids) = 0;
  // All of the tokens since the last call came together: one message of a gRPC stream, or what one
  // read of an HTTP connection held.
  virtual void OnMessageEnd(int64_t now) = 0;
  virtual void OnFinished(uint32_t choice) = 0;
  virtual void OnUsage(const UsageReport& usage) = 0;
  // `error` is empty for success, else a kind: a gRPC code's name, "HTTP 429", "CONNECTION".
  virtual void OnEnd(int64_t now, const std::string& error, const std::string& message) = 0;
};

class LoadTransport {
 public:
  virtual ~LoadTransport() = default;
  // The observer must live until its OnEnd; nothing is called from within. After `deadline`
  // (SteadyMicros) the request ends with an error.
  virtual void Start(const RequestSpec& spec, int64_t deadline, RequestObserver* observer) = 0;
  // Handles what has happened; waits for something until `until` where nothing has.
  virtual void Poll(int64_t until) = 0;
  // Every request that runs ends with CANCELLED, in later Polls.
  virtual void CancelAll() = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_TRANSPORT_H_
