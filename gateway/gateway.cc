#include "gateway/gateway.h"

#include <filesystem>
#include <future>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/logging.h"
#include "common/random_bits.h"
#include "gateway/admitted_core.h"
#include "gateway/core.h"
#include "gateway/discovery.h"
#include "gateway/dns_resolver.h"
#include "gateway/generation_service.h"
#include "gateway/limits_file.h"
#include "gateway/metric_definitions.h"
#include "gateway/stream_writers.h"
#include "gateway/tier_client.h"
#include "gateway/tier_metrics.h"
#include "gateway/validate.h"
#include "model/fingerprint.h"
#include "rpc/asio_loop.h"

namespace blockserve {
namespace {

// Between two looks at the workers.
constexpr absl::Duration kTierMetricsInterval = absl::Milliseconds(100);
// For block replicas to take what they are told at the end: which sequences are over.
constexpr absl::Duration kDisconnectTimeout = absl::Seconds(1);

// Runs `task` on the loop and returns when it is done. Not from the loop's thread.
void RunOnLoop(Loop& loop, const std::function<void()>& task) {
  std::promise<void> done;
  loop.Post([&] {
    task();
    done.set_value();
  });
  done.get_future().wait();
}

}  // namespace

absl::StatusOr<AdmissionOptions> GatewayConfig::Admission() const {
  AdmissionOptions options;
  options.max_queued = max_queued_requests;
  options.max_starting = max_starting_requests;
  options.live.most = max_live_choices;
  options.live.batches = max_live_batches;
  if (!limits_file.empty()) {
    if (absl::Status status = ReadLimitsFile(limits_file, options); !status.ok()) {
      return absl::Status(status.code(), absl::StrCat("--limits-file ", status.message()));
    }
  }
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  return options;
}

absl::Status GatewayConfig::Validate() const {
  if (model_directory.empty()) return absl::InvalidArgumentError("--model is missing");
  if (absl::Status status = tier_tls.Validate(); !status.ok()) return status;
  const auto positive = [](absl::Duration duration, absl::string_view flag) {
    if (duration > absl::ZeroDuration()) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(flag, " must be above zero"));
  };
  if (auto status = positive(resolve_interval, "--resolve-interval"); !status.ok()) return status;
  if (auto status = positive(progress_bound, "--progress-bound"); !status.ok()) return status;
  for (const auto& [fraction, flag] :
       {std::make_pair(audit_fraction, "--audit-fraction"),
        std::make_pair(audit_context_fraction, "--audit-context-fraction")}) {
    if (!(fraction >= 0 && fraction <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat(flag, " must be 0 to 1"));
    }
  }
  if (audit_hold && audit_fraction == 0 && audit_context_fraction == 0) {
    return absl::InvalidArgumentError("--audit-hold holds nothing without --audit-fraction");
  }
  if (slow_reader_timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--slow-reader-timeout must be more than 0");
  }
  if (stream_interval < 1 || stream_interval > kMaxStreamInterval) {
    return absl::InvalidArgumentError(absl::StrCat("--stream-interval is ", stream_interval,
                                                   "; it must be 1 to ", kMaxStreamInterval));
  }
  if (grpc_write_threads < 1 || grpc_write_threads > 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("--grpc-write-threads is ", grpc_write_threads, "; it must be 1 to 64"));
  }
  if (tier_wait < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("--tier-wait must not be negative");
  }
  if (absl::Status status = Admission().status(); !status.ok()) return status;
  if (!(trace_sample_ratio >= 0 && trace_sample_ratio <= 1)) {
    return absl::InvalidArgumentError("--trace-sample-ratio must be 0 to 1");
  }
  if (auto targets = ParseTargets(block_services, "--block-services"); !targets.ok()) {
    return targets.status();
  }
  return ParseTargets(token_services, "--token-services").status();
}

struct Gateway::Impl {
  ~Impl() {
    service.reset();  // and with it the threads that call the core
    Stop();
    // What lives on the loop ends on the loop.
    RunOnLoop(loop, [this] {
      core.reset();
      admitted.reset();
      tier_metrics.reset();
    });
    loop.Join();
  }

  void Stop() {
    const auto disconnected = std::make_shared<std::promise<void>>();
    RunOnLoop(loop, [this, disconnected] {
      EndRequests();
      if (core == nullptr) return disconnected->set_value();
      core->block_tier().WhenDisconnected([disconnected] { disconnected->set_value(); });
    });
    disconnected->get_future().wait_for(absl::ToChronoMilliseconds(kDisconnectTimeout));
  }

  // On the loop.
  void EndRequests() {
    block_discovery.reset();
    token_discovery.reset();
    const absl::Status stopping = absl::UnavailableError("the gateway is stopping");
    if (admitted != nullptr) admitted->EndQueued(stopping);
    if (core != nullptr) core->EndAll(stopping);
  }

  void UpdateTierMetrics() {
    if (core == nullptr || tier_metrics == nullptr) return;
    tier_metrics->Update(core->block_tier(), core->token_tier(), core->row_audit().stats(),
                         loop.Now());
    loop.PostAfter(kTierMetricsInterval, [this] { UpdateTierMetrics(); });
  }

  std::string model_directory;
  ModelConfig model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<RequestValidator> validator;
  std::shared_ptr<ApiKeys> api_keys;       // null: everybody may call
  std::unique_ptr<StreamWriters> writers;  // before `loop`, whose tasks know it
  std::unique_ptr<GenerationService> service;
  AsioLoop tier_writer{"tier-write"};  // starts large writes to the tiers; likewise
  AsioLoop loop{"gateway-loop"};
  std::unique_ptr<Core> core;
  std::unique_ptr<AdmittedCore> admitted;  // before it
  std::unique_ptr<TierMetrics> tier_metrics;
  std::unique_ptr<Discovery> block_discovery;
  std::unique_ptr<Discovery> token_discovery;
};

Gateway::Gateway(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Gateway::~Gateway() = default;

absl::StatusOr<GatewayFiles> GatewayFiles::Read(const GatewayConfig& config) {
  GatewayFiles files;
  if (!config.api_keys.empty()) {
    absl::StatusOr<std::shared_ptr<ApiKeys>> keys = ApiKeys::Load(config.api_keys, "--api-keys");
    if (!keys.ok()) return keys.status();
    files.api_keys = *std::move(keys);
  }
  absl::StatusOr<ModelConfig> model = LoadModelConfig(config.model_directory);
  if (!model.ok()) return model.status();
  files.model = *std::move(model);
  // Every request needs them; of the block decoder each needs its own number (RequestValidator).
  const int64_t needed = TokenPositions(files.model);
  if (needed > files.model.token.max_positions && !config.allow_beyond_positions) {
    return absl::InvalidArgumentError(absl::StrCat(
        config.model_directory, "/config.json: token_decoder.max_position_embeddings is ",
        files.model.token.max_positions, "; a block takes ", needed,
        " positions of it, for which servers need --allow-long-contexts"));
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = LoadTokenizer(config.model_directory);
  if (!tokenizer.ok() && !absl::IsNotFound(tokenizer.status())) return tokenizer.status();
  if (tokenizer.ok()) files.tokenizer = *std::move(tokenizer);
  absl::StatusOr<std::string> tokenizer_hash = TokenizerHash(config.model_directory);
  if (!tokenizer_hash.ok()) return tokenizer_hash.status();
  files.tokenizer_hash = *std::move(tokenizer_hash);
  return files;
}

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Create(const GatewayConfig& config) {
  if (absl::Status status = config.Validate(); !status.ok()) return status;
  absl::StatusOr<GatewayFiles> files = GatewayFiles::Read(config);
  if (!files.ok()) return files.status();
  return Create(config, *std::move(files));
}

absl::StatusOr<std::unique_ptr<Gateway>> Gateway::Create(const GatewayConfig& config,
                                                         GatewayFiles files) {
  if (absl::Status status = config.Validate(); !status.ok()) return status;
  const std::vector<DiscoveryTarget> block_targets =
      *ParseTargets(config.block_services, "--block-services");
  const std::vector<DiscoveryTarget> token_targets =
      *ParseTargets(config.token_services, "--token-services");

  auto impl = std::make_unique<Impl>();
  impl->model_directory = config.model_directory;
  impl->model = std::move(files.model);
  impl->api_keys = std::move(files.api_keys);
  impl->tokenizer = std::move(files.tokenizer);
  ValidatorOptions validator_options;
  validator_options.model_name = config.model_name;
  if (validator_options.model_name.empty()) {
    std::error_code ignored;  // "." has a name, too
    std::filesystem::path folder =
        std::filesystem::absolute(config.model_directory, ignored).lexically_normal();
    if (!folder.has_filename()) folder = folder.parent_path();
    validator_options.model_name = folder.filename().string();
  }
  validator_options.allow_beyond_positions = config.allow_beyond_positions;
  validator_options.stream_interval = config.stream_interval;
  impl->validator =
      std::make_unique<RequestValidator>(impl->model, impl->tokenizer.get(), validator_options);

  ExpectedModel expected;
  expected.config_hash = ConfigHash(impl->model);
  expected.tokenizer_hash = std::move(files.tokenizer_hash);
  expected.block_length = impl->model.block_length;
  expected.context_width = impl->model.block.hidden_size;
  expected.vocab_size = impl->model.vocab_size;
  CoreOptions core_options;
  core_options.tier.tier_wait = config.tier_wait;
  core_options.tier.progress_bound = config.progress_bound;
  core_options.tier.audit = {.rows = config.audit_fraction,
                             .contexts = config.audit_context_fraction,
                             .hold = config.audit_hold};
  // As many as admission has starting at a time.
  core_options.tier.max_queued = int64_t{2} * config.max_starting_requests;
  // What is over may still be counted there when admission sends the next.
  core_options.max_live_choices = int64_t{2} * config.max_live_choices;
  absl::StatusOr<AdmissionOptions> admission = config.Admission();
  if (!admission.ok()) return admission.status();
  AdmittedCoreOptions admitted_options;
  admitted_options.admission = *std::move(admission);
  admitted_options.block_length = impl->model.block_length;
  admitted_options.slow_reader_timeout = config.slow_reader_timeout;
  if (ApiKeys* const keys = impl->api_keys.get()) {
    // What a key's line leaves out, or says 0 of, is as --limits-file has it.
    admitted_options.admission.limits_of = [keys](const std::string& name, KeyLimits& limits) {
      const ApiKeyLimits own = keys->Limits(name);
      if (own.max_requests > 0) limits.max_requests = own.max_requests;
      if (own.max_tokens > 0) limits.max_tokens = own.max_tokens;
      if (own.requests_per_second > 0) {
        limits.requests_per_second = own.requests_per_second;
        limits.burst = own.burst;
      }
      if (own.weight != ApiKeyLimits().weight) limits.weight = own.weight;
    };
    admitted_options.owns_prefix_cache = [keys](const std::string& name) {
      return keys->OwnsPrefixCache(name);
    };
  }
  admitted_options.log_requests = config.log_requests;
  admitted_options.trace_sample_ratio = config.trace_sample_ratio;
  admitted_options.trace_seed = RandomBits();
  if (config.log_prompts) {
    admitted_options.describe_prompt = [tokenizer = impl->tokenizer.get()](
                                           const std::vector<int32_t>& prompt) {
      if (tokenizer != nullptr) {
        absl::StatusOr<std::string> text = tokenizer->Decode(prompt, /*skip_special_tokens=*/false);
        if (text.ok()) return *std::move(text);
      }
      return absl::StrJoin(prompt, ",");
    };
  }
  RequestMetrics metrics;
  if (config.metrics != nullptr) {
    config.metrics->Declare(kGatewayMetrics);
    metrics = RequestMetrics(*config.metrics);
  }

  TierClientOptions client;
  client.hello.set_protocol_version(kTierProtocolVersion);
  client.hello.set_gateway_incarnation(RandomBits());
  client.hello.set_config_hash(expected.config_hash);
  client.hello.set_tokenizer_hash(expected.tokenizer_hash);
  client.channel_factory = config.channel_factory;
  if (!client.channel_factory) {
    absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials =
        MakeChannelCredentials(config.tier_tls);
    if (!credentials.ok()) return credentials.status();
    client.channel_factory = [credentials = *std::move(credentials),
                              name = config.tier_tls.server_name](const std::string& address) {
      return MakeTierChannel(address, credentials, name);
    };
  }
  client.write_large = [writer = &impl->tier_writer](std::function<void()> write) {
    writer->Post(std::move(write));
  };
  // Each connection has a jitter of its own.
  const auto seeded = [client](const std::string& address) {
    TierClientOptions options = client;
    options.seed = client.hello.gateway_incarnation() ^ std::hash<std::string>()(address);
    return options;
  };

  Impl& made = *impl;
  RunOnLoop(made.loop, [&] {
    AsioLoop& loop = made.loop;
    made.core = std::make_unique<Core>(
        loop, made.model, made.tokenizer.get(), expected, core_options,
        [&loop, seeded](const std::string& address) {
          return std::make_unique<TierClient<BlockProtocol>>(loop, address, seeded(address));
        },
        [&loop, seeded](const std::string& address) {
          return std::make_unique<TierClient<TokenProtocol>>(loop, address, seeded(address));
        });
    // Twice what this gateway alone lets wait: what a worker has beyond is no sign of the others.
    const double most_waiting = 2 * admitted_options.admission.live.waiting_batches();
    admitted_options.capacity = [&core = *made.core, most_waiting] {
      TokenCapacity capacity = core.token_tier().Capacity(most_waiting);
      capacity.scoring_rows = core.scoring_rows().under_way();
      return capacity;
    };
    made.admitted = std::make_unique<AdmittedCore>(loop, *made.core, admitted_options, metrics);
    BlockTier& blocks = made.core->block_tier();
    TokenTier& tokens = made.core->token_tier();
    made.block_discovery = std::make_unique<Discovery>(
        loop, "--block-services", block_targets, config.resolve_interval, MakeDnsResolver(loop),
        Discovery::Listener{[&blocks](const std::string& address) { blocks.AddReplica(address); },
                            [&blocks](const std::string& a) { blocks.RemoveReplica(a); }});
    made.token_discovery = std::make_unique<Discovery>(
        loop, "--token-services", token_targets, config.resolve_interval, MakeDnsResolver(loop),
        Discovery::Listener{[&tokens](const std::string& address) { tokens.AddWorker(address); },
                            [&tokens](const std::string& a) { tokens.RemoveWorker(a); }});
    if (config.metrics != nullptr) {
      made.tier_metrics = std::make_unique<TierMetrics>(*config.metrics, loop.Now());
      made.UpdateTierMetrics();
    }
    made.block_discovery->Start();
    made.token_discovery->Start();
  });
  impl->writers = std::make_unique<StreamWriters>(impl->loop, config.grpc_write_threads);
  impl->service = std::make_unique<GenerationService>(impl->admitted.get(), impl->validator.get(),
                                                      impl->api_keys.get(), impl->writers.get());
  return std::unique_ptr<Gateway>(new Gateway(std::move(impl)));
}

grpc::Service* Gateway::service() { return impl_->service.get(); }
ApiKeys* Gateway::api_keys() { return impl_->api_keys.get(); }
GenerationCore& Gateway::core() { return *impl_->admitted; }
void Gateway::StartDraining(absl::Duration time) {
  impl_->admitted->StartDraining();
  impl_->loop.PostAfter(time, [impl = impl_.get()] { impl->EndRequests(); });
}
GenerationCore& Gateway::core_behind_admission() { return *impl_->core; }
const RequestValidator& Gateway::validator() const { return *impl_->validator; }
const std::string& Gateway::model_directory() const { return impl_->model_directory; }
void Gateway::ReadStatus(std::function<void(DeploymentStatus)> done) {
  impl_->loop.Post([impl = impl_.get(), done = std::move(done)] {
    DeploymentStatus status;
    if (impl->core != nullptr) {
      status.block = impl->core->block_tier().WorkerStatuses();
      status.token = impl->core->token_tier().WorkerStatuses();
      status.live_requests = impl->admitted->live_requests();
    }
    done(std::move(status));
  });
}
void Gateway::Stop() { impl_->Stop(); }
std::shared_ptr<const Progress> Gateway::progress() const { return impl_->loop.progress(); }

}  // namespace blockserve
