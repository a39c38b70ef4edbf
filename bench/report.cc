#include "bench/report.h"

#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace blockserve {
namespace {

using nlohmann::ordered_json;

double OutputRate(const EngineReport& report, const EngineRunResult& run) {
  return static_cast<double>(report.workload.generate_tokens * report.workload.sequences) /
         (run.prefill_seconds + run.decode_seconds);
}

// The run in the middle: every figure told is of that one.
const EngineRunResult& MiddleRun(const EngineReport& report) {
  std::vector<size_t> order(report.runs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return OutputRate(report, report.runs[a]) < OutputRate(report, report.runs[b]);
  });
  return report.runs[order[(order.size() - 1) / 2]];
}

double PartSeconds(const StepTimer& times, StepTimer::Part part) {
  return times.seconds(part, StepTimer::kMatmul) + times.seconds(part, StepTimer::kAttention) +
         times.seconds(part, StepTimer::kRows);
}

double WorkSeconds(const StepTimer& times, StepTimer::Work work) {
  double seconds = 0;
  for (int part = 0; part < StepTimer::kNumParts; ++part) {
    seconds += times.seconds(static_cast<StepTimer::Part>(part), work);
  }
  return seconds;
}

// One line of the table: `work` may be nullptr.
ordered_json PartJson(const char* name, const PartWork* work, double seconds, double all_seconds,
                      double tokens) {
  ordered_json json = {{"part", name},
                       {"seconds", seconds},
                       {"share_of_time", seconds / all_seconds},
                       {"us_per_token", seconds / tokens * 1e6}};
  if (work == nullptr) return json;
  json["flop_per_token"] = work->flop() / tokens;
  json["bytes_per_token"] = work->bytes() / tokens;
  json["gflop_per_s"] = seconds > 0 ? work->flop() / seconds / 1e9 : 0;
  json["gb_per_s"] = seconds > 0 ? work->bytes() / seconds / 1e9 : 0;
  return json;
}

// The instruction peak that an arithmetic's matrix products can reach.
const PeakRate& OwnPeak(const EngineReport& report) {
  if (IsCuda(report.arithmetic)) return report.machine.device_product;
  const absl::string_view name = ArithmeticName(report.arithmetic);
  if (name == "bf16dot" && report.machine.bf16_dot.all_cores > 0) return report.machine.bf16_dot;
  if (name == "int8" && report.machine.int8_dot.all_cores > 0) return report.machine.int8_dot;
  return report.machine.fma_f32;
}

// What shares are of: float32 on the CPU, what the arithmetic multiplies with on a device.
const PeakRate& BasePeak(const EngineReport& report) {
  return IsCuda(report.arithmetic) ? OwnPeak(report) : report.machine.fma_f32;
}

double Bandwidth(const EngineReport& report) {
  return IsCuda(report.arithmetic) ? report.machine.device_bytes_per_s
                                   : report.machine.read_bytes_per_s;
}

ordered_json PhaseJson(const EngineReport& report, const Work& work, const StepTimer& times,
                       double seconds, bool prefill) {
  const double tokens =
      static_cast<double>(report.workload.sequences * (prefill ? report.workload.prompt_tokens
                                                               : report.workload.generate_tokens));
  const double peak = BasePeak(report).all_cores;
  ordered_json parts = ordered_json::array();
  double told = 0;
  const auto add = [&](const char* name, const PartWork* part, double part_seconds) {
    if (part_seconds <= 0 && (part == nullptr || part->flop() == 0)) return;
    told += part_seconds;
    ordered_json json = PartJson(name, part, part_seconds, seconds, tokens);
    if (part != nullptr && part_seconds > 0) {
      json["share_of_peak"] = part->flop() / part_seconds / peak;
    }
    parts.push_back(std::move(json));
  };
  if (prefill) {
    add("block step", &work.prefill, PartSeconds(times, StepTimer::kBlockStep));
  } else {
    add("block step", &work.block_step, PartSeconds(times, StepTimer::kBlockStep));
    if (work.expansion.flop() > 0) {
      add("expansion", &work.expansion, PartSeconds(times, StepTimer::kExpansion));
      add("first step", &work.first_step, PartSeconds(times, StepTimer::kFirstStep));
      add("later steps", &work.later_steps, PartSeconds(times, StepTimer::kLaterSteps));
    }
    add("head", &work.head, WorkSeconds(times, StepTimer::kHead));
    add("sampling", nullptr, WorkSeconds(times, StepTimer::kSampling));
  }
  add("between steps", nullptr, std::max(0.0, seconds - told));

  const PartWork all = prefill ? work.prefill : work.decode();
  return {{"tokens", tokens},
          {"seconds", seconds},
          {"tokens_per_s", tokens / seconds},
          {"flop_per_token", all.flop() / tokens},
          {"bytes_per_token", all.bytes() / tokens},
          {"share_of_peak", all.flop() / seconds / peak},
          {"share_of_bandwidth", all.bytes() / seconds / Bandwidth(report)},
          {"parts", std::move(parts)},
          {"kinds_of_work",
           {{"matrix_products_seconds",
             WorkSeconds(times, StepTimer::kMatmul) + WorkSeconds(times, StepTimer::kHead)},
            {"matrix_products_share_of_peak", all.product_flop /
                                                  std::max(WorkSeconds(times, StepTimer::kMatmul) +
                                                               WorkSeconds(times, StepTimer::kHead),
                                                           1e-9) /
                                                  peak},
            {"attention_seconds", WorkSeconds(times, StepTimer::kAttention)},
            {"attention_share_of_peak",
             all.attention_flop / std::max(WorkSeconds(times, StepTimer::kAttention), 1e-9) / peak},
            {"norms_embeddings_and_copies_seconds", WorkSeconds(times, StepTimer::kRows)},
            {"sampling_seconds", WorkSeconds(times, StepTimer::kSampling)}}}};
}

ordered_json LatencyJson(const std::vector<double>& seconds) {
  return {{"count", seconds.size()},
          {"p50_ms", Percentile(seconds, 0.5) * 1e3},
          {"p99_ms", Percentile(seconds, 0.99) * 1e3}};
}

std::string Bytes(double bytes) {
  if (bytes >= 1e9) return absl::StrFormat("%.2f GB", bytes / 1e9);
  if (bytes >= 1e6) return absl::StrFormat("%.1f MB", bytes / 1e6);
  return absl::StrFormat("%.1f kB", bytes / 1e3);
}

std::string PeakText(const ordered_json& peak, const char* name) {
  if (peak.is_null()) return "";
  return absl::StrFormat("          %-14s %8.1f a core, %8.1f all G op/s (%s)\n", name,
                         peak["one_core_gops"].get<double>(), peak["all_cores_gops"].get<double>(),
                         peak["instruction"].get<std::string>());
}

void AppendPhase(const ordered_json& phase, const char* title, std::string& text) {
  absl::StrAppendFormat(&text, "\n%-14s %10s %10s %10s %7s %9s %8s %7s\n", title, "MFLOP/tok",
                        "MB/tok", "us/tok", "time", "GFLOP/s", "of peak", "GB/s");
  for (const ordered_json& part : phase["parts"]) {
    absl::StrAppendFormat(&text, "  %-12s ", part["part"].get<std::string>());
    const bool counted = part.contains("flop_per_token");
    absl::StrAppend(&text, counted ? absl::StrFormat("%10.2f %10.3f",
                                                     part["flop_per_token"].get<double>() / 1e6,
                                                     part["bytes_per_token"].get<double>() / 1e6)
                                   : std::string(21, ' '));
    absl::StrAppendFormat(&text, " %10.2f %6.1f%%", part["us_per_token"].get<double>(),
                          100 * part["share_of_time"].get<double>());
    if (counted) {
      absl::StrAppendFormat(&text, " %9.1f %7.1f%% %7.1f", part["gflop_per_s"].get<double>(),
                            100 * part.value("share_of_peak", 0.0), part["gb_per_s"].get<double>());
    }
    text += "\n";
  }
  absl::StrAppendFormat(
      &text, "  %-12s %10.2f %10.3f %10.2f %7s %9.1f %7.1f%% %7.1f\n", "in all",
      phase["flop_per_token"].get<double>() / 1e6, phase["bytes_per_token"].get<double>() / 1e6,
      1e6 / phase["tokens_per_s"].get<double>(), "",
      phase["flop_per_token"].get<double>() * phase["tokens_per_s"].get<double>() / 1e9,
      100 * phase["share_of_peak"].get<double>(),
      phase["bytes_per_token"].get<double>() * phase["tokens_per_s"].get<double>() / 1e9);
}

}  // namespace

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const size_t at =
      std::min(values.size() - 1,
               static_cast<size_t>(std::ceil(share * static_cast<double>(values.size()))) -
                   (share > 0 ? 1 : 0));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

int64_t PeakMemoryBytes() {
  rusage usage = {};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? int64_t{usage.ru_maxrss} * 1024 : 0;
}

ordered_json ReportJson(const EngineReport& report) {
  const EngineRunResult& run = MiddleRun(report);
  const Work work = CountWork(report.config, report.storage, report.workload, report.batching);
  const double seconds = run.prefill_seconds + run.decode_seconds;
  const double prompt_tokens =
      static_cast<double>(report.workload.prompt_tokens * report.workload.sequences);
  const double generated =
      static_cast<double>(report.workload.generate_tokens * report.workload.sequences);
  const double prefill_seconds = std::max(run.prefill_seconds, 1e-12);
  const double decode_seconds = std::max(run.decode_seconds, 1e-12);
  const PeakRate& own_peak = OwnPeak(report);

  ordered_json json;
  json["output_tokens_per_s"] = generated / seconds;
  json["prefill_tokens_per_s"] = prompt_tokens / prefill_seconds;
  json["decode_tokens_per_s"] = generated / decode_seconds;
  json["share_of_peak"] = work.all().flop() / seconds / BasePeak(report).all_cores;
  json["peak_instruction"] = BasePeak(report).instruction;
  json["share_of_own_peak"] = work.all().flop() / seconds / own_peak.all_cores;
  json["own_peak_instruction"] = own_peak.instruction;
  json["share_of_bandwidth"] = work.all().bytes() / seconds / Bandwidth(report);
  json["model"] = {{"name", report.model},
                   {"kind", report.config.kind == ModelKind::kVanilla ? "vanilla" : "block"},
                   {"block_length", report.config.block_length},
                   {"weight_bytes", report.weight_bytes},
                   {"kv_bytes_per_token", KvBytesPerToken(report.config, report.storage)}};
  json["arithmetic"] = std::string(ArithmeticName(report.arithmetic));
  json["kernels"] = report.kernels;
  json["prompt"] = report.workload.prompt_tokens;
  json["generate"] = report.workload.generate_tokens;
  json["sequences"] = report.workload.sequences;
  json["formula"] = FormulaJson(work, report.workload);
  json["prefill"] = PhaseJson(report, work, run.prefill_times, prefill_seconds, true);
  json["decode"] = PhaseJson(report, work, run.decode_times, decode_seconds, false);
  json["rounds"] = LatencyJson(run.round_seconds);
  json["prefill_steps"] = LatencyJson(run.prefill_step_seconds);
  json["peak_memory_bytes"] = report.peak_memory_bytes;
  json["kv_bytes"] = report.kv_bytes;
  json["check"] = {
      {"batch_equals_alone", report.checked ? ordered_json(true) : ordered_json(nullptr)},
      {"logits_hash", absl::StrFormat("%016x", report.logits_hash)},
      {"output_hash", absl::StrFormat("%016x", run.output_hash)}};
  ordered_json rates = ordered_json::array();
  for (const EngineRunResult& each : report.runs) rates.push_back(OutputRate(report, each));
  json["output_tokens_per_s_of_runs"] = std::move(rates);
  // Above a few percent the run was disturbed: measure again on a quieter machine.
  json["share_of_time_without_a_core"] =
      run.waited_for_core_seconds / (seconds * report.machine.threads);
  if (report.profiled) {
    json["parts_are"] =
        "seconds of the device in a run of its own, kernel by kernel, nothing beside another: "
        "where the measured run computes two things at once, they are more than its own";
  }
  json["machine"] = report.machine.Json();
  json["commit"] = report.commit;
  json["command"] = report.command;
  json["formula_text"] = FormulaText(work, report.workload);
  return json;
}

std::string ReportTable(const ordered_json& json) {
  const ordered_json& machine = json["machine"];
  const ordered_json& model = json["model"];
  std::string text = absl::StrFormat(
      "model     %s, L %d, %s, %s kernels, %s of weights, %s of KV a token\n",
      model["name"].get<std::string>(), model["block_length"].get<int64_t>(),
      json["arithmetic"].get<std::string>(), json["kernels"].get<std::string>(),
      Bytes(model["weight_bytes"].get<double>()), Bytes(model["kv_bytes_per_token"].get<double>()));
  absl::StrAppendFormat(&text, "machine   %s, %d of %d cores, commit %s\n",
                        machine["cpu"].get<std::string>(), machine["threads"].get<int>(),
                        machine["cores"].get<int>(), json["commit"].get<std::string>());
  if (machine.contains("device")) {
    const ordered_json& device = machine["device"];
    absl::StrAppendFormat(&text,
                          "device    %s, %s\n          %s %.1f TFLOP/s; memory %.0f GB/s, read "
                          "and written\n",
                          device["name"].get<std::string>(), device["libraries"].get<std::string>(),
                          device["product"].get<std::string>(),
                          device["product_gflop_per_s"].get<double>() / 1e3,
                          device["gb_per_s"].get<double>());
  } else {
    absl::StrAppend(&text, PeakText(machine["fma_f32"], "float32"),
                    PeakText(machine["bf16_dot"], "bfloat16 dot"),
                    PeakText(machine["int8_dot"], "int8 dot"));
    absl::StrAppendFormat(&text, "          %-14s %8.1f a core, %8.1f all GB/s\n", "memory, read",
                          machine["read_gb_per_s_one_core"].get<double>(),
                          machine["read_gb_per_s"].get<double>());
  }
  absl::StrAppendFormat(&text, "check     %s; logits %s, output %s\n",
                        json["check"]["batch_equals_alone"].is_null()
                            ? "left out"
                            : "a batch gives the bits of each sequence alone",
                        json["check"]["logits_hash"].get<std::string>(),
                        json["check"]["output_hash"].get<std::string>());
  absl::StrAppendFormat(&text, "work      prompt %d, generate %d, %d sequences\n%s\n",
                        json["prompt"].get<int64_t>(), json["generate"].get<int64_t>(),
                        json["sequences"].get<int64_t>(), json["formula_text"].get<std::string>());
  AppendPhase(json["prefill"], "prefill", text);
  AppendPhase(json["decode"], "decode", text);
  absl::StrAppendFormat(
      &text, "\noutput    %.1f tokens/s (runs:", json["output_tokens_per_s"].get<double>());
  for (const ordered_json& rate : json["output_tokens_per_s_of_runs"]) {
    absl::StrAppendFormat(&text, " %.1f", rate.get<double>());
  }
  absl::StrAppendFormat(
      &text,
      ")\nprefill   %.1f tokens/s        decode %.1f tokens/s\n"
      "share     %.1f %% of the %s peak, %.1f %% of the %s peak, %.1f %% of memory bandwidth\n"
      "round     p50 %.2f ms, p99 %.2f ms (a block of every sequence)\n"
      "disturbed %.1f %% of the threads' time, by other processes\n"
      "memory    %s at most, of it %s KV\n",
      json["prefill_tokens_per_s"].get<double>(), json["decode_tokens_per_s"].get<double>(),
      100 * json["share_of_peak"].get<double>(),
      machine.contains("device") ? "device's" : "float32",
      100 * json["share_of_own_peak"].get<double>(),
      json["own_peak_instruction"].get<std::string>(),
      100 * json["share_of_bandwidth"].get<double>(), json["rounds"]["p50_ms"].get<double>(),
      json["rounds"]["p99_ms"].get<double>(),
      100 * json["share_of_time_without_a_core"].get<double>(),
      Bytes(json["peak_memory_bytes"].get<double>()), Bytes(json["kv_bytes"].get<double>()));
  return text;
}

}  // namespace blockserve
