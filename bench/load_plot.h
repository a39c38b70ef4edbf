// Results as a page that needs nothing else: SVG charts and the table.
#ifndef BLOCKSERVE_BENCH_LOAD_PLOT_H_
#define BLOCKSERVE_BENCH_LOAD_PLOT_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/types/span.h"
#include "bench/load_report.h"
#include "bench/load_sweep.h"

namespace blockserve {

struct PlotSeries {
  std::string name = {};
  std::vector<std::pair<double, double>> points = {};
  bool dots = false;    // each point is a measurement of its own
  bool dashed = false;  // not measured: for comparison
};

struct PlotChart {
  std::string title = {}, x_label = {}, y_label = {};
  std::vector<PlotSeries> series = {};
  bool log_y = false;
  bool percentiles = false;  // x is a percentile, drawn by its nines
  double mark_x = -1;        // a vertical line; none below 0
  std::string mark_label = {};
};

// One <svg> element; colours follow the page's `color`, and work on light and dark.
std::string ToSvg(const PlotChart& chart);

std::string PageOf(const LoadReport& report);
std::string PageOf(const SweepPlan& plan, absl::Span<const SweepPoint> points);
std::string PageOfTwo(const LoadReport& a, const LoadReport& b);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_LOAD_PLOT_H_
