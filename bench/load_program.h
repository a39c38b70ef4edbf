// What blockserve-load does with its flags: run, sweep, merge, compare.
#ifndef BLOCKSERVE_BENCH_LOAD_PROGRAM_H_
#define BLOCKSERVE_BENCH_LOAD_PROGRAM_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "bench/load_grpc.h"
#include "bench/load_http.h"
#include "bench/load_run.h"
#include "bench/load_sweep.h"
#include "bench/load_workload.h"
#include "rpc/tls.h"

namespace blockserve {

struct LoadTarget {
  bool over_http = false;
  GrpcTargetOptions grpc;  // its credentials are made of `tls`, as http.tls is
  HttpTargetOptions http;
  ClientTlsFiles tls;  // not enabled: plaintext
};

// Paths; empty: not written.
struct LoadOutputs {
  std::string json, csv, html;
};

struct LoadProgramConfig {
  LoadTarget target;
  LoadPlan plan;
  SweepPlan sweep;  // no values: one run
  WorkloadOptions workload;
  double start_at = 0;
  int64_t max_failed = -1;
  std::string label, command;
  std::string json, csv, html;
  bool progress = true;
  nlohmann::ordered_json description;  // of the workload, as asked for
};

// The plan of one point of a sweep.
void SetOffered(const SweepPlan& sweep, double value, LoadPlan& plan);

// Blocks SIGINT and SIGTERM: the first ends the run early, and what was measured is told. Returns
// the exit code. Errors: the server cannot be asked, answers were wrong, too many failed, a file
// cannot be written.
absl::StatusOr<int> RunProgram(LoadProgramConfig config);

absl::StatusOr<int> MergeResults(const std::vector<std::string>& paths, const LoadOutputs& outputs);
absl::StatusOr<int> CompareResults(const std::vector<std::string>& paths,
                                   const LoadOutputs& outputs);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_PROGRAM_H_
