#include "bench/served_report.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "bench/engine_run.h"
#include "bench/report.h"

namespace blockserve {
namespace {

using nlohmann::ordered_json;

// Blocks of each sequence before the clock starts.
constexpr int64_t kWarmUpBlocks = 4;

// One that was asked for.
struct Layout {
  const char* key;
  const char* name;
  bool three;
  std::unique_ptr<ServedModel> served = nullptr;
  std::vector<ServedRunResult> runs = {};
};

ordered_json Json(const ServedModel& served, const std::vector<ServedRunResult>& runs,
                  const Workload& workload) {
  const double tokens = static_cast<double>(workload.generate_tokens * workload.sequences);
  std::vector<size_t> order(runs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return runs[a].seconds > runs[b].seconds; });
  const ServedRunResult& middle = runs[order[(order.size() - 1) / 2]];
  ordered_json rates = ordered_json::array();
  for (const ServedRunResult& run : runs) rates.push_back(tokens / run.seconds);
  ordered_json cpu = ordered_json::object();
  const std::vector<std::string> names = served.ProcessNames();
  for (size_t i = 0; i < names.size(); ++i) cpu[names[i]] = middle.cpu_seconds[i];
  const auto percentiles = [](const std::vector<double>& seconds) -> ordered_json {
    return {{"p50_ms", 1e3 * Percentile(seconds, 0.5)},
            {"p99_ms", 1e3 * Percentile(seconds, 0.99)}};
  };
  return {{"output_tokens_per_s", tokens / middle.seconds},
          {"seconds", middle.seconds},
          {"output_tokens_per_s_of_runs", std::move(rates)},
          {"time_to_first_block", percentiles(middle.first_token_seconds)},
          {"between_blocks", percentiles(middle.between_blocks_seconds)},
          {"cpu_seconds", std::move(cpu)}};
}

}  // namespace

absl::StatusOr<ordered_json> RunServedBench(
    const ServedBenchOptions& options, const ModelConfig& config,
    const std::function<void(const std::string&)>& progress) {
  std::vector<std::vector<int32_t>> prompts;
  for (int64_t i = 0; i < options.workload.sequences; ++i) {
    prompts.push_back(MakePrompt(config, options.seed, i, options.workload.prompt_tokens));
  }
  std::vector<Layout> layouts;
  if (options.one_process) layouts.push_back({"one_process", "one process", false});
  if (options.three_processes) layouts.push_back({"three_processes", "three processes", true});
  for (Layout& layout : layouts) {
    progress(absl::StrCat("starting ", layout.name));
    absl::StatusOr<std::unique_ptr<ServedModel>> started =
        ServedModel::Start(options.served, layout.three);
    if (!started.ok()) return started.status();
    layout.served = *std::move(started);
  }
  const int64_t warm_up =
      std::min(options.workload.generate_tokens, kWarmUpBlocks * config.block_length);
  for (int i = -1; i < options.repeat; ++i) {
    for (Layout& layout : layouts) {
      progress(i < 0 ? absl::StrCat("warming up ", layout.name)
                     : absl::StrCat("run ", i + 1, " of ", options.repeat, ", ", layout.name));
      // Other prompts in each run: else the prefix cache would have them.
      std::vector<std::vector<int32_t>> fresh = prompts;
      for (std::vector<int32_t>& prompt : fresh) {
        prompt.front() = (prompt.front() + i + 1) % config.vocab_size;
      }
      absl::StatusOr<ServedRunResult> run =
          layout.served->Run(fresh, i < 0 ? warm_up : options.workload.generate_tokens);
      if (!run.ok()) return run.status();
      if (i >= 0) layout.runs.push_back(*std::move(run));
    }
    if (i >= 0 &&
        layouts.front().runs.back().tokens_hash != layouts.back().runs.back().tokens_hash) {
      return absl::InternalError("one process and three processes gave different tokens");
    }
  }
  ordered_json json;
  double best = 0;
  for (const Layout& layout : layouts) {
    json[layout.key] = Json(*layout.served, layout.runs, options.workload);
    best = std::max(best, json[layout.key]["output_tokens_per_s"].get<double>());
  }
  if (layouts.size() == 2) {
    json["three_of_one"] = json["three_processes"]["output_tokens_per_s"].get<double>() /
                           json["one_process"]["output_tokens_per_s"].get<double>();
    json["same_tokens"] = true;
  }
  // On one device two processes take turns, and one does both at a time.
  json["output_tokens_per_s"] = best;
  json["prompt"] = options.workload.prompt_tokens;
  json["generate"] = options.workload.generate_tokens;
  json["sequences"] = options.workload.sequences;
  json["gateways"] = options.served.gateways;
  json["stream_interval"] = options.served.stream_interval;
  return json;
}

std::string ServedTable(const ordered_json& json) {
  std::string text = absl::StrFormat("served: prompt %d, generate %d, %d sequences%s\n\n",
                                     json["prompt"].get<int64_t>(), json["generate"].get<int64_t>(),
                                     json["sequences"].get<int64_t>(),
                                     json.contains("same_tokens") ? "; the tokens are equal" : "");
  absl::StrAppendFormat(&text, "%-16s %10s %22s %22s\n", "", "tokens/s", "first block p50, p99 ms",
                        "between blocks p50, p99");
  for (const auto& [key, name] :
       {std::pair{"one_process", "one process"}, {"three_processes", "three processes"}}) {
    if (!json.contains(key)) continue;
    const ordered_json& run = json[key];
    absl::StrAppendFormat(&text, "%-16s %10.1f %11.1f %11.1f %11.1f %11.1f\n", name,
                          run["output_tokens_per_s"].get<double>(),
                          run["time_to_first_block"]["p50_ms"].get<double>(),
                          run["time_to_first_block"]["p99_ms"].get<double>(),
                          run["between_blocks"]["p50_ms"].get<double>(),
                          run["between_blocks"]["p99_ms"].get<double>());
  }
  for (const auto& [key, name] :
       {std::pair{"one_process", "one process"}, {"three_processes", "three processes"}}) {
    if (!json.contains(key)) continue;
    absl::StrAppendFormat(&text, "\n%-16s runs", name);
    for (const ordered_json& rate : json[key]["output_tokens_per_s_of_runs"]) {
      absl::StrAppendFormat(&text, " %.1f", rate.get<double>());
    }
    absl::StrAppendFormat(&text, " tokens/s; CPU s in %.1f s:", json[key]["seconds"].get<double>());
    for (const auto& [process, seconds] : json[key]["cpu_seconds"].items()) {
      absl::StrAppendFormat(&text, " %s %.1f", process, seconds.get<double>());
    }
  }
  text += "\n";
  if (json.contains("three_of_one")) {
    absl::StrAppendFormat(&text, "\nthree processes reach %.1f %% of one\n",
                          100 * json["three_of_one"].get<double>());
  }
  return text;
}

}  // namespace blockserve
