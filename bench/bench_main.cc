// blockserve-bench: how fast the engines are on this machine, and how near to what it can do.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "bench/engine_run.h"
#include "bench/machine.h"
#include "bench/report.h"
#include "bench/served_report.h"
#include "common/flag_table.h"
#include "common/program.h"
#include "common/version.h"
#include "gateway/validate.h"
#include "model/checkpoint.h"
#include "model/cuda/cuda_engines.h"
#include "model/device.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-bench";
constexpr absl::string_view kUsage =
    "blockserve-bench --model DIR [--prompt 128 --generate 512 --sequences 64]\n"
    "The engines without RPC: tokens per second, share of what the machine can do, time by part.";

struct BenchConfig {
  std::string model;
  std::string device = "auto";
  std::string arithmetic = "auto";
  std::string kernels = "auto";
  std::string format = "table";
  int32_t threads = 0;
  int32_t repeat = 1;
  int32_t warmup = 1;
  bool check = true;
  bool tiers = false;
  std::string layouts = "both";
  int32_t groups = 1;
  int32_t gateways = 1;
  int32_t stream_interval = 1;
  Workload workload = {.prompt_tokens = 128, .generate_tokens = 512, .sequences = 64};
  EngineRunOptions run;

  void AddFlags(FlagTable& flags);
  absl::Status Validate() const;
};

void BenchConfig::AddFlags(FlagTable& flags) {
  flags.Add("model", "folder of the model, block or vanilla", &model);
  flags.Add("prompt", "tokens of each prompt", &workload.prompt_tokens);
  flags.Add("generate", "tokens generated for each sequence", &workload.generate_tokens);
  flags.Add("sequences", "sequences at once", &workload.sequences);
  flags.Add("device", kDeviceFlagHelp, &device);
  flags.Add("arithmetic", ArithmeticFlagHelp(), &arithmetic);
  flags.Add("early_launch", kEarlyLaunchFlagHelp, &run.early_launch);
  flags.Add("threads", "compute threads; 0: one for each core", &threads);
  flags.Add("kernels", "instruction set: auto, or e.g. avx2 on a machine with more", &kernels);
  flags.Add("repeat", "runs; the middle one is told", &repeat);
  flags.Add("warmup", "runs of a small part of the work before", &warmup);
  flags.Add("token_rows", "rows that the token decoder decodes at once", &run.batching.token_rows);
  flags.Add("prefill_chunk", "prompt blocks of a step", &run.batching.prefill_blocks);
  flags.Add("temperature", "0: greedy", &run.temperature);
  flags.Add("seed", "of prompts and sampling", &run.seed);
  flags.Add("check", "first check that a batch gives the bits of each sequence alone", &check);
  flags.Add("tiers", "over gRPC instead: one process against three, same tokens", &tiers);
  flags.AddChoice("layouts", "with --tiers: both, one process alone, or three",
                  {"both", "one", "three"}, &layouts);
  flags.Add("groups",
            "2, on a device: both decoders run at once; with --tiers: of the block service",
            &groups);
  flags.Add("gateways", "with --tiers: so many; one takes some hundred thousand tokens/s",
            &gateways);
  flags.Add("stream_interval", "with --tiers: tokens of a sequence that are sent together",
            &stream_interval);
  for (const absl::string_view flag : {"layouts", "gateways", "stream_interval"}) {
    flags.Needs(flag, "tiers");
  }
  flags.AddChoice("format", "table or json", {"table", "json"}, &format);
}

absl::Status OutOfRange(absl::string_view flag, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag, " is ", value, "; it must be ", least, " to ", most));
}

absl::Status BenchConfig::Validate() const {
  if (model.empty()) return absl::InvalidArgumentError("--model is missing");
  if (absl::Status status = ValidateDeviceFlags(device, arithmetic); !status.ok()) return status;
  for (const absl::Status& status :
       {OutOfRange("prompt", workload.prompt_tokens, 1, 1 << 20),
        OutOfRange("generate", workload.generate_tokens, 1, 1 << 20),
        OutOfRange("sequences", workload.sequences, 1, 1 << 16),
        OutOfRange("threads", threads, 0, kMaxThreads), OutOfRange("repeat", repeat, 1, 1000),
        OutOfRange("warmup", warmup, 0, 1000), OutOfRange("groups", groups, 1, tiers ? 64 : 2),
        OutOfRange("gateways", gateways, 1, 64),
        OutOfRange("stream-interval", stream_interval, 1, kMaxStreamInterval),
        OutOfRange("token-rows", run.batching.token_rows, 1, 4096),
        OutOfRange("prefill-chunk", run.batching.prefill_blocks, 1, 65536)}) {
    if (!status.ok()) return status;
  }
  if (!(run.temperature >= 0)) {
    return absl::InvalidArgumentError("--temperature is negative; it must be 0 or more");
  }
  return absl::OkStatus();
}

// Errors: INVALID_ARGUMENT naming the flag.
absl::StatusOr<KernelTarget> ChooseKernels(absl::string_view name) {
  const std::vector<KernelTarget> targets = SupportedKernelTargets();
  if (targets.empty()) {
    return absl::FailedPreconditionError("this build has no kernels for this machine");
  }
  if (name == "auto") return targets.front();
  std::vector<std::string> names;
  for (const KernelTarget target : targets) {
    names.emplace_back(KernelTargetName(target));
    if (name == names.back()) return target;
  }
  return absl::InvalidArgumentError(absl::StrCat("--kernels is \"", name.substr(0, 60),
                                                 "\"; this machine has auto, ",
                                                 absl::StrJoin(names, ", ")));
}

// Progress goes to a person's terminal alone.
class ProgressLine {
 public:
  ProgressLine() : shown_(isatty(STDERR_FILENO) != 0) {}
  ~ProgressLine() { Clear(); }
  void Show(const std::string& text) {
    if (!shown_ || text == last_) return;
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    last_ = text;
  }
  void Clear() {
    if (!last_.empty()) std::fputs("\r\033[K", stderr);
    last_.clear();
  }

 private:
  const bool shown_;
  std::string last_;
};

// Random models may be measured at any length on purpose; others were meant to be within it.
void WarnBeyondPositions(const ModelConfig& model, const Workload& workload) {
  // The last block is never embedded.
  const int64_t positions = PromptBlocks(model, workload) + GeneratedBlocks(model, workload) - 1;
  if (positions <= model.block.max_positions) return;
  absl::FPrintF(stderr,
                "%s: warning: --prompt and --generate take %d positions; the model's "
                "max_position_embeddings is %d, and servers need --allow-long-contexts beyond it\n",
                kProgram, positions, model.block.max_positions);
}

absl::StatusOr<EngineReport> RunBench(BenchConfig& config, std::string command) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(config.model);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<EngineChoice> choice =
      ChooseEngine(config.device, config.arithmetic, **checkpoint);
  if (!choice.ok()) return choice.status();
  absl::StatusOr<KernelTarget> kernels = ChooseKernels(config.kernels);
  if (!kernels.ok()) return kernels.status();
  if (config.groups > 1 && choice->cuda_device < 0) {
    return absl::InvalidArgumentError(
        "--groups: both decoders share the cores of a CPU; it must be 1 there");
  }
  WarnBeyondPositions((*checkpoint)->config(), config.workload);
  config.run.groups = config.groups;
  config.run.arithmetic = choice->arithmetic;
  config.run.cuda_device = choice->cuda_device;
  config.run.kernels = *kernels;
  config.run.batching.block_rows = std::max<int64_t>(256, config.workload.sequences);

  ThreadPool pool(config.threads > 0 ? config.threads : NumCores());
  ProgressLine progress;
  EngineReport report;
  report.command = std::move(command);
  report.commit = std::string(Commit());
  report.model = std::filesystem::weakly_canonical(config.model).filename().string();
  report.config = (*checkpoint)->config();
  report.arithmetic = choice->arithmetic;
  report.storage = StorageOf(choice->arithmetic, IsStoredInBf16(**checkpoint));
  report.kernels = KernelTargetName(*kernels);
  report.workload = config.workload;
  report.batching = config.run.batching;
  // Of the processor what its engines are told by, of a device what its own are.
  if (choice->cuda_device < 0) {
    progress.Show("measuring the machine");
    report.machine = MeasureMachine(pool, *kernels);
  } else {
    progress.Show("measuring the device");
    report.machine = NameMachine(pool);
    absl::StatusOr<CudaDeviceRates> rates =
        MeasureCudaDevice(choice->cuda_device, choice->arithmetic);
    if (!rates.ok()) return rates.status();
    report.kernels = "CUDA";
    report.machine.device = rates->name;
    report.machine.device_libraries = rates->libraries;
    report.machine.device_product = {
        StoresBf16(choice->arithmetic) ? "bfloat16 product" : "float32 product", 0,
        rates->flop_per_s};
    report.machine.device_bytes_per_s = rates->bytes_per_s;
  }

  progress.Show("loading");
  absl::StatusOr<std::unique_ptr<EngineRunner>> runner =
      EngineRunner::Load(**checkpoint, config.run, pool, config.workload);
  if (!runner.ok()) return runner.status();
  report.kv_bytes = (*runner)->kv_bytes();
  report.weight_bytes = static_cast<int64_t>(ModelBytes(report.config, report.storage));
  if (config.check && IsBatchInvariant(report.arithmetic)) {
    progress.Show("checking");
    absl::StatusOr<uint64_t> hash = (*runner)->CheckBatchInvariance();
    if (!hash.ok()) return hash.status();
    report.logits_hash = *hash;
    report.checked = true;
  }
  // Caches, pages and clocks as they are in the middle of a run.
  Workload small = config.workload;
  small.generate_tokens = std::min<int64_t>(small.generate_tokens, 4 * report.config.block_length);
  for (int i = 0; i < config.warmup; ++i) {
    progress.Show("warming up");
    if (absl::Status status = (*runner)->Run(small).status(); !status.ok()) return status;
  }
  for (int i = 0; i < config.repeat; ++i) {
    absl::StatusOr<EngineRunResult> run = (*runner)->Run(config.workload, 0, [&](double share) {
      progress.Show(absl::StrCat("run ", i + 1, " of ", config.repeat, ", ",
                                 static_cast<int>(100 * share), " %"));
    });
    if (!run.ok()) return run.status();
    if (i > 0 && run->output_hash != report.runs.front().output_hash) {
      return absl::InternalError("two runs of the same work gave different outputs");
    }
    report.runs.push_back(*std::move(run));
  }
  report.peak_memory_bytes = PeakMemoryBytes();
  if (choice->cuda_device < 0) {
    progress.Show("measuring the machine again");
    report.machine.TakeBetter(MeasureMachine(pool, *kernels));
    return report;
  }
  progress.Show("profiling");
  const absl::StatusOr<EngineRunner::ProfiledTimes> profile = (*runner)->Profile(config.workload);
  if (!profile.ok()) return profile.status();
  report.profiled = true;
  for (EngineRunResult& run : report.runs) {
    run.prefill_times = profile->prefill;
    run.decode_times = profile->decode;
  }
  return report;
}

absl::StatusOr<nlohmann::ordered_json> RunTiers(const BenchConfig& config,
                                                const std::string& command) {
  absl::StatusOr<ModelConfig> model = LoadModelConfig(config.model);
  if (!model.ok()) return model.status();
  WarnBeyondPositions(*model, config.workload);
  ServedBenchOptions options;
  options.workload = config.workload;
  options.seed = config.run.seed;
  options.repeat = config.repeat;
  options.one_process = config.layouts != "three";
  options.three_processes = config.layouts != "one";
  options.served.model = config.model;
  options.served.device = config.device;
  options.served.arithmetic = config.arithmetic;
  options.served.early_launch = config.run.early_launch;
  options.served.threads = config.threads;
  options.served.groups = config.groups;
  options.served.gateways = config.gateways;
  options.served.stream_interval = config.stream_interval;
  options.served.token_rows = static_cast<int>(config.run.batching.token_rows);
  options.served.sequences = config.workload.sequences;
  // Room for all sequences with their last pages half empty, and for the cache of earlier runs.
  const double positions = static_cast<double>(PromptBlocks(*model, config.workload) +
                                               GeneratedBlocks(*model, config.workload));
  options.served.kv_memory_mib = static_cast<int64_t>(
      64 + 1.1 * (positions + 32) * static_cast<double>(config.workload.sequences) *
               KvBytesPerToken(*model, Storage()) * model->block_length / (1 << 20));
  options.served.allow_long_contexts =
      positions > static_cast<double>(model->block.max_positions) ||
      TokenPositions(*model) > model->token.max_positions;

  ProgressLine progress;
  absl::StatusOr<nlohmann::ordered_json> json =
      RunServedBench(options, *model, [&](const std::string& text) { progress.Show(text); });
  if (!json.ok()) return json.status();
  (*json)["model"] = {{"name", std::filesystem::weakly_canonical(config.model).filename().string()},
                      {"block_length", model->block_length}};
  (*json)["arithmetic"] = config.arithmetic;
  (*json)["machine"] = {{"cpu", CpuName()}, {"cores", NumCores()}};
  (*json)["commit"] = std::string(Commit());
  (*json)["command"] = command;
  return json;
}

int Main(int argc, char** argv) {
  BenchConfig config;
  FlagTable flags;
  config.AddFlags(flags);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (absl::Status status = config.Validate(); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }
  // The program's own name, wherever it lies: results are compared between machines.
  std::string command(kProgram);
  for (int i = 1; i < argc; ++i) absl::StrAppend(&command, " ", argv[i]);

  if (config.tiers) {
    absl::StatusOr<nlohmann::ordered_json> served = RunTiers(config, command);
    if (!served.ok()) return ReportFailure(kProgram, served.status());
    const std::string served_text =
        config.format == "json" ? served->dump(1) + "\n" : ServedTable(*served);
    std::fputs(served_text.c_str(), stdout);
    return ReportFailure(kProgram, absl::OkStatus());
  }
  absl::StatusOr<EngineReport> report = RunBench(config, command);
  if (!report.ok()) return ReportFailure(kProgram, report.status());
  const nlohmann::ordered_json json = ReportJson(*report);
  const std::string text = config.format == "json" ? json.dump(1) + "\n" : ReportTable(json);
  std::fputs(text.c_str(), stdout);
  return ReportFailure(kProgram, absl::OkStatus());
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
