// One request as the load generator sees it: times and counts, checked when it ends.
#ifndef BLOCKSERVE_BENCH_LOAD_REQUEST_H_
#define BLOCKSERVE_BENCH_LOAD_REQUEST_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bench/load_recorder.h"
#include "bench/load_transport.h"
#include "bench/load_workload.h"

namespace blockserve {

// Counters that the threads share, for the progress line alone.
struct LoadCounters {
  std::atomic<int64_t> sent{0};
  std::atomic<int64_t> ok{0};
  std::atomic<int64_t> failed{0};
  std::atomic<int64_t> output_tokens{0};
};

struct RequestContext {
  int64_t epoch = 0;         // SteadyMicros of the run's start
  int64_t window_begin = 0;  // since the epoch
  int64_t window_end = 0;    // 0: open; then only requests that are measured count
  LoadObjectives objectives;
  bool keep_rows = false;
  LoadCounters* counters = nullptr;
  LoadResult* result = nullptr;
};

class LoadRequest final : public RequestObserver {
 public:
  // `on_end` destroys this. Times since the epoch.
  LoadRequest(const RequestContext& context, RequestSpec spec, int64_t intended, int64_t sent,
              bool measured, std::function<void(LoadRequest*, int64_t now, bool ok)> on_end);

  const RequestSpec& spec() const { return spec_; }

  void OnTokens(uint32_t choice, int64_t count, absl::Span<const int32_t> ids) override;
  void OnMessageEnd(int64_t now) override;
  void OnFinished(uint32_t choice) override;
  void OnUsage(const UsageReport& usage) override;
  void OnEnd(int64_t now, const std::string& error, const std::string& message) override;

 private:
  struct Choice {
    int64_t tokens = 0;
    int64_t pending = 0;  // of the message that is being read
    int64_t last_us = -1;
    uint64_t hash = 0;
    int finished = 0;
  };

  bool InWindow(int64_t since) const;
  // Empty, or what is wrong with a stream that ended well.
  std::string FindFault() const;
  bool IsGood(int64_t e2e) const;

  const RequestContext& context_;
  const RequestSpec spec_;
  const int64_t intended_;
  const int64_t sent_;
  const bool measured_;
  const std::function<void(LoadRequest*, int64_t, bool)> on_end_;
  std::vector<Choice> choices_;
  bool ids_known_ = true;
  bool choice_unknown_ = false;
  int64_t first_us_ = -1;
  int64_t gaps_us_ = 0;     // between messages, of all choices
  int64_t gap_tokens_ = 0;  // tokens that came after the gaps
  int64_t tokens_ = 0;
  bool usage_known_ = false;
  UsageReport usage_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_REQUEST_H_
