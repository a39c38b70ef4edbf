// When requests of an open loop are due, whatever the server does.
#ifndef BLOCKSERVE_BENCH_LOAD_ARRIVALS_H_
#define BLOCKSERVE_BENCH_LOAD_ARRIVALS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

// One line of a trace.
struct TraceRow {
  double arrival_s = 0;       // since the trace's first
  int64_t prompt_tokens = 0;  // 0: by --prompt-tokens
  int64_t output_tokens = 0;  // 0: by --output-tokens
};

// A CSV file: arrival in seconds, prompt tokens, output tokens; the last two may be left out. Lines
// that begin with # and a first line of names are passed over. Arrivals must not go back in time.
// NOT_FOUND, INVALID_ARGUMENT: naming file and line.
absl::StatusOr<std::vector<TraceRow>> ReadTrace(const std::string& path);

class ArrivalProcess {
 public:
  virtual ~ArrivalProcess() = default;
  // Microseconds since the start, never falling; none when there are no more.
  virtual std::optional<int64_t> Next() = 0;
};

// "poisson", "constant", or "burst:N" (N at a time, evenly spaced) with `rate` requests per second
// on the average. INVALID_ARGUMENT: what is wrong.
absl::StatusOr<std::unique_ptr<ArrivalProcess>> MakeArrivals(absl::string_view kind, double rate,
                                                             uint64_t seed);
// `rows` must outlive it.
std::unique_ptr<ArrivalProcess> MakeTraceArrivals(const std::vector<TraceRow>& rows);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_ARRIVALS_H_
