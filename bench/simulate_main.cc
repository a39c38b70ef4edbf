// blockserve-simulate: many token workers and block replicas in one process, on engines that take
// the time of a measured table and compute nothing. For measuring gateways, and for trying out
// deployments wider than the machine.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "bench/load_report.h"
#include "block_service/block_service.h"
#include "common/clock.h"
#include "common/flag_table.h"
#include "common/logging.h"
#include "common/program.h"
#include "model/config.h"
#include "model/fingerprint.h"
#include "model/simulated_engine.h"
#include "rpc/server.h"
#include "rpc/server_logging.h"
#include "rpc/signals.h"
#include "token_service/token_service.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-simulate";
constexpr absl::string_view kUsage =
    "blockserve-simulate --model DIR [--token-workers N] [--block-replicas M] [flags]\n"
    "Workers of either tier that take the time of a table and compute nothing, in one process.";
constexpr absl::Duration kDrainTimeout = absl::Seconds(10);
constexpr absl::Duration kShutdownGrace = absl::Seconds(1);
constexpr int32_t kMostWorkers = 10'000;

struct SimulateConfig {
  std::string model;
  int32_t token_workers = 0;
  int32_t block_replicas = 0;
  std::string token_listen = "127.0.0.1:7200";
  std::string block_listen = "127.0.0.1:7100";
  int32_t token_in_flight = 1;
  int32_t block_in_flight = 1;
  bool one_card = false;
  std::string token_steps = "0";
  std::string block_steps = "0";
  TokenServiceConfig token;
  BlockServiceConfig block;
  std::string stats;
  LoggingOptions logging = {.program = std::string(kProgram), .level = "warning"};

  SimulateConfig() {
    block.kv_pages = 65536;
    block.max_sequences = 4096;
  }
  void AddFlags(FlagTable& flags);
  absl::Status Validate() const {
    if (model.empty()) return absl::InvalidArgumentError("--model is needed");
    for (const auto& [flag, count] : {std::pair("--token-workers", token_workers),
                                      std::pair("--block-replicas", block_replicas)}) {
      if (count < 0 || count > kMostWorkers) {
        return absl::InvalidArgumentError(
            absl::StrCat(flag, " is ", count, "; it must be 0 to ", kMostWorkers));
      }
    }
    if (token_workers + block_replicas == 0) {
      return absl::InvalidArgumentError("one of --token-workers and --block-replicas is needed");
    }
    for (const auto& [flag, count] : {std::pair("--token-in-flight", token_in_flight),
                                      std::pair("--block-in-flight", block_in_flight)}) {
      if (count < 1 || count > 16) {
        return absl::InvalidArgumentError(
            absl::StrCat(flag, " is ", count, "; it must be 1 to 16"));
      }
    }
    if (absl::Status status = token.Validate(); !status.ok()) return status;
    return block.Validate();
  }
};

void SimulateConfig::AddFlags(FlagTable& flags) {
  flags.Add("model", "folder with config.json (and tokenizer.json): the shapes", &model);
  flags.Add("token_workers", "so many, on ports from that of --token-listen on", &token_workers);
  flags.Add("token_listen", "host:port of the first token worker", &token_listen);
  flags.Add("token_steps", "milliseconds of a step, or a table of rows and milliseconds",
            &token_steps);
  flags.Add("max_rows", "rows of a batch", &token.max_rows);
  flags.Add("token_in_flight",
            "batches that a worker's engine takes at a time, of max-rows together: 2 as on a GPU",
            &token_in_flight);
  flags.Add("block_in_flight", "steps that a replica's engine takes at a time", &block_in_flight);
  flags.Add("one_card", "the steps of all workers follow one another, as on one GPU", &one_card);
  flags.Add("max_queued_rows", "rows that wait at a worker; more are refused",
            &token.max_queued_rows);
  flags.Add("block_replicas", "so many, on ports from that of --block-listen on", &block_replicas);
  flags.Add("block_listen", "host:port of the first block replica", &block_listen);
  flags.Add("block_steps", "likewise, by blocks of a step", &block_steps);
  flags.Add("kv_pages", "KV pages of a replica", &block.kv_pages);
  flags.Add("max_sequences", "sequences open at a time on a replica", &block.max_sequences);
  flags.Add("prefill_chunk", "prompt blocks of a step", &block.prefill_chunk);
  flags.Add("groups", "groups of sequences that take turns", &block.groups);
  for (const absl::string_view flag :
       {"token_listen", "token_steps", "max_rows", "token_in_flight", "max_queued_rows"}) {
    flags.Needs(flag, "token_workers");
  }
  for (const absl::string_view flag : {"block_listen", "block_steps", "block_in_flight", "kv_pages",
                                       "max_sequences", "prefill_chunk", "groups"}) {
    flags.Needs(flag, "block_replicas");
  }
  flags.Add("stats", "JSON file, written at the end: steps and rows of each worker", &stats);
  flags.Add("log_level", "debug, info, warning, error or off", &logging.level);
}

// The address so many ports further.
absl::StatusOr<std::string> Offset(absl::string_view flag, const std::string& address, int offset) {
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || !absl::SimpleAtoi(address.substr(colon + 1), &port) ||
      port < 1 || port + offset > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(
        flag, " is \"", address, "\": host:port is needed, and ports enough from there"));
  }
  return absl::StrCat(address.substr(0, colon), ":", port + offset);
}

struct TokenWorkerProcess {
  SimulatedTokenEngine* engine = nullptr;  // the service's
  std::unique_ptr<TokenService> service;
  std::unique_ptr<RpcServer> server;
};

struct BlockReplicaProcess {
  SimulatedBlockEngine* engine = nullptr;  // the service's
  std::unique_ptr<BlockService> service;
  std::unique_ptr<RpcServer> server;
};

class Simulation {
 public:
  absl::Status Start(SimulateConfig config) {
    absl::StatusOr<ModelConfig> model = LoadModelConfig(config.model);
    if (!model.ok()) return model.status();
    model_ = *std::move(model);
    config_hash_ = ConfigHash(model_);
    absl::StatusOr<std::string> tokenizer_hash = TokenizerHash(config.model);
    if (!tokenizer_hash.ok()) return tokenizer_hash.status();
    tokenizer_hash_ = *std::move(tokenizer_hash);
    if (config.one_card) card_ = std::make_shared<SimulatedDevice>();
    if (auto status = StartBlocks(config); !status.ok()) return status;
    return StartTokens(config);
  }

  void Stop() {
    for (TokenWorkerProcess& one : tokens_) {
      one.server->SetServing(false);
      one.service->StartDraining();
    }
    for (BlockReplicaProcess& one : blocks_) {
      one.server->SetServing(false);
      one.service->StartDraining();
    }
    const absl::Time limit = SteadyClock().Now() + kDrainTimeout;
    const auto left = [limit] {
      return std::max(absl::ZeroDuration(), limit - SteadyClock().Now());
    };
    for (TokenWorkerProcess& one : tokens_) (void)one.service->WaitUntilDrained(left());
    for (BlockReplicaProcess& one : blocks_) (void)one.service->WaitUntilDrained(left());
    for (TokenWorkerProcess& one : tokens_) one.service->Stop();
    for (BlockReplicaProcess& one : blocks_) one.service->Stop();
    for (TokenWorkerProcess& one : tokens_) one.server->Shutdown(kShutdownGrace);
    for (BlockReplicaProcess& one : blocks_) one.server->Shutdown(kShutdownGrace);
  }

  nlohmann::ordered_json Stats() const {
    const auto work = [](const std::string& address, const SimulatedWork& work) {
      return nlohmann::ordered_json{{"address", address},
                                    {"steps", work.steps.load()},
                                    {"rows", work.rows.load()},
                                    {"busy_s", static_cast<double>(work.busy_us.load()) / 1e6}};
    };
    nlohmann::ordered_json json;
    json["token_workers"] = nlohmann::ordered_json::array();
    json["block_replicas"] = nlohmann::ordered_json::array();
    for (const TokenWorkerProcess& one : tokens_) {
      json["token_workers"].push_back(work(one.server->address(), one.engine->work()));
    }
    for (const BlockReplicaProcess& one : blocks_) {
      json["block_replicas"].push_back(work(one.server->address(), one.engine->work()));
    }
    return json;
  }

 private:
  absl::StatusOr<std::unique_ptr<RpcServer>> Listen(absl::string_view flag, std::string address,
                                                    grpc::Service* service) {
    ServerOptions options;
    options.listen_address = std::move(address);
    options.listen_flag = std::string(flag);
    absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start(options, {service});
    if (server.ok()) (*server)->SetServing(true);
    return server;
  }

  absl::Status StartTokens(const SimulateConfig& config) {
    absl::StatusOr<StepTable> table = StepTable::Parse(config.token_steps);
    if (!table.ok()) return WithFlag("--token-steps", table.status());
    for (int i = 0; i < config.token_workers; ++i) {
      absl::StatusOr<std::string> address = Offset("--token-listen", config.token_listen, i);
      if (!address.ok()) return address.status();
      TokenWorkerProcess one;
      auto engine = std::make_unique<SimulatedTokenEngine>(model_, *table, config.token.max_rows,
                                                           config.token_in_flight, card_);
      one.engine = engine.get();
      TokenServiceConfig service_config = config.token;
      service_config.name = *address;
      TokenServiceIdentity identity;
      identity.config_hash = config_hash_;
      identity.tokenizer_hash = tokenizer_hash_;
      identity.numeric_id = "simulated";
      identity.part_hash = [] { return std::string("simulated"); };
      absl::StatusOr<std::unique_ptr<TokenService>> service =
          TokenService::CreateOnEngine(service_config, std::move(engine), std::move(identity));
      if (!service.ok()) return service.status();
      one.service = *std::move(service);
      absl::StatusOr<std::unique_ptr<RpcServer>> server =
          Listen("--token-listen", *address, one.service->service());
      if (!server.ok()) return server.status();
      one.server = *std::move(server);
      tokens_.push_back(std::move(one));
    }
    return absl::OkStatus();
  }

  absl::Status StartBlocks(const SimulateConfig& config) {
    absl::StatusOr<StepTable> table = StepTable::Parse(config.block_steps);
    if (!table.ok()) return WithFlag("--block-steps", table.status());
    for (int i = 0; i < config.block_replicas; ++i) {
      absl::StatusOr<std::string> address = Offset("--block-listen", config.block_listen, i);
      if (!address.ok()) return address.status();
      BlockReplicaProcess one;
      auto engine =
          std::make_unique<SimulatedBlockEngine>(model_, *table, config.block_in_flight, card_);
      one.engine = engine.get();
      BlockServiceConfig service_config = config.block;
      service_config.name = *address;
      BlockServiceParts parts;
      parts.engine = std::move(engine);
      parts.config_hash = config_hash_;
      parts.tokenizer_hash = tokenizer_hash_;
      parts.numeric_id = "simulated";
      parts.hash_part = [] { return std::string("simulated"); };
      absl::StatusOr<std::unique_ptr<BlockService>> service =
          BlockService::Create(service_config, std::move(parts));
      if (!service.ok()) return service.status();
      one.service = *std::move(service);
      absl::StatusOr<std::unique_ptr<RpcServer>> server =
          Listen("--block-listen", *address, one.service->service());
      if (!server.ok()) return server.status();
      one.server = *std::move(server);
      blocks_.push_back(std::move(one));
    }
    return absl::OkStatus();
  }

  static absl::Status WithFlag(absl::string_view flag, const absl::Status& status) {
    return absl::Status(status.code(), absl::StrCat(flag, ": ", status.message()));
  }

  ModelConfig model_;
  std::string config_hash_;
  std::string tokenizer_hash_;
  std::shared_ptr<SimulatedDevice> card_;  // null: each engine has its own
  std::vector<TokenWorkerProcess> tokens_;
  std::vector<BlockReplicaProcess> blocks_;
};

absl::Status Serve(const SimulateConfig& config, TerminationWaiter& termination) {
  Simulation simulation;
  if (absl::Status status = simulation.Start(config); !status.ok()) return status;
  std::printf("ready: %d token workers, %d block replicas\n", config.token_workers,
              config.block_replicas);
  std::fflush(stdout);
  termination.Wait();
  simulation.Stop();
  if (config.stats.empty()) return absl::OkStatus();
  return WriteFile(config.stats, absl::StrCat(simulation.Stats().dump(1), "\n"));
}

int Main(int argc, char** argv) {
  SimulateConfig config;
  FlagTable flags;
  config.AddFlags(flags);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  absl::Status status = config.Validate();
  if (status.ok()) status = ConfigureServerLogging(config.logging);
  if (!status.ok()) return ReportUsageError(kProgram, status);
  TerminationWaiter termination;  // before any thread
  return ReportFailure(kProgram, Serve(config, termination));
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
