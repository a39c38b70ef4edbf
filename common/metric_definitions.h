// The metrics that every program has. docs/metrics.md tells operators what they mean.
//
// Those of the process have the names that Prometheus' own clients give them.
#ifndef BLOCKSERVE_COMMON_METRIC_DEFINITIONS_H_
#define BLOCKSERVE_COMMON_METRIC_DEFINITIONS_H_

#include "common/metrics.h"

namespace blockserve {

inline constexpr MetricDefinition kBuildInfo = {MetricKind::kGauge,
                                                "blockserve_build_info",
                                                "1; the labels tell version and commit.",
                                                {"version", "commit"},
                                                1};
inline constexpr MetricDefinition kProcessResidentBytes = {
    MetricKind::kGauge, "process_resident_memory_bytes", "Memory that the process holds."};
inline constexpr MetricDefinition kProcessCpuSeconds = {
    MetricKind::kCounter, "process_cpu_seconds_total", "Processor time used, user and system."};
inline constexpr MetricDefinition kProcessStartTime = {
    MetricKind::kGauge, "process_start_time_seconds", "When the process started, Unix time."};
inline constexpr MetricDefinition kProcessOpenFiles = {MetricKind::kGauge, "process_open_fds",
                                                       "Open files and sockets."};
inline constexpr MetricDefinition kLogLinesLost = {MetricKind::kCounter,
                                                   "blockserve_log_lines_lost_total",
                                                   "Log lines that could not be written in time."};

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_METRIC_DEFINITIONS_H_
