// What a run of load has measured. One recorder a thread; they are merged at the end.
#ifndef BLOCKSERVE_BENCH_LOAD_RECORDER_H_
#define BLOCKSERVE_BENCH_LOAD_RECORDER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "bench/load_histogram.h"

namespace blockserve {

// What a request must keep to count as good; 0: no objective. Microseconds.
struct LoadObjectives {
  int64_t ttft = 0;
  int64_t itl = 0;  // mean time per output token after the first message
  int64_t e2e = 0;

  bool any() const { return ttft > 0 || itl > 0 || e2e > 0; }
};

// One second of the run, counted from its start (warm-up included).
struct LoadSecond {
  int64_t sent = 0;
  int64_t ok = 0;
  int64_t failed = 0;
  int64_t output_tokens = 0;
};

// One request that was measured.
struct RequestRow {
  int64_t index = 0;
  int64_t intended = 0;  // microseconds since the run's start
  int64_t send_lag = 0;  // sent so much later
  int64_t ttft = -1;     // since `intended`; -1: no token came
  int64_t e2e = 0;       // since `intended`
  int64_t prompt_tokens = 0;
  int64_t output_tokens = 0;
  std::string outcome;  // "OK", or the kind of error
};

struct LoadResult {
  // Of the requests that were measured. Latencies are counted from the time at which the request
  // was due, not from when it could be sent.
  LoadHistogram ttft;          // to the first message with tokens
  LoadHistogram inter_block;   // between two messages with tokens of one request
  LoadHistogram inter_token;   // the same, divided evenly over the later message's tokens
  LoadHistogram e2e;           // to the end of the stream; successful requests
  LoadHistogram failed_after;  // to the end of failed requests: how soon refusals come
  LoadHistogram send_lag;
  int64_t sent = 0;
  int64_t ok = 0;
  int64_t good = 0;  // ok, and within every objective
  int64_t shortened = 0;  // of those sent: less was asked for than planned, to fit the context
  int64_t prompt_tokens = 0;
  int64_t cached_prompt_tokens = 0;
  int64_t output_tokens = 0;                          // of successful requests
  std::map<std::string, int64_t> errors;              // by kind
  std::map<std::string, std::string> error_examples;  // by kind: one message
  int64_t usage_checked = 0;
  int64_t usage_wrong = 0;
  // Sum of a hash of every (request, choice, tokens): two runs of the same requests agree on it.
  uint64_t output_hash = 0;
  bool output_hash_known = true;  // every output came with token ids

  // Of everybody's tokens and requests that fall into the window, warm-up requests' too.
  int64_t window_output_tokens = 0;
  int64_t window_ok = 0;

  // Microseconds since the run's start.
  int64_t window_begin = 0;
  int64_t window_end = 0;
  std::vector<LoadSecond> seconds;
  std::vector<RequestRow> rows;  // when asked for

  int64_t failed() const { return sent - ok; }
  double window_s() const { return static_cast<double>(window_end - window_begin) / 1e6; }
  double output_tokens_per_s() const;
  double requests_per_s() const;
  double good_per_s() const;

  LoadSecond& Second(int64_t micros);
  void Merge(const LoadResult& other);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_RECORDER_H_
