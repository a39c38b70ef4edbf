// blockserve-token: a token worker.
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/flag_table.h"
#include "common/program.h"
#include "common/thread_pool.h"
#include "model/checkpoint.h"
#include "model/device.h"
#include "rpc/server_logging.h"
#include "rpc/tier_program.h"
#include "token_service/token_service.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-token";
constexpr absl::string_view kUsage =
    "blockserve-token --model DIR [--listen HOST:PORT]\n"
    "A token worker: decodes blocks from context embeddings for any gateway that asks.";
// A block takes milliseconds.
constexpr absl::Duration kDrainTime = absl::Seconds(30);

struct Options {
  TierProgramOptions program{kProgram, "127.0.0.1:7072"};
  TokenServiceConfig service;

  void AddFlags(FlagTable& flags);
  absl::Status Validate() const;
};

void Options::AddFlags(FlagTable& flags) {
  service.name.clear();
  service.max_rows = 0;
  service.max_queued_rows = 0;
  program.AddFlags(flags);
  flags.Add("name", "name for people; default: host name and port", &service.name);
  flags.Add("device", kDeviceFlagHelp, &service.device);
  flags.Add("arithmetic", ArithmeticFlagHelp(), &service.arithmetic);
  flags.Add("early_launch", kEarlyLaunchFlagHelp, &service.early_launch);
  flags.Add("max_rows", "rows of a batch; 0: 64, on a CUDA device 1024", &service.max_rows);
  flags.Add("max_queued_rows", "rows that wait; more are refused; 0: four batches, at least 1024",
            &service.max_queued_rows);
  program.AddServingFlags(flags);
  FaultInjection& faults = service.faults;
  flags.Subject("Tests");
  flags.Add("allow_fault_injection", "let --inject make this worker misbehave", &faults.allowed);
  flags.Add("inject_wrong_bits", "share of rows that are answered wrongly", &faults.wrong_bits);
  flags.Add("inject_errors", "share of rows that are answered INTERNAL", &faults.errors);
  flags.Add("inject_crash_seed", "a row with this seed kills this worker", &faults.crash_seed);
  flags.Add("inject_hang_seed", "a row with this seed hangs this worker", &faults.hang_seed);
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
                     return TokenService::Create(options.service, *checkpoint, pool.get());
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
