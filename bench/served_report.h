// The same work through one process, through three, or through both, compared.
#ifndef BLOCKSERVE_BENCH_SERVED_REPORT_H_
#define BLOCKSERVE_BENCH_SERVED_REPORT_H_

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "bench/served_run.h"
#include "bench/work.h"
#include "model/config.h"

namespace blockserve {

struct ServedBenchOptions {
  ServedOptions served;
  Workload workload;
  uint64_t seed = 1;
  int repeat = 1;
  // At least one. On one device three processes take turns at it: what they reach says little.
  bool one_process = true;
  bool three_processes = true;
};

// Starts what is asked for, warms it up, and runs both in turn, `repeat` times each; the middle run
// of each is told. Errors: also INTERNAL where their tokens differ. `progress` is told what is
// being done.
absl::StatusOr<nlohmann::ordered_json> RunServedBench(
    const ServedBenchOptions& options, const ModelConfig& config,
    const std::function<void(const std::string&)>& progress);
std::string ServedTable(const nlohmann::ordered_json& json);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_SERVED_REPORT_H_
