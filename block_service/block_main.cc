// blockserve-block: one replica of the block tier.
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "block_service/block_service.h"
#include "common/flag_table.h"
#include "common/program.h"
#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/device.h"
#include "rpc/server_logging.h"
#include "rpc/tier_program.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-block";
constexpr absl::string_view kUsage =
    "blockserve-block --model DIR [--listen HOST:PORT]\n"
    "Serves the block tier: embedder, block decoder and the KV of every sequence.";
// After SIGTERM: sequences may be opened elsewhere for so long.
constexpr absl::Duration kDrainTime = absl::Seconds(30);

struct Options {
  TierProgramOptions program{kProgram, "127.0.0.1:7071"};
  BlockServiceConfig service;

  void AddFlags(FlagTable& flags);
  absl::Status Validate() const;
};

void Options::AddFlags(FlagTable& flags) {
  service.name.clear();
  service.max_sequences = 0;
  service.prefill_chunk = 0;
  program.AddFlags(flags);
  flags.Add("name", "name for people; default: host name and port", &service.name);
  flags.Add("device", kDeviceFlagHelp, &service.device);
  flags.Add("arithmetic", ArithmeticFlagHelp(), &service.arithmetic);
  flags.Add("early_launch", kEarlyLaunchFlagHelp, &service.early_launch);
  flags.Add("kv_memory_mib", kKvMemoryFlagHelp, &service.kv_memory_mib);
  flags.Add("kv_pages", "KV pages, instead of --kv-memory-mib", &service.kv_pages);
  flags.Add("page_blocks", "blocks in a KV page", &service.page_blocks);
  flags.Add("max_sequences", kMaxSequencesFlagHelp, &service.max_sequences);
  flags.Add("prefill_chunk", kPrefillChunkFlagHelp, &service.prefill_chunk);
  flags.Add("groups", "groups that take turns, so that neither tier waits", &service.groups);
  flags.Add("allow_long_contexts", "more blocks than max_position_embeddings",
            &service.allow_long_contexts);
  flags.Add("prefix_cache", "share KV of prompts that begin alike", &service.prefix_cache);
  program.AddServingFlags(flags);
  BlockFaultInjection& faults = service.faults;
  flags.Subject("Tests");
  flags.Add("allow_fault_injection", "let --inject make this replica misbehave", &faults.allowed);
  flags.Add("inject_wrong_bits", "share of rows with a wrong bit", &faults.wrong_bits);
  flags.Add("inject_errors", "share of steps that fail with INTERNAL", &faults.errors);
  flags.Add("inject_crash_token", "a block with this id kills this replica", &faults.crash_token);
  flags.Add("inject_hang_token", "a block with this id hangs this replica", &faults.hang_token);
}

absl::Status Options::Validate() const {
  if (absl::Status status = program.Validate(); !status.ok()) return status;
  return service.Validate();
}

absl::Status Serve(Options options) {
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<ThreadPool> pool;
  return ServeTier(options.program, kDrainTime,
                   [&](MetricRegistry& metrics) -> absl::StatusOr<std::unique_ptr<TierService>> {
                     options.service.metrics = &metrics;
                     absl::StatusOr<std::unique_ptr<Checkpoint>> opened =
                         Checkpoint::Open(options.program.model);
                     if (!opened.ok()) return opened.status();
                     checkpoint = *std::move(opened);
                     pool = std::make_unique<ThreadPool>(options.program.num_threads());
                     return BlockService::Create(options.service, *checkpoint, pool.get());
                   });
}

int Main(int argc, char** argv) {
  Options options;
  FlagTable flags;
  options.AddFlags(flags);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (options.service.name.empty()) options.service.name = options.program.DefaultName();
  absl::Status status = options.Validate();
  if (status.ok()) status = ConfigureServerLogging(options.program.logging);
  if (!status.ok()) return ReportUsageError(kProgram, status);
  return ReportFailure(kProgram, Serve(std::move(options)));
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
