// What a run of the engines is told as: a table for people, JSON for everything else.
#ifndef BLOCKSERVE_BENCH_REPORT_H_
#define BLOCKSERVE_BENCH_REPORT_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bench/engine_run.h"
#include "bench/machine.h"
#include "bench/work.h"
#include "model/config.h"

namespace blockserve {

struct EngineReport {
  std::string command;
  std::string commit;
  std::string model;  // name of its folder
  ModelConfig config;
  Arithmetic arithmetic = Arithmetic::kF32;
  Storage storage;
  std::string kernels;  // instruction set
  Machine machine;
  Workload workload;
  Batching batching;
  bool profiled = false;  // times by part come from runs of their own (EngineRunner::Profile)
  bool checked = false;   // a batch was seen to give the bits of each sequence alone
  uint64_t logits_hash = 0;
  int64_t kv_bytes = 0;
  int64_t weight_bytes = 0;  // of the packed model
  int64_t peak_memory_bytes = 0;
  std::vector<EngineRunResult> runs;  // at least 1; the middle one by tokens per second is told
};

nlohmann::ordered_json ReportJson(const EngineReport& report);
// Of what ReportJson gave.
std::string ReportTable(const nlohmann::ordered_json& json);

// The value below which `share` of the values lie; the values' order does not matter.
double Percentile(std::vector<double> values, double share);
// Largest resident size of this process so far.
int64_t PeakMemoryBytes();

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_REPORT_H_
