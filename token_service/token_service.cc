#include "token_service/token_service.h"

#include <map>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "blockserve/v1/token_decoder.grpc.pb.h"
#include "common/clock.h"
#include "common/logging.h"
#include "common/mutex.h"
#include "common/random_bits.h"
#include "common/version.h"
#include "model/device.h"
#include "model/fingerprint.h"
#include "rpc/tier_merge.h"
#include "rpc/tier_protocol.h"
#include "token_service/token_session.h"
#include "token_service/token_worker.h"

namespace blockserve {
namespace {

// Beyond so many rows the weights are read seldom enough: arithmetic alone limits.
constexpr int32_t kCpuBatchRows = 64;
constexpr int32_t kCudaBatchRows = 1024;
constexpr int32_t kLeastQueuedRows = 1024;

TokenMetrics MetricsOf(MetricRegistry* registry) {
  if (registry == nullptr) return {};
  registry->Declare(kTokenMetrics);
  return TokenMetrics(*registry);
}

RowQueueOptions QueueOptions(const TokenServiceConfig& config) {
  RowQueueOptions options;
  options.max_rows = config.max_rows;
  options.max_queued_rows = config.max_queued_rows;
  options.head_start_rows = 4 * config.max_rows;
  return options;
}

}  // namespace

absl::Status TokenServiceConfig::Validate() const {
  if (absl::Status status = ValidateDeviceFlags(device, arithmetic); !status.ok()) return status;
  if (max_rows < 0 || max_rows > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-rows is ", max_rows, "; it must be 1 to 4096, or 0 (default)"));
  }
  if (max_queued_rows < 0 || max_queued_rows > 1'000'000) {
    return absl::InvalidArgumentError(absl::StrCat("--max-queued-rows is ", max_queued_rows,
                                                   "; it must be 1 to 1000000, or 0 (default)"));
  }
  return faults.Validate();
}

class TokenService::Impl final : public v1::TokenDecoder::CallbackService {
 public:
  Impl(const TokenServiceConfig& config, std::unique_ptr<TokenEngine> engine,
       TokenServiceIdentity identity)
      : engine_(std::move(engine)),
        numeric_id_(identity.numeric_id),
        metrics_(MetricsOf(config.metrics)),
        worker_(
            QueueOptions(config), *engine_, clock_,
            [this](std::vector<RowAnswer> answers) { Deliver(answers); }, metrics_),
        context_{engine_->config(),
                 clock_,
                 worker_,
                 identity.config_hash,
                 identity.tokenizer_hash,
                 RandomBits(),
                 config.max_reply_bytes} {
    v1::TokenServiceHello& hello = hello_;
    hello.mutable_tier()->set_protocol_version(kTierProtocolVersion);
    hello.mutable_tier()->set_incarnation(RandomBits());
    hello.mutable_tier()->set_config_hash(identity.config_hash);
    hello.mutable_tier()->set_tokenizer_hash(identity.tokenizer_hash);
    hello.mutable_tier()->set_numeric_id(identity.numeric_id);
    hello.mutable_tier()->set_model_digest(identity.model_digest);
    hello.mutable_tier()->set_answers_pings(true);
    hello.mutable_tier()->set_name(config.name);
    hello.mutable_tier()->set_version(absl::StrCat(Version(), "+", Commit()));
    hello.set_block_length(engine_->config().block_length);
    hello.set_context_width(engine_->config().block.hidden_size);
    hello.set_vocab_size(engine_->config().vocab_size);
    hello.set_max_rows(config.max_rows);
    hello.set_max_queued_rows(config.max_queued_rows);
    hash_thread_ = std::thread(
        [this, part_hash = std::move(identity.part_hash)] { HelloIsKnown(part_hash()); });
    if (config.metrics != nullptr) {
      collector_ = config.metrics->OnCollect([this] {
        const WorkerLoad load = worker_.load();
        metrics_.rows_waiting.Set(load.waiting);
        metrics_.rows_running.Set(load.running);
        metrics_.busy.Set(load.busy_share);
        metrics_.streams.Set(stats().streams);
      });
    }
  }

  ~Impl() override {
    collector_.reset();
    Stop();
    WaitUntilKnown();
  }

  grpc::ServerBidiReactor<v1::TokenRequestBatch, v1::TokenReplyBatch>* Run(
      grpc::CallbackServerContext* grpc_context) override {
    TokenServerStream::Options options;
    options.merge = MergeTokenReplies;
    auto stream = TokenServerStream::Create(grpc_context, std::move(options));
    std::shared_ptr<TokenSession> session;
    bool stopped;
    {
      MutexLock lock(&mutex_);
      const StreamId id = ++last_stream_;
      session = std::make_shared<TokenSession>(
          id, stream, context_,
          TokenSession::Hooks{.ask_hello = [this, id] { SayHello(id); },
                              .on_closed = [this, id] { Forget(id); }});
      sessions_[id] = session;
      stopped = stopped_;
    }
    stream->Start(session);
    if (stopped) session->Finish(Stopped());
    return stream.get();
  }

  void WaitUntilKnown() {
    if (hash_thread_.joinable()) hash_thread_.join();
  }

  void StartDraining() {
    const std::vector<RowAnswer> given_back = worker_.StartDraining();
    LogInfo(absl::StrCat("draining: ", given_back.size(),
                         " rows that wait are given back, those being decoded are finished"));
    Deliver(given_back);
    for (const std::shared_ptr<TokenSession>& session : Sessions()) session->AnnounceLoad();
  }

  bool WaitUntilDrained(absl::Duration timeout) { return worker_.WaitUntilIdle(timeout); }

  void Stop() {
    {
      MutexLock lock(&mutex_);
      stopped_ = true;
    }
    worker_.Stop();
    for (const std::shared_ptr<TokenSession>& session : Sessions()) session->Finish(Stopped());
  }

  const std::string& numeric_id() const { return numeric_id_; }
  std::shared_ptr<const Progress> progress() const { return worker_.progress(); }

  Stats stats() const {
    const WorkerLoad load = worker_.load();
    Stats stats;
    stats.steps = load.steps;
    stats.waiting = load.waiting;
    stats.running = load.running;
    MutexLock lock(&mutex_);
    stats.streams = static_cast<int32_t>(sessions_.size());
    return stats;
  }

 private:
  static absl::Status Stopped() { return absl::UnavailableError("the worker has stopped"); }

  std::vector<std::shared_ptr<TokenSession>> Sessions() {
    std::vector<std::shared_ptr<TokenSession>> sessions;
    MutexLock lock(&mutex_);
    for (const auto& [id, session] : sessions_) sessions.push_back(session);
    return sessions;
  }

  void Forget(StreamId id) {
    std::shared_ptr<TokenSession> session;  // freed after the lock
    MutexLock lock(&mutex_);
    const auto found = sessions_.find(id);
    if (found == sessions_.end()) return;
    session = std::move(found->second);
    sessions_.erase(found);
  }

  void HelloIsKnown(std::string part_hash) {
    {
      MutexLock lock(&mutex_);
      hello_.mutable_tier()->set_part_hash(std::move(part_hash));
      hello_known_ = true;
    }
    // A session that was accepted meanwhile asks for itself; saying it twice does nothing.
    for (const std::shared_ptr<TokenSession>& session : Sessions()) session->SayHello(hello_);
  }

  void SayHello(StreamId id) {
    std::shared_ptr<TokenSession> session;
    {
      MutexLock lock(&mutex_);
      const auto found = sessions_.find(id);
      if (!hello_known_ || found == sessions_.end()) return;
      session = found->second;
    }
    session->SayHello(hello_);
  }

  // On the worker's thread.
  void Deliver(const std::vector<RowAnswer>& answers) {
    std::map<StreamId, std::vector<const RowAnswer*>> by_stream;
    for (const RowAnswer& answer : answers) by_stream[answer.stream].push_back(&answer);
    for (const auto& [id, rows] : by_stream) {
      std::shared_ptr<TokenSession> session;
      {
        MutexLock lock(&mutex_);
        const auto found = sessions_.find(id);
        if (found == sessions_.end()) continue;  // its gateway has gone
        session = found->second;
      }
      session->Deliver(rows);
    }
  }

  const SteadyClock clock_;
  const std::unique_ptr<TokenEngine> engine_;
  const std::string numeric_id_;
  const TokenMetrics metrics_;
  mutable Mutex mutex_;
  v1::TokenServiceHello hello_;  // constant once hello_known_
  bool hello_known_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  StreamId last_stream_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<StreamId, std::shared_ptr<TokenSession>> sessions_ ABSL_GUARDED_BY(mutex_);
  TokenWorker worker_;
  const TokenSessionContext context_;
  std::thread hash_thread_;
  std::shared_ptr<void> collector_;
};

absl::StatusOr<std::unique_ptr<TokenService>> TokenService::Create(const TokenServiceConfig& asked,
                                                                   const Checkpoint& checkpoint,
                                                                   ThreadPool* pool) {
  TokenServiceConfig config = asked;
  absl::Status status = config.Validate();
  if (!status.ok()) return status;
  const absl::StatusOr<EngineChoice> choice =
      ChooseEngine(config.device, config.arithmetic, checkpoint);
  if (!choice.ok()) return choice.status();
  absl::StatusOr<std::string> tokenizer_hash = TokenizerHash(checkpoint.directory());
  if (!tokenizer_hash.ok()) return tokenizer_hash.status();

  if (config.max_rows == 0) {
    config.max_rows = IsCuda(choice->arithmetic) ? kCudaBatchRows : kCpuBatchRows;
  }
  if (config.max_queued_rows == 0) {
    config.max_queued_rows = std::max(kLeastQueuedRows, 4 * config.max_rows);
  }
  EngineOptions options;
  options.arithmetic = choice->arithmetic;
  options.cuda_device = choice->cuda_device;
  options.early_launch = config.early_launch;
  options.pool = pool;
  options.max_rows = config.max_rows;
  absl::StatusOr<std::unique_ptr<TokenEngine>> engine = LoadTokenEngine(checkpoint, options);
  if (!engine.ok()) return engine.status();
  LogInfo(absl::StrCat("token decoder: ", EngineName(*choice)));

  absl::StatusOr<std::string> numeric_id = ProbeNumericId(**engine);
  if (!numeric_id.ok()) return numeric_id.status();

  TokenServiceIdentity identity;
  identity.config_hash = ConfigHash(checkpoint.config());
  identity.tokenizer_hash = *std::move(tokenizer_hash);
  identity.numeric_id = *std::move(numeric_id);
  identity.model_digest = checkpoint.Digest();
  identity.part_hash = [&checkpoint] { return checkpoint.HashTensors(Checkpoint::Part::kToken); };
  return CreateOnEngine(config, InjectFaults(*std::move(engine), config.faults),
                        std::move(identity));
}

absl::StatusOr<std::unique_ptr<TokenService>> TokenService::CreateOnEngine(
    const TokenServiceConfig& config, std::unique_ptr<TokenEngine> engine,
    TokenServiceIdentity identity) {
  absl::Status status = config.Validate();
  if (!status.ok()) return status;
  if (config.max_rows == 0 || config.max_queued_rows == 0) {
    return absl::InvalidArgumentError("max_rows or max_queued_rows is 0");
  }
  return std::unique_ptr<TokenService>(
      new TokenService(std::make_unique<Impl>(config, std::move(engine), std::move(identity))));
}

TokenService::TokenService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
TokenService::~TokenService() = default;
grpc::Service* TokenService::service() { return impl_.get(); }
void TokenService::WaitUntilKnown() { impl_->WaitUntilKnown(); }
void TokenService::StartDraining() { impl_->StartDraining(); }
bool TokenService::WaitUntilDrained(absl::Duration timeout) {
  return impl_->WaitUntilDrained(timeout);
}
void TokenService::Stop() { impl_->Stop(); }
const std::string& TokenService::numeric_id() const { return impl_->numeric_id(); }
TokenService::Stats TokenService::stats() const { return impl_->stats(); }
std::shared_ptr<const Progress> TokenService::progress() const { return impl_->progress(); }
std::string TokenService::InHand() const {
  const Stats now = stats();
  return absl::StrCat(now.waiting + now.running, " rows");
}

}  // namespace blockserve
