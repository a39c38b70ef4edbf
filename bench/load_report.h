// A run of load as people and programs read it: text, JSON, CSV.
#ifndef BLOCKSERVE_BENCH_LOAD_REPORT_H_
#define BLOCKSERVE_BENCH_LOAD_REPORT_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "bench/load_recorder.h"

namespace blockserve {

// What a result says of itself beside its numbers.
struct LoadDescription {
  std::string label;
  std::string command;
  std::string started_at;  // RFC 3339
  double started_unix_s = 0;
  nlohmann::ordered_json target;    // protocol, address, model
  nlohmann::ordered_json workload;  // loop, lengths, and so on
};

struct LoadReport {
  LoadDescription description;
  LoadObjectives objectives;
  LoadResult result;
};

// One latency of a result: how it is called in each output.
struct LatencyField {
  const char* name;   // JSON
  const char* title;  // text
  LoadHistogram LoadResult::*histogram;
};
absl::Span<const LatencyField> LatencyFields();

// docs/load_testing.md lists the fields.
nlohmann::ordered_json ToJson(const LoadReport& report);
// The reverse. INVALID_ARGUMENT: what it is instead.
absl::StatusOr<LoadReport> FromJson(const nlohmann::ordered_json& json);

// A table for the terminal.
std::string ToText(const LoadReport& report);
// The line of it, and of a sweep's table, that tells how many requests were shortened; empty where
// none was.
std::string ShortenedLine(const LoadResult& result);
// One line for each request that was measured, with a line of names.
std::string ToCsv(const LoadReport& report);

// As one result: what several processes did to one server at the same time. Counts and histograms
// are added; the window is from the first beginning to the last end. INVALID_ARGUMENT: more than a
// day lies between them.
absl::StatusOr<LoadReport> MergeReports(const std::vector<LoadReport>& reports);

// INVALID_ARGUMENT, NOT_FOUND: naming the file.
absl::StatusOr<LoadReport> ReadReport(const std::string& path);
// Whether WriteFile could, before there is anything to write; leaves no file where there was none.
// INVALID_ARGUMENT: the path and why.
absl::Status CheckWritable(const std::string& path);
// Replaces the file; "-" is standard output.
absl::Status WriteFile(const std::string& path, const std::string& content);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_REPORT_H_
