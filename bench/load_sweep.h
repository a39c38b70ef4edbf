// Results of one load at several rates (or concurrencies): the throughput-latency curve and where
// it bends.
#ifndef BLOCKSERVE_BENCH_LOAD_SWEEP_H_
#define BLOCKSERVE_BENCH_LOAD_SWEEP_H_

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "bench/load_report.h"

namespace blockserve {

struct SweepPlan {
  bool by_concurrency = false;  // else by rate
  std::vector<double> values;   // rising
};
// "2,4,8" rates; "1:64:7" seven rates from 1 to 64, each the same factor above the last;
// "concurrency:1,8,64" and "concurrency:1:256:9" likewise. INVALID_ARGUMENT: what is wrong.
absl::StatusOr<SweepPlan> ParseSweep(absl::string_view text);

struct SweepPoint {
  double offered = 0;  // requests per second, or requests under way
  LoadReport report;
};

struct CurvePoint {
  double throughput = 0;
  double latency = 0;
};
// Where more throughput begins to cost more latency than it is worth: with both axes scaled to
// 0..1, the point farthest above the diagonal (throughput less latency). -1 with fewer than three
// points.
int FindKnee(absl::Span<const CurvePoint> curve);

struct Knee {
  int index = -1;         // of its point; -1: there is none
  std::string none = {};  // and why not
};
// Of points with successful requests: throughput in output tokens per second, latency as p99 end to
// end. Any curve has a point farthest above its own diagonal; it is a knee only where the server
// came to its limit beyond it: it fell behind the highest rate, or the median end to end was three
// times that of the lowest load.
Knee FindKnee(const SweepPlan& plan, absl::Span<const SweepPoint> points);
// The highest rate of which at least 95 % was answered; -1 where none was, or by concurrency.
int FindSaturation(const SweepPlan& plan, absl::Span<const SweepPoint> points);

nlohmann::ordered_json SweepToJson(const SweepPlan& plan, absl::Span<const SweepPoint> points);
std::string SweepToText(const SweepPlan& plan, absl::Span<const SweepPoint> points);
std::string SweepToCsv(const SweepPlan& plan, absl::Span<const SweepPoint> points);

// Two results side by side, with the change from A to B, and what differs in what was asked for.
std::string CompareToText(const LoadReport& a, const LoadReport& b);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_SWEEP_H_
