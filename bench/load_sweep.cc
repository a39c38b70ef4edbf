#include "bench/load_sweep.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace blockserve {
namespace {

// What a server must answer of the offered rate to count as keeping up.
constexpr double kKeepsUp = 0.95;
// Where throughput does not rise by so much over the sweep, all of it is beyond the knee.
constexpr double kRises = 1.1;
// So many times the median of the lowest load: a queue of two for each that is served.
constexpr int64_t kSlows = 3;

double Ms(int64_t micros) { return static_cast<double>(micros) / 1e3; }

absl::string_view Unit(const SweepPlan& plan) {
  return plan.by_concurrency ? "in flight" : "req/s";
}

// Whether request k of both is the same, asked of the same model: how many are under way, and when
// each is due, does not matter.
bool SameRequests(const LoadDescription& a, const LoadDescription& b) {
  const auto same = [](const auto& one, const auto& two, const char* key) {
    if (!one.contains(key) || !two.contains(key)) return one.contains(key) == two.contains(key);
    return one[key] == two[key];
  };
  if (!same(a.target, b.target, "model_id")) return false;
  // Where the arrivals have lengths, what is measured depends on when it is due.
  if (a.workload.contains("trace")) return a.workload == b.workload;
  for (const char* key : {"prompt_tokens", "output_tokens", "prompts", "shared_prefix", "trace",
                          "n", "temperature", "ignore_eos", "seed"}) {
    if (!same(a.workload, b.workload, key)) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<SweepPlan> ParseSweep(absl::string_view text) {
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat("\"", text, "\": ", why));
  };
  SweepPlan plan;
  absl::string_view rest = text;
  plan.by_concurrency = absl::ConsumePrefix(&rest, "concurrency:");
  if (!plan.by_concurrency) absl::ConsumePrefix(&rest, "rate:");
  const bool range = rest.find(':') != absl::string_view::npos;
  for (const absl::string_view part : absl::StrSplit(rest, range ? ':' : ',')) {
    double value = 0;
    if (!absl::SimpleAtod(part, &value) || !(value > 0) || value > 1e7) {
      return bad("a list A,B,C or a range FROM:TO:STEPS of numbers above 0 is needed");
    }
    plan.values.push_back(value);
  }
  if (range) {
    if (plan.values.size() != 3 || plan.values[1] <= plan.values[0] || plan.values[2] < 2 ||
        plan.values[2] > 1000 || plan.values[2] != std::floor(plan.values[2])) {
      return bad("a range is FROM:TO:STEPS with TO above FROM and at least 2 steps");
    }
    const double from = plan.values[0], to = plan.values[1];
    const auto steps = static_cast<int>(plan.values[2]);
    plan.values.clear();
    for (int i = 0; i < steps; ++i) {
      plan.values.push_back(from * std::pow(to / from, static_cast<double>(i) / (steps - 1)));
    }
  }
  if (plan.by_concurrency) {
    for (double& value : plan.values) value = std::round(value);
    plan.values.erase(std::unique(plan.values.begin(), plan.values.end()), plan.values.end());
    if (plan.values.front() < 1) return bad("concurrency begins at 1");
  }
  if (!std::is_sorted(plan.values.begin(), plan.values.end())) return bad("values must rise");
  return plan;
}

int FindKnee(absl::Span<const CurvePoint> curve) {
  if (curve.size() < 3) return -1;
  const auto [slow, fast] =
      std::minmax_element(curve.begin(), curve.end(),
                          [](const auto& a, const auto& b) { return a.throughput < b.throughput; });
  const auto [low, high] =
      std::minmax_element(curve.begin(), curve.end(),
                          [](const auto& a, const auto& b) { return a.latency < b.latency; });
  const double throughputs = fast->throughput - slow->throughput;
  const double latencies = high->latency - low->latency;
  if (!(throughputs > 0) || !(latencies > 0)) return -1;
  int best = -1;
  double farthest = -2;
  for (size_t i = 0; i < curve.size(); ++i) {
    const double distance = (curve[i].throughput - slow->throughput) / throughputs -
                            (curve[i].latency - low->latency) / latencies;
    if (distance > farthest) {
      farthest = distance;
      best = static_cast<int>(i);
    }
  }
  return best;
}

Knee FindKnee(const SweepPlan& plan, absl::Span<const SweepPoint> points) {
  std::vector<CurvePoint> curve;
  std::vector<int> indices;
  for (size_t i = 0; i < points.size(); ++i) {
    const LoadResult& result = points[i].report.result;
    if (result.ok == 0) continue;
    curve.push_back({result.output_tokens_per_s(), Ms(result.e2e.Percentile(99))});
    indices.push_back(static_cast<int>(i));
  }
  if (curve.size() < 3) return {.none = "fewer than three points were answered"};
  const auto fast = std::max_element(curve.begin(), curve.end(), [](const auto& a, const auto& b) {
    return a.throughput < b.throughput;
  });
  if (fast->throughput < kRises * curve.front().throughput) {
    return {.none = "at the lowest load the throughput is already the highest"};
  }
  const auto median = [&](int index) {
    return points[static_cast<size_t>(index)].report.result.e2e.Percentile(50);
  };
  const bool keeps_up =
      plan.by_concurrency || FindSaturation(plan, points) == static_cast<int>(points.size()) - 1;
  const int knee = FindKnee(absl::MakeConstSpan(curve));
  if ((keeps_up && median(indices.back()) < kSlows * median(indices.front())) || knee < 0 ||
      knee + 1 == static_cast<int>(curve.size())) {
    return {.none = "the server did not come to its limit within what was offered"};
  }
  return {.index = indices[static_cast<size_t>(knee)]};
}

int FindSaturation(const SweepPlan& plan, absl::Span<const SweepPoint> points) {
  if (plan.by_concurrency) return -1;
  int last = -1;
  for (size_t i = 0; i < points.size(); ++i) {
    const LoadResult& result = points[i].report.result;
    // By what was really offered: a Poisson process has more or less in a short time.
    const double window = result.window_s();
    const double offered = window > 0 ? static_cast<double>(result.sent) / window : 0;
    if (result.ok > 0 && result.requests_per_s() >= kKeepsUp * offered) last = static_cast<int>(i);
  }
  return last;
}

nlohmann::ordered_json SweepToJson(const SweepPlan& plan, absl::Span<const SweepPoint> points) {
  nlohmann::ordered_json json;
  json["program"] = "blockserve-load";
  json["kind"] = "sweep";
  json["parameter"] = plan.by_concurrency ? "concurrency" : "rate";
  const auto offered_at = [&](int index) {
    return index < 0 ? nlohmann::ordered_json(nullptr)
                     : nlohmann::ordered_json(points[static_cast<size_t>(index)].offered);
  };
  const Knee knee = FindKnee(plan, points);
  json["knee"] = offered_at(knee.index);
  if (knee.index < 0) json["no_knee"] = knee.none;
  json["keeps_up_to"] = offered_at(FindSaturation(plan, points));
  json["points"] = nlohmann::ordered_json::array();
  for (const SweepPoint& point : points) {
    json["points"].push_back({{"offered", point.offered}, {"result", ToJson(point.report)}});
  }
  return json;
}

std::string SweepToText(const SweepPlan& plan, absl::Span<const SweepPoint> points) {
  std::string text =
      absl::StrFormat("%10s %10s %12s %10s %10s %10s %10s %8s %8s\n", Unit(plan), "answered/s",
                      "tokens/s", "ttft p50", "ttft p99", "e2e p50", "e2e p99", "good %", "failed");
  const Knee knee = FindKnee(plan, points);
  for (size_t i = 0; i < points.size(); ++i) {
    const LoadResult& result = points[i].report.result;
    absl::StrAppendFormat(&text, "%10.4g %10.2f %12.1f %10.2f %10.2f %10.2f %10.2f %8.1f %8d%s\n",
                          points[i].offered, result.requests_per_s(), result.output_tokens_per_s(),
                          Ms(result.ttft.Percentile(50)), Ms(result.ttft.Percentile(99)),
                          Ms(result.e2e.Percentile(50)), Ms(result.e2e.Percentile(99)),
                          result.sent > 0 ? 100.0 * static_cast<double>(result.good) /
                                                static_cast<double>(result.sent)
                                          : 0.0,
                          result.failed(), static_cast<int>(i) == knee.index ? "  <- knee" : "");
  }
  LoadResult all;
  for (const SweepPoint& point : points) all.shortened += point.report.result.shortened;
  text += ShortenedLine(all);
  if (knee.index < 0) absl::StrAppend(&text, "no knee: ", knee.none, "\n");
  if (const int last = FindSaturation(plan, points); last >= 0) {
    absl::StrAppendFormat(&text, "keeps up to %.4g requests/s\n",
                          points[static_cast<size_t>(last)].offered);
  }
  return text;
}

std::string SweepToCsv(const SweepPlan& plan, absl::Span<const SweepPoint> points) {
  std::string csv = absl::StrCat(plan.by_concurrency ? "concurrency" : "rate",
                                 ",requests_per_s,output_tokens_per_s,ttft_p50_ms,ttft_p99_ms,"
                                 "e2e_p50_ms,e2e_p99_ms,good,failed\n");
  for (const SweepPoint& point : points) {
    const LoadResult& result = point.report.result;
    absl::StrAppendFormat(&csv, "%.6g,%.3f,%.3f,%.3f,%.3f,%.3f,%.3f,%d,%d\n", point.offered,
                          result.requests_per_s(), result.output_tokens_per_s(),
                          Ms(result.ttft.Percentile(50)), Ms(result.ttft.Percentile(99)),
                          Ms(result.e2e.Percentile(50)), Ms(result.e2e.Percentile(99)), result.good,
                          result.failed());
  }
  return csv;
}

std::string CompareToText(const LoadReport& a, const LoadReport& b) {
  std::string text;
  const auto name = [](const LoadReport& report, const char* otherwise) {
    return report.description.label.empty() ? otherwise : report.description.label.c_str();
  };
  absl::StrAppendFormat(&text, "%-28s %14s %14s %10s\n", "", name(a, "A"), name(b, "B"), "change");
  const auto line = [&](const std::string& what, double x, double y) {
    const std::string change = x > 0 ? absl::StrFormat("%+.1f %%", 100 * (y / x - 1)) : "";
    absl::StrAppendFormat(&text, "%-28s %14.2f %14.2f %10s\n", what, x, y, change);
  };
  const LoadResult& one = a.result;
  const LoadResult& two = b.result;
  line("output tokens/s", one.output_tokens_per_s(), two.output_tokens_per_s());
  line("requests/s", one.requests_per_s(), two.requests_per_s());
  line("goodput requests/s", one.good_per_s(), two.good_per_s());
  line("failed", static_cast<double>(one.failed()), static_cast<double>(two.failed()));
  for (const LatencyField& field : LatencyFields()) {
    for (const double percent : {50.0, 99.0}) {
      line(absl::StrFormat("%s p%.0f, ms", field.title, percent),
           Ms((one.*field.histogram).Percentile(percent)),
           Ms((two.*field.histogram).Percentile(percent)));
    }
  }
  const auto& asked = a.description.workload;
  const auto& asked_too = b.description.workload;
  for (const auto& [key, value] : asked.items()) {
    if (!asked_too.contains(key) || asked_too[key] != value) {
      absl::StrAppend(&text, "differs: ", key, " ", value.dump(), ", ",
                      asked_too.contains(key) ? asked_too[key].dump() : "not there", "\n");
    }
  }
  // Only runs of the same number of the same requests can agree.
  if (SameRequests(a.description, b.description) && one.ok == two.ok && one.failed() == 0 &&
      two.failed() == 0 && one.output_hash_known && two.output_hash_known) {
    absl::StrAppend(&text, one.output_hash == two.output_hash
                               ? "the answers are the same, token for token\n"
                               : "the answers differ\n");
  }
  return text;
}

}  // namespace blockserve
