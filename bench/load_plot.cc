#include "bench/load_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace blockserve {
namespace {

constexpr double kWidth = 720, kHeight = 340;
constexpr double kLeft = 76, kRight = 20, kTop = 56, kBottom = 52;
constexpr const char* kColours[] = {"#3b7dd8", "#d9772b", "#2f9e6e", "#9a5fc7", "#c4455a"};

std::string Escape(const std::string& text) {
  return absl::StrReplaceAll(text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
}

// 0 -> 0, 90 -> 1, 99 -> 2, 99.9 -> 3
double Nines(double percentile) { return -std::log10(std::max(1 - percentile / 100, 1e-6)); }

struct Axis {
  double low = 0, high = 1;
  bool log = false;
  std::vector<std::pair<double, std::string>> ticks;

  double Place(double value) const {
    if (log) {
      return (std::log10(std::max(value, low)) - std::log10(low)) /
             (std::log10(high) - std::log10(low));
    }
    return (value - low) / (high - low);
  }
};

std::string TickText(double value) {
  if (value >= 1e6) return absl::StrFormat("%gM", value / 1e6);
  if (value >= 1e4) return absl::StrFormat("%gk", value / 1e3);
  return absl::StrFormat("%.4g", value);
}

Axis LinearAxis(double high) {
  Axis axis;
  if (!(high > 0)) high = 1;
  const double rough = high / 5;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = power;
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    step = factor * power;
    if (step >= rough) break;
  }
  axis.high = std::ceil(high / step - 1e-9) * step;
  for (int i = 0; i * step <= axis.high * (1 + 1e-9); ++i) {
    axis.ticks.emplace_back(i * step, TickText(i * step));
  }
  return axis;
}

Axis LogAxis(double low, double high) {
  Axis axis;
  axis.log = true;
  // From the 1, 2 or 5 of a decade below all values to the one above them.
  const double first = std::pow(10, std::floor(std::log10(low)));
  const double last = std::pow(10, std::ceil(std::log10(std::max(high, low * 1.01))));
  axis.low = first;
  axis.high = last;
  std::vector<double> steps;
  for (double decade = first; decade <= last * 1.001; decade *= 10) {
    for (const double factor : {1.0, 2.0, 5.0}) steps.push_back(decade * factor);
  }
  for (const double step : steps) {
    if (step <= low) axis.low = step;
  }
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (*step >= high && *step > axis.low) axis.high = *step;
  }
  const bool few = axis.high / axis.low <= 1001;
  for (size_t i = 0; i < steps.size(); ++i) {
    const bool inside = steps[i] >= axis.low * 0.999 && steps[i] <= axis.high * 1.001;
    if (inside && (few || i % 3 == 0)) axis.ticks.emplace_back(steps[i], TickText(steps[i]));
  }
  return axis;
}

Axis PercentileAxis() {
  Axis axis;
  axis.high = Nines(99.9);
  for (const double percentile : {0.0, 50.0, 90.0, 95.0, 99.0, 99.5, 99.9}) {
    axis.ticks.emplace_back(Nines(percentile), absl::StrFormat("p%g", percentile));
  }
  return axis;
}

void MakeAxes(const PlotChart& chart, Axis& x, Axis& y) {
  double x_high = std::max(chart.mark_x, 0.0), y_high = 0;
  double y_low = std::numeric_limits<double>::max();
  for (const PlotSeries& series : chart.series) {
    for (const auto& [px, py] : series.points) {
      x_high = std::max(x_high, px);
      y_high = std::max(y_high, py);
      if (py > 0) y_low = std::min(y_low, py);
    }
  }
  x = chart.percentiles ? PercentileAxis() : LinearAxis(x_high);
  if (chart.log_y && y_high > 0) {
    y = LogAxis(y_low, y_high);
  } else {
    y = LinearAxis(y_high);
  }
}

std::vector<std::pair<double, double>> PercentileCurve(const LoadHistogram& histogram) {
  std::vector<std::pair<double, double>> points;
  if (histogram.count() == 0) return points;
  for (double nines = 0; nines <= 3.0001; nines += 0.02) {
    const double percentile = 100 * (1 - std::pow(10, -nines));
    points.emplace_back(nines, static_cast<double>(histogram.Percentile(percentile)) / 1e3);
  }
  return points;
}

std::string Page(const std::string& title, const std::string& subtitle,
                 const std::vector<PlotChart>& charts, const std::string& text) {
  std::string page = absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
      Escape(title),
      "</title>\n<style>\n:root{color-scheme:light dark}\n"
      "body{font:15px/1.45 system-ui,sans-serif;color:#1c2430;background:#fff;max-width:820px;"
      "margin:2rem auto;padding:0 1rem}\n"
      "@media(prefers-color-scheme:dark){body{color:#dde3ea;background:#14181d}}\n"
      "h1{font-size:1.3rem;margin:0}p{margin:.3rem 0 1rem;opacity:.75;overflow-wrap:anywhere}"
      "pre{overflow-x:auto;font-size:12px}svg{max-width:100%;height:auto;display:block;"
      "margin:1.2rem 0}\n</style></head><body>\n<h1>",
      Escape(title), "</h1>\n<p>", Escape(subtitle), "</p>\n");
  for (const PlotChart& chart : charts) absl::StrAppend(&page, ToSvg(chart), "\n");
  absl::StrAppend(&page, "<pre>", Escape(text), "</pre>\n</body></html>\n");
  return page;
}

std::string TitleOf(const LoadReport& report) {
  const LoadDescription& description = report.description;
  return description.label.empty() ? absl::StrCat("blockserve-load, ", description.started_at)
                                   : description.label;
}

}  // namespace

std::string ToSvg(const PlotChart& chart) {
  Axis x, y;
  MakeAxes(chart, x, y);
  const auto px = [&](double value) { return kLeft + x.Place(value) * (kWidth - kLeft - kRight); };
  const auto py = [&](double value) {
    return kHeight - kBottom - y.Place(value) * (kHeight - kTop - kBottom);
  };
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %g %g\" width=\"%g\" "
      "font-family=\"system-ui,sans-serif\" font-size=\"12\" fill=\"currentColor\">\n"
      "<text x=\"%g\" y=\"18\" font-size=\"14\" font-weight=\"600\">%s</text>\n",
      kWidth, kHeight, kWidth, kLeft, Escape(chart.title));
  for (const auto& [value, label] : y.ticks) {
    absl::StrAppendFormat(
        &svg,
        "<line x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\" stroke=\"currentColor\" "
        "stroke-opacity=\".14\"/><text x=\"%g\" y=\"%.1f\" "
        "text-anchor=\"end\">%s</text>\n",
        kLeft, kWidth - kRight, py(value), py(value), kLeft - 8, py(value) + 4, label);
  }
  for (const auto& [value, label] : x.ticks) {
    absl::StrAppendFormat(&svg, "<text x=\"%.1f\" y=\"%g\" text-anchor=\"middle\">%s</text>\n",
                          px(value), kHeight - kBottom + 18, label);
  }
  absl::StrAppendFormat(
      &svg,
      "<line x1=\"%g\" x2=\"%g\" y1=\"%g\" y2=\"%g\" stroke=\"currentColor\" "
      "stroke-opacity=\".5\"/>"
      "<text x=\"%g\" y=\"%g\" text-anchor=\"middle\">%s</text>\n"
      "<text x=\"16\" y=\"%g\" text-anchor=\"middle\" transform=\"rotate(-90 16 %g)\">%s</text>\n",
      kLeft, kWidth - kRight, kHeight - kBottom, kHeight - kBottom, (kLeft + kWidth - kRight) / 2,
      kHeight - 12, Escape(chart.x_label), (kTop + kHeight - kBottom) / 2,
      (kTop + kHeight - kBottom) / 2, Escape(chart.y_label));
  std::string mark;
  if (chart.mark_x >= 0) {
    const bool right = x.Place(chart.mark_x) > 0.7;
    absl::StrAppendFormat(
        &svg,
        "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"%g\" y2=\"%g\" stroke=\"currentColor\" "
        "stroke-dasharray=\"2 4\"/>",
        px(chart.mark_x), px(chart.mark_x), kTop, kHeight - kBottom);
    // Legible across the lines that it may lie on; drawn after them.
    absl::StrAppendFormat(
        &mark,
        "<text x=\"%.1f\" y=\"%g\" text-anchor=\"%s\" stroke=\"Canvas\" stroke-width=\"4\" "
        "paint-order=\"stroke\">%s</text>\n",
        px(chart.mark_x) + (right ? -6 : 6), kTop + 12, right ? "end" : "start",
        Escape(chart.mark_label));
  }
  double legend = kLeft;
  for (size_t i = 0; i < chart.series.size(); ++i) {
    const PlotSeries& series = chart.series[i];
    const char* const colour = kColours[i % std::size(kColours)];
    std::string path;
    for (const auto& [vx, vy] : series.points) {
      absl::StrAppendFormat(&path, "%s%.1f %.1f", path.empty() ? "M" : "L", px(vx), py(vy));
    }
    absl::StrAppendFormat(&svg,
                          "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s/>\n",
                          path, colour, series.dashed ? " stroke-dasharray=\"5 5\"" : "");
    if (series.dots) {
      for (const auto& [vx, vy] : series.points) {
        absl::StrAppendFormat(&svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>",
                              px(vx), py(vy), colour);
      }
    }
    absl::StrAppendFormat(&svg,
                          "<line x1=\"%.1f\" x2=\"%.1f\" y1=\"36\" y2=\"36\" stroke=\"%s\" "
                          "stroke-width=\"3\"/><text x=\"%.1f\" y=\"40\">%s</text>\n",
                          legend, legend + 18, colour, legend + 24, Escape(series.name));
    legend += 24 + 7.2 * static_cast<double>(series.name.size()) + 22;
  }
  svg += mark + "</svg>";
  return svg;
}

std::string PageOf(const LoadReport& report) {
  const LoadResult& result = report.result;
  PlotChart over_time{
      .title = "Output tokens per second", .x_label = "seconds", .y_label = "tokens/s"};
  PlotSeries tokens{.name = "tokens received"};
  for (size_t i = 0; i < result.seconds.size(); ++i) {
    tokens.points.emplace_back(static_cast<double>(i) + 0.5,
                               static_cast<double>(result.seconds[i].output_tokens));
  }
  over_time.series.push_back(std::move(tokens));
  PlotChart latency{.title = "Latency by percentile, from the time at which a request was due",
                    .x_label = "percentile",
                    .y_label = "ms",
                    .log_y = true,
                    .percentiles = true};
  latency.series = {{.name = "time to first token", .points = PercentileCurve(result.ttft)},
                    {.name = "between blocks", .points = PercentileCurve(result.inter_block)},
                    {.name = "end to end", .points = PercentileCurve(result.e2e)}};
  return Page(TitleOf(report), report.description.command, {over_time, latency}, ToText(report));
}

std::string PageOf(const SweepPlan& plan, absl::Span<const SweepPoint> points) {
  const int knee = FindKnee(plan, points).index;
  PlotChart curve{.title = "Latency over throughput",
                  .x_label = "output tokens/s",
                  .y_label = "ms",
                  .log_y = true};
  struct Line {
    const char* name;
    LoadHistogram LoadResult::*histogram;
    double percent;
  };
  for (const Line& line :
       {Line{"TTFT p50", &LoadResult::ttft, 50}, Line{"TTFT p99", &LoadResult::ttft, 99},
        Line{"end to end p50", &LoadResult::e2e, 50},
        Line{"end to end p99", &LoadResult::e2e, 99}}) {
    PlotSeries series{.name = line.name, .dots = true};
    for (const SweepPoint& point : points) {
      const LoadResult& result = point.report.result;
      if (result.ok == 0) continue;
      series.points.emplace_back(
          result.output_tokens_per_s(),
          static_cast<double>((result.*line.histogram).Percentile(line.percent)) / 1e3);
    }
    curve.series.push_back(std::move(series));
  }
  if (knee >= 0) {
    const SweepPoint& point = points[static_cast<size_t>(knee)];
    curve.mark_x = point.report.result.output_tokens_per_s();
    curve.mark_label = absl::StrFormat("knee: %.4g %s", point.offered,
                                       plan.by_concurrency ? "in flight" : "requests/s");
  }
  PlotChart answered{.title = "Answered against offered",
                     .x_label = plan.by_concurrency ? "requests in flight" : "offered requests/s",
                     .y_label = "requests/s"};
  PlotSeries all{.name = "answered", .dots = true};
  PlotSeries good{.name = "within the objectives", .dots = true};
  PlotSeries ideal{.name = "all of them", .dashed = true};
  for (const SweepPoint& point : points) {
    all.points.emplace_back(point.offered, point.report.result.requests_per_s());
    good.points.emplace_back(point.offered, point.report.result.good_per_s());
    ideal.points.emplace_back(point.offered, point.offered);
  }
  answered.series.push_back(std::move(all));
  if (!points.empty() && points.front().report.objectives.any()) {
    answered.series.push_back(std::move(good));
  }
  if (!plan.by_concurrency) answered.series.push_back(std::move(ideal));
  const std::string title = points.empty() ? "" : TitleOf(points.front().report);
  const std::string command = points.empty() ? "" : points.front().report.description.command;
  return Page(title, command, {curve, answered}, SweepToText(plan, points));
}

std::string PageOfTwo(const LoadReport& a, const LoadReport& b) {
  std::vector<PlotChart> charts;
  for (const LatencyField& field : LatencyFields()) {
    PlotChart chart{.title = absl::StrCat(field.title, " by percentile"),
                    .x_label = "percentile",
                    .y_label = "ms",
                    .log_y = true,
                    .percentiles = true};
    const auto name = [](const LoadReport& report, const char* otherwise) {
      return report.description.label.empty() ? otherwise : report.description.label;
    };
    chart.series = {{.name = name(a, "A"), .points = PercentileCurve(a.result.*field.histogram)},
                    {.name = name(b, "B"), .points = PercentileCurve(b.result.*field.histogram)}};
    charts.push_back(std::move(chart));
  }
  return Page(absl::StrCat(TitleOf(a), " and ", TitleOf(b)), "", charts, CompareToText(a, b));
}

}  // namespace blockserve
