// Drives a load: decides when each request is sent, and measures what comes back.
//
// Closed loop: so many requests are under way at all times, and a slow server is asked less often.
// Open loop: requests are due by themselves; what cannot be sent in time is still measured from the
// time at which it was due, so that a server that stalls does not hide it (coordinated omission).
#ifndef BLOCKSERVE_BENCH_LOAD_RUN_H_
#define BLOCKSERVE_BENCH_LOAD_RUN_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "bench/load_recorder.h"
#include "bench/load_transport.h"
#include "bench/load_workload.h"

namespace blockserve {

struct LoadPlan {
  int32_t concurrency = 0;  // closed loop; 0: open
  double rate = 0;          // open loop: requests per second on the average, unless by the trace
  std::string arrivals = "poisson";  // of MakeArrivals
  // Requests that are due before it are sent, but not measured.
  int64_t warmup_us = 0;
  // After the warm-up; 0: until `requests` are measured, or the trace ends.
  int64_t duration_us = 0;
  int64_t requests = 0;  // measured at most; 0: no limit
  int64_t timeout_us = 120'000'000;
  int32_t max_in_flight = 10'000;  // open loop; more wait, and their clock runs
  int32_t threads = 1;
  // A slot of the closed loop that was refused waits so long, as a well-behaved client would.
  int64_t refused_pause_us = 100'000;
  LoadObjectives objectives;
  bool keep_rows = false;
  uint64_t seed = 1;
  // Requests are numbered from here: a run after another one on the same server asks others, whose
  // prompts are not in its prefix cache. Less than 2^52.
  int64_t first_index = 0;

  // INVALID_ARGUMENT naming the flag.
  absl::Status Validate(const WorkloadOptions& workload) const;
};

struct LoadSnapshot {
  int64_t elapsed_us = 0;
  int64_t sent = 0;
  int64_t ok = 0;
  int64_t failed = 0;
  int64_t output_tokens = 0;
};

// Runs the plan to its end: returns when every request has ended. `tick` is called about ten times
// a second on this thread; false cancels what runs and ends the run. The transports are made on
// this thread, and each is used by one thread.
LoadResult RunLoad(const LoadPlan& plan, const Workload& workload,
                   const std::function<std::unique_ptr<LoadTransport>()>& make_transport,
                   const std::function<bool(const LoadSnapshot&)>& tick);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_RUN_H_
