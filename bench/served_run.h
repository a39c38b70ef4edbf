// The same work over real connections: `blockserve serve`, which has both tiers in one process, or
// block service and token service in processes of their own; with as many gateways as asked for,
// and driven by one client with a stream for each sequence.
#ifndef BLOCKSERVE_BENCH_SERVED_RUN_H_
#define BLOCKSERVE_BENCH_SERVED_RUN_H_

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "bench/processes.h"
#include "bench/work.h"
#include "client/client.h"

namespace blockserve {

struct ServedOptions {
  std::string model;  // folder
  std::string device = "auto";
  std::string arithmetic = "auto";
  bool early_launch = false;
  int threads = 0;  // of each process that computes; 0: one for each core
  // Of sequences, in the block service: 1 where the tiers share their cores, since they cannot work
  // at the same time anyway, and two groups would only halve the batches.
  int groups = 1;
  // One gateway runs its policy on one thread, which a GPU's tokens can be too many for. The first
  // one of the one process is its own.
  int gateways = 1;
  int stream_interval = 1;  // tokens of a sequence that are sent together
  int token_rows = 64;
  int64_t kv_memory_mib = 0;
  bool allow_long_contexts = false;
  int64_t sequences = 0;
};

struct ServedRunResult {
  double seconds = 0;                       // from the first request to the last event
  std::vector<double> first_token_seconds;  // of each sequence
  std::vector<double> between_blocks_seconds;
  uint64_t tokens_hash = 0;         // of all sequences' tokens in their order
  std::vector<double> cpu_seconds;  // of each process, then the client's
};

class ServedModel {
 public:
  // Starts the processes and waits until both tiers are connected.
  static absl::StatusOr<std::unique_ptr<ServedModel>> Start(const ServedOptions& options,
                                                            bool three_processes);
  ~ServedModel();

  // `prompts` [sequences]. Greedy, the end-of-text id does not stop.
  absl::StatusOr<ServedRunResult> Run(const std::vector<std::vector<int32_t>>& prompts,
                                      int64_t generate_tokens);
  // Names of the processes, then "client".
  std::vector<std::string> ProcessNames() const;

 private:
  ServedModel() = default;
  absl::StatusOr<std::string> StartProgram(const std::string& program,
                                           std::vector<std::string> arguments,
                                           const std::string& address_flag);
  // A program that clients are served by.
  absl::Status StartServer(const std::string& program, std::vector<std::string> arguments,
                           const std::string& address_flag);
  absl::Status Connect(const std::string& address);
  absl::Status WaitUntilConnected(const std::shared_ptr<grpc::Channel>& channel);
  std::vector<double> CpuSeconds() const;

  std::string log_folder_;
  std::vector<std::shared_ptr<grpc::Channel>> channels_;  // the sequences take turns at them
  std::vector<ChildProcess> processes_;                   // the gateways last
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_SERVED_RUN_H_
