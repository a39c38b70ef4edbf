#include "app/embedded.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/program.h"
#include "gateway/end_serving.h"
#include "gateway/http/chat_format.h"
#include "model/device.h"
#include "rpc/listen_address.h"

namespace blockserve {
namespace {

constexpr char kTiersAddress[] = "inproc:tiers";
// Both tiers are in this process: they are there in milliseconds, or something is broken.
constexpr absl::Duration kTiersStart = absl::Seconds(60);

BlockServiceConfig BlockConfigOf(const EmbeddedOptions& options) {
  BlockServiceConfig config;
  config.device = options.device;
  config.arithmetic = options.arithmetic;
  config.early_launch = options.early_launch;
  config.kv_memory_mib = options.kv_memory_mib;
  config.max_sequences = options.max_sequences;
  config.prefill_chunk = options.prefill_chunk;
  config.prefix_cache = options.prefix_cache;
  if (options.groups != 0) config.groups = options.groups;
  config.allow_long_contexts = options.gateway.allow_beyond_positions;
  config.metrics = options.metrics;
  return config;
}

TokenServiceConfig TokenConfigOf(const EmbeddedOptions& options) {
  TokenServiceConfig config;
  config.name = "token";
  config.metrics = options.metrics;
  config.device = options.device;
  config.arithmetic = options.arithmetic;
  config.early_launch = options.early_launch;
  config.max_rows = options.max_rows;
  config.max_queued_rows = 0;
  return config;
}

}  // namespace

absl::Status EmbeddedOptions::Validate() const {
  if (model_directory.empty()) return absl::InvalidArgumentError("--model is missing");
  if (threads < 0 || threads > kMaxThreads) {
    return absl::InvalidArgumentError(
        absl::StrCat("--threads is ", threads, "; it must be 0 to ", kMaxThreads));
  }
  if (absl::Status status = BlockConfigOf(*this).Validate(); !status.ok()) return status;
  if (absl::Status status = TokenConfigOf(*this).Validate(); !status.ok()) return status;
  if (absl::Status status = CheckTlsFiles(tls); !status.ok()) return status;
  if (!tiers_address.empty() && !gateway.api_keys.empty() && tls.client_ca.empty() &&
      !IsLoopback(tiers_address)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tiers-address is ", tiers_address,
                     ": whoever reaches it needs no API key; with keys it must be an address of "
                     "this machine alone, or have --tls-client-ca"));
  }
  if (absl::Status status = http.Validate(); !status.ok()) return status;
  return Embedded::GatewayOf(*this).Validate();
}

GatewayConfig Embedded::GatewayOf(const EmbeddedOptions& options) {
  GatewayConfig config = options.gateway;
  config.model_directory = options.model_directory;
  config.metrics = options.metrics;
  config.block_services = kTiersAddress;
  config.token_services = kTiersAddress;
  return config;
}

absl::StatusOr<std::unique_ptr<Embedded>> Embedded::Start(const EmbeddedOptions& options) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  std::unique_ptr<Embedded> embedded(new Embedded);
  GatewayConfig gateway_config = GatewayOf(options);
  // Before the model is loaded, which may take minutes.
  absl::StatusOr<GatewayFiles> files = GatewayFiles::Read(gateway_config);
  if (!files.ok()) return files.status();
  if (!options.http.server.listen_address.empty()) {
    // The front reads it again, and keeps it.
    const absl::Status format = ChatFormat::Load(options.model_directory).status();
    if (!format.ok() && !absl::IsNotFound(format)) return format;
  }

  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open(options.model_directory);
  if (!checkpoint.ok()) return checkpoint.status();
  embedded->checkpoint_ = *std::move(checkpoint);
  const int cores = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  embedded->pool_ = std::make_unique<ThreadPool>(options.threads > 0 ? options.threads : cores);

  // Chosen once, for both tiers.
  const absl::StatusOr<EngineChoice> choice =
      ChooseEngine(options.device, options.arithmetic, *embedded->checkpoint_);
  if (!choice.ok()) return choice.status();
  const std::string device = DeviceName(choice->cuda_device);
  const std::string arithmetic(ArithmeticName(choice->arithmetic));

  BlockServiceConfig block_config = BlockConfigOf(options);
  block_config.device = device;
  block_config.arithmetic = arithmetic;
  // On the CPU the tiers take turns on one pool: two groups would only halve the batches.
  if (options.groups == 0) block_config.groups = choice->cuda_device >= 0 ? 2 : 1;
  absl::StatusOr<std::unique_ptr<BlockService>> block =
      BlockService::Create(block_config, *embedded->checkpoint_, embedded->pool_.get());
  if (!block.ok()) return block.status();
  embedded->block_ = *std::move(block);

  TokenServiceConfig token_config = TokenConfigOf(options);
  token_config.device = device;
  token_config.arithmetic = arithmetic;
  absl::StatusOr<std::unique_ptr<TokenService>> token =
      TokenService::Create(token_config, *embedded->checkpoint_, embedded->pool_.get());
  if (!token.ok()) return token.status();
  embedded->token_ = *std::move(token);
  // Their parts of the model are hashed: as long as it takes to read a large one from its disk once
  // more, and till then nothing can be asked of them.
  embedded->block_->WaitUntilKnown();
  embedded->token_->WaitUntilKnown();
  if (options.loaded != nullptr) options.loaded();

  ServerOptions tiers_options;
  tiers_options.listen_address = options.tiers_address;
  tiers_options.listen_flag = "--tiers-address";
  tiers_options.tls = options.tls;
  tiers_options.channelz = options.gateway.api_keys.empty();
  absl::StatusOr<std::unique_ptr<RpcServer>> tiers =
      RpcServer::Start(tiers_options, {embedded->block_->service(), embedded->token_->service()});
  if (!tiers.ok()) return tiers.status();
  embedded->tiers_ = *std::move(tiers);
  embedded->tiers_->SetServing(true);

  gateway_config.channel_factory = [tiers = embedded->tiers_.get()](const std::string&) {
    return tiers->InProcessChannel();
  };
  absl::StatusOr<std::unique_ptr<Gateway>> gateway =
      Gateway::Create(gateway_config, *std::move(files));
  if (!gateway.ok()) return gateway.status();
  embedded->gateway_ = *std::move(gateway);

  ServerOptions server_options;
  server_options.listen_address = options.grpc_address;
  server_options.listen_flag = "--grpc-address";
  server_options.port_use = options.port_use;
  server_options.tls = options.tls;
  server_options.channelz = options.gateway.api_keys.empty();
  absl::StatusOr<std::unique_ptr<RpcServer>> front =
      RpcServer::Start(server_options, {embedded->gateway_->service()});
  if (!front.ok()) return front.status();
  embedded->front_ = *std::move(front);

  if (!options.http.server.listen_address.empty()) {
    HttpFrontOptions http_options = options.http;
    http_options.tls = options.tls;
    if (options.metrics != nullptr) {
      http_options.api.metrics = [metrics = options.metrics] { return metrics->RenderText(); };
    }
    absl::StatusOr<std::unique_ptr<HttpFront>> http =
        HttpFront::Start(http_options, *embedded->gateway_);
    if (!http.ok()) return http.status();
    embedded->http_ = *std::move(http);
  }

  if (absl::Status status = embedded->WaitForTiers(); !status.ok()) return status;
  embedded->front_->SetServing(true);
  if (embedded->http_ != nullptr) embedded->http_->SetServing(true);
  return embedded;
}

absl::Status Embedded::WaitForTiers() {
  // The gateway connects by itself and tells nobody when; this is the one place that waits for it.
  const absl::Time limit = SteadyClock().Now() + kTiersStart;
  while (true) {
    v1::GetModelResponse status;
    gateway_->core().FillModelStatus(status);
    if (status.block_services() > 0 && status.token_workers() > 0) return absl::OkStatus();
    if (SteadyClock().Now() > limit) {
      return absl::InternalError(
          absl::StrCat("the tiers of this process did not come up: ", status.block_services(),
                       " block services, ", status.token_workers(), " token workers"));
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
}

void Embedded::Stop(absl::Duration grace) {
  if (std::exchange(stopped_, true)) return;
  const absl::Time end = SteadyClock().Now() + grace;
  if (front_ != nullptr) EndServing(*front_, http_.get(), *gateway_, grace);
  if (gateway_ != nullptr) gateway_->Stop();
  // Later than the own gateway, whose requests have nowhere else to go.
  if (tiers_ != nullptr && !tiers_->address().empty()) DrainTiers(end - SteadyClock().Now());
  if (token_ != nullptr) token_->Stop();
  if (block_ != nullptr) block_->Stop();
  if (tiers_ != nullptr) tiers_->Shutdown(absl::ZeroDuration());
}

void Embedded::DrainTiers(absl::Duration timeout) {
  const absl::Time end = SteadyClock().Now() + timeout;
  tiers_->SetServing(false);
  block_->StartDraining();
  // The sequences that are here still need their blocks written.
  block_->WaitUntilDrained(end - SteadyClock().Now());
  token_->StartDraining();
  token_->WaitUntilDrained(end - SteadyClock().Now());
}

Embedded::~Embedded() { Stop(absl::ZeroDuration()); }

}  // namespace blockserve
