#include "bench/load_report.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/read_file.h"
#include "common/version.h"

namespace blockserve {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kMostSecondsApart = 86400;
constexpr double kPercents[] = {50, 90, 95, 99, 99.9};
constexpr const char* kPercentNames[] = {"p50", "p90", "p95", "p99", "p999"};

constexpr LatencyField kFields[] = {
    {"ttft_ms", "time to first token", &LoadResult::ttft},
    {"inter_block_ms", "between blocks", &LoadResult::inter_block},
    {"inter_token_ms", "per token", &LoadResult::inter_token},
    {"e2e_ms", "end to end", &LoadResult::e2e},
    {"failed_after_ms", "failed after", &LoadResult::failed_after},
    {"send_lag_ms", "sent late by", &LoadResult::send_lag},
};

// Whole microseconds, so that the file is short and reads back the same.
double Ms(double micros) { return std::round(micros) / 1e3; }
double Rounded(double value) { return std::round(value * 1e3) / 1e3; }

Json LatencyToJson(const LoadHistogram& histogram) {
  Json json;
  json["count"] = histogram.count();
  json["mean"] = Ms(histogram.mean());
  json["min"] = Ms(static_cast<double>(histogram.min()));
  for (size_t i = 0; i < std::size(kPercents); ++i) {
    json[kPercentNames[i]] = Ms(static_cast<double>(histogram.Percentile(kPercents[i])));
  }
  json["max"] = Ms(static_cast<double>(histogram.max()));
  json["mean_us"] = histogram.mean();
  json["buckets"] = histogram.Buckets();
  return json;
}

absl::Status LatencyFromJson(const Json& json, LoadHistogram* histogram) {
  const auto buckets = json.at("buckets").get<std::vector<std::pair<int32_t, int64_t>>>();
  const auto micros = [&](const char* name) {
    return std::llround(json.at(name).get<double>() * 1e3);
  };
  return LoadHistogram::Restore(buckets, micros("min"), micros("max"),
                                json.at("mean_us").get<double>(), histogram);
}

std::string Thousands(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), 1, ',');
  }
  return digits;
}

absl::StatusOr<LoadReport> Parse(const Json& json) {
  LoadReport report;
  LoadDescription& description = report.description;
  description.label = json.at("label").get<std::string>();
  description.command = json.at("command").get<std::string>();
  description.started_at = json.at("started_at").get<std::string>();
  description.started_unix_s = json.at("started_unix_s").get<double>();
  description.target = json.at("target");
  description.workload = json.at("workload");
  const Json& objectives = json.at("objectives_ms");
  report.objectives.ttft = std::llround(objectives.at("ttft").get<double>() * 1e3);
  report.objectives.itl = std::llround(objectives.at("itl").get<double>() * 1e3);
  report.objectives.e2e = std::llround(objectives.at("e2e").get<double>() * 1e3);
  LoadResult& result = report.result;
  const Json& window = json.at("window");
  result.window_begin = std::llround(window.at("begin_s").get<double>() * 1e6);
  result.window_end = std::llround(window.at("end_s").get<double>() * 1e6);
  result.window_ok = window.at("requests").get<int64_t>();
  result.window_output_tokens = window.at("output_tokens").get<int64_t>();
  const Json& requests = json.at("requests");
  result.sent = requests.at("measured").get<int64_t>();
  result.ok = requests.at("ok").get<int64_t>();
  result.good = requests.at("good").get<int64_t>();
  result.shortened = requests.value("shortened", int64_t{0});  // older versions do not tell
  for (const auto& [kind, count] : json.at("errors").items()) {
    result.errors[kind] = count.get<int64_t>();
  }
  for (const auto& [kind, message] : json.at("error_examples").items()) {
    result.error_examples[kind] = message.get<std::string>();
  }
  const Json& tokens = json.at("tokens");
  result.prompt_tokens = tokens.at("prompt").get<int64_t>();
  result.cached_prompt_tokens = tokens.at("cached_prompt").get<int64_t>();
  result.output_tokens = tokens.at("output").get<int64_t>();
  const Json& usage = json.at("usage_check");
  result.usage_checked = usage.at("checked").get<int64_t>();
  result.usage_wrong = usage.at("wrong").get<int64_t>();
  const Json& hash = json.at("output_hash");
  result.output_hash_known = hash.is_string();
  if (hash.is_string()) result.output_hash = std::stoull(hash.get<std::string>(), nullptr, 16);
  for (const LatencyField& field : kFields) {
    // Files of older versions have fewer.
    if (!json.at("latency").contains(field.name)) continue;
    absl::Status status =
        LatencyFromJson(json.at("latency").at(field.name), &(result.*field.histogram));
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("latency.", field.name, ": ", status.message()));
    }
  }
  for (const Json& one : json.at("seconds")) {
    result.seconds.push_back({one.at("sent").get<int64_t>(), one.at("ok").get<int64_t>(),
                              one.at("failed").get<int64_t>(),
                              one.at("output_tokens").get<int64_t>()});
  }
  return report;
}

}  // namespace

absl::Span<const LatencyField> LatencyFields() { return kFields; }

Json ToJson(const LoadReport& report) {
  const LoadDescription& description = report.description;
  const LoadResult& result = report.result;
  Json json;
  json["program"] = "blockserve-load";
  json["version"] = Version();
  json["commit"] = Commit();
  json["label"] = description.label;
  json["command"] = description.command;
  json["started_at"] = description.started_at;
  json["started_unix_s"] = description.started_unix_s;
  json["target"] = description.target;
  json["workload"] = description.workload;
  json["objectives_ms"] = {{"ttft", Ms(static_cast<double>(report.objectives.ttft))},
                           {"itl", Ms(static_cast<double>(report.objectives.itl))},
                           {"e2e", Ms(static_cast<double>(report.objectives.e2e))}};
  json["window"] = {{"begin_s", static_cast<double>(result.window_begin) / 1e6},
                    {"end_s", static_cast<double>(result.window_end) / 1e6},
                    {"requests", result.window_ok},
                    {"output_tokens", result.window_output_tokens}};
  json["output_tokens_per_s"] = Rounded(result.output_tokens_per_s());
  json["requests_per_s"] = Rounded(result.requests_per_s());
  json["goodput_requests_per_s"] = Rounded(result.good_per_s());
  json["requests"] = {{"measured", result.sent},
                      {"ok", result.ok},
                      {"failed", result.failed()},
                      {"good", result.good},
                      {"shortened", result.shortened}};
  json["errors"] = Json::object();
  for (const auto& [kind, count] : result.errors) json["errors"][kind] = count;
  json["error_examples"] = Json::object();
  for (const auto& [kind, message] : result.error_examples) json["error_examples"][kind] = message;
  json["tokens"] = {{"prompt", result.prompt_tokens},
                    {"cached_prompt", result.cached_prompt_tokens},
                    {"output", result.output_tokens}};
  json["usage_check"] = {{"checked", result.usage_checked}, {"wrong", result.usage_wrong}};
  if (result.output_hash_known) {
    json["output_hash"] = absl::StrFormat("%016x", result.output_hash);
  } else {
    json["output_hash"] = nullptr;
  }
  for (const LatencyField& field : kFields) {
    json["latency"][field.name] = LatencyToJson(result.*field.histogram);
  }
  json["seconds"] = Json::array();
  for (const LoadSecond& second : result.seconds) {
    json["seconds"].push_back({{"sent", second.sent},
                               {"ok", second.ok},
                               {"failed", second.failed},
                               {"output_tokens", second.output_tokens}});
  }
  return json;
}

absl::StatusOr<LoadReport> FromJson(const Json& json) {
  const auto program = json.find("program");
  if (program == json.end() || *program != "blockserve-load") {
    return absl::InvalidArgumentError("is no result of blockserve-load");
  }
  if (json.contains("kind")) {
    return absl::InvalidArgumentError("is the result of a sweep; only single runs can be read");
  }
  // The library reports a missing or misplaced field by an exception only; it goes no further.
  try {
    return Parse(json);
  } catch (const std::exception&) {
    return absl::InvalidArgumentError(
        "is no result that this version of blockserve-load can read: a field is missing, or of "
        "another kind");
  }
}

std::string ShortenedLine(const LoadResult& result) {
  if (result.shortened == 0) return "";
  return absl::StrFormat("%s of the requests were shortened to fit into the model's context\n",
                         Thousands(result.shortened));
}

std::string ToText(const LoadReport& report) {
  const LoadResult& result = report.result;
  std::string text =
      absl::StrFormat("%s requests in %.1f s: %s ok, %s failed\n", Thousands(result.sent),
                      result.window_s(), Thousands(result.ok), Thousands(result.failed()));
  text += ShortenedLine(result);
  for (const auto& [kind, count] : result.errors) {
    absl::StrAppendFormat(&text, "  %-22s %10s   e.g. %s\n", kind, Thousands(count),
                          result.error_examples.at(kind).substr(0, 100));
  }
  absl::StrAppendFormat(&text, "%-22s %10.1f /s\n", "output tokens", result.output_tokens_per_s());
  absl::StrAppendFormat(&text, "%-22s %10.2f /s\n", "requests", result.requests_per_s());
  if (report.objectives.any()) {
    absl::StrAppendFormat(
        &text, "%-22s %10.2f /s   %.1f %% of the successful ones within the objectives\n",
        "goodput", result.good_per_s(),
        result.ok > 0 ? 100.0 * static_cast<double>(result.good) / static_cast<double>(result.ok)
                      : 0.0);
  }
  absl::StrAppendFormat(&text, "%-22s %10s of %s agree with the tokens received\n", "usage",
                        Thousands(result.usage_checked - result.usage_wrong),
                        Thousands(result.usage_checked));
  if (result.cached_prompt_tokens > 0) {
    absl::StrAppendFormat(&text, "%-22s %10s of %s from the prefix cache\n", "prompt tokens",
                          Thousands(result.cached_prompt_tokens), Thousands(result.prompt_tokens));
  }
  absl::StrAppendFormat(&text, "\n%-22s %10s %10s %10s %10s %10s\n", "ms", "mean", "p50", "p90",
                        "p99", "max");
  for (const LatencyField& field : kFields) {
    const LoadHistogram& histogram = result.*field.histogram;
    if (histogram.count() == 0) {
      absl::StrAppendFormat(&text, "%-22s %10s %10s %10s %10s %10s\n", field.title, "-", "-", "-",
                            "-", "-");
      continue;
    }
    absl::StrAppendFormat(&text, "%-22s %10.2f %10.2f %10.2f %10.2f %10.2f\n", field.title,
                          histogram.mean() / 1e3,
                          static_cast<double>(histogram.Percentile(50)) / 1e3,
                          static_cast<double>(histogram.Percentile(90)) / 1e3,
                          static_cast<double>(histogram.Percentile(99)) / 1e3,
                          static_cast<double>(histogram.max()) / 1e3);
  }
  return text;
}

std::string ToCsv(const LoadReport& report) {
  std::string csv =
      "index,intended_s,send_lag_ms,ttft_ms,e2e_ms,prompt_tokens,output_tokens,outcome\n";
  for (const RequestRow& row : report.result.rows) {
    absl::StrAppendFormat(
        &csv, "%d,%.6f,%.3f,%s,%.3f,%d,%d,%s\n", row.index, static_cast<double>(row.intended) / 1e6,
        static_cast<double>(row.send_lag) / 1e3,
        row.ttft < 0 ? "" : absl::StrFormat("%.3f", static_cast<double>(row.ttft) / 1e3),
        static_cast<double>(row.e2e) / 1e3, row.prompt_tokens, row.output_tokens, row.outcome);
  }
  return csv;
}

absl::StatusOr<LoadReport> MergeReports(const std::vector<LoadReport>& reports) {
  if (reports.empty()) return absl::InvalidArgumentError("no results to merge");
  LoadReport merged = reports.front();
  LoadResult& sum = merged.result;
  const auto begin_of = [](const LoadReport& report) {
    return report.description.started_unix_s +
           static_cast<double>(report.result.window_begin) / 1e6;
  };
  const auto end_of = [](const LoadReport& report) {
    return report.description.started_unix_s + static_cast<double>(report.result.window_end) / 1e6;
  };
  double first = merged.description.started_unix_s;
  for (const LoadReport& report : reports) {
    first = std::min(first, report.description.started_unix_s);
  }
  for (const LoadReport& report : reports) {
    if (report.description.started_unix_s - first > kMostSecondsApart) {
      return absl::InvalidArgumentError(
          "the results began more than a day apart: they are not of one run");
    }
  }
  // The seconds of one that began later are later ones of the whole.
  const auto in_time = [&](const LoadReport& report) {
    LoadResult result = report.result;
    const auto later = std::llround(report.description.started_unix_s - first);
    if (!result.seconds.empty()) {
      result.seconds.insert(result.seconds.begin(), static_cast<size_t>(later), LoadSecond());
    }
    return result;
  };
  sum = in_time(reports.front());
  double begin = begin_of(merged), end = end_of(merged);
  merged.description.command = absl::StrCat("merged: ", merged.description.command);
  for (size_t i = 1; i < reports.size(); ++i) {
    sum.Merge(in_time(reports[i]));
    begin = std::min(begin, begin_of(reports[i]));
    end = std::max(end, end_of(reports[i]));
    absl::StrAppend(&merged.description.command, "; ", reports[i].description.command);
  }
  merged.description.started_unix_s = first;
  merged.description.workload["processes"] = reports.size();
  sum.window_begin = std::llround((begin - first) * 1e6);
  sum.window_end = std::llround((end - first) * 1e6);
  return merged;
}

absl::StatusOr<LoadReport> ReadReport(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return absl::NotFoundError(absl::StrCat(path, " ", text.status().message()));
  const Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(path, " is no JSON"));
  absl::StatusOr<LoadReport> report = FromJson(json);
  if (!report.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " ", report.status().message()));
  }
  return report;
}

absl::Status CheckWritable(const std::string& path) {
  struct stat found = {};
  const bool there = stat(path.c_str(), &found) == 0;
  // A pipe would give its reader an end of file.
  if (path == "-" || (there && !S_ISREG(found.st_mode) && !S_ISDIR(found.st_mode))) {
    return absl::OkStatus();
  }
  errno = 0;
  if (!std::ofstream(path, std::ios::binary | std::ios::app)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " cannot be written: ", std::strerror(errno)));
  }
  if (!there) unlink(path.c_str());
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, const std::string& content) {
  if (path == "-") {
    std::fputs(content.c_str(), stdout);
    return absl::OkStatus();
  }
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
  file.close();
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, " cannot be written"));
  return absl::OkStatus();
}

}  // namespace blockserve
