#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/time/time.h"
#include "client/gateways.h"
#include "common/clock.h"

namespace blockserve {
namespace {

constexpr int kKeepaliveTimeMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 5'000;
// As large as servers take.
constexpr int kMaxMessageBytes = 16 << 20;

std::shared_ptr<grpc::Channel> Connect(const std::string& address,
                                       const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                                       const std::string& server_name) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // however long nothing is sent
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  // Retries are ours; and a gateway that comes back is found soon.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
  // Of one attempt to connect: who takes the connection and then says nothing is frozen.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 5'000);
  if (!server_name.empty()) arguments.SetSslTargetNameOverride(server_name);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

absl::Time DeadlineOf(const CallOptions& options) {
  return options.timeout == absl::InfiniteDuration() ? absl::InfiniteFuture()
                                                     : SteadyClock().Now() + options.timeout;
}

template <class Response, class Request, class Method>
absl::StatusOr<Response> Call(const std::shared_ptr<internal::Gateways>& gateways, Method method,
                              const Request& request, const CallOptions& options) {
  internal::RetryState retry(gateways, DeadlineOf(options));
  while (true) {
    Response response;
    grpc::ClientContext* const context = retry.NewContext();
    absl::Status status = retry.Outcome((retry.stub().*method)(context, request, &response));
    if (status.ok()) return response;
    if (!retry.AfterFailure(status)) return status;
  }
}

}  // namespace

GenerationStream::GenerationStream(std::shared_ptr<internal::Gateways> gateways,
                                   v1::GenerateRequest request, absl::Time deadline)
    : gateways_(std::move(gateways)),
      request_(std::move(request)),
      deadline_(deadline),
      retry_(std::make_unique<internal::RetryState>(gateways_, deadline)) {
  // A request that goes on with a stream of another process has received something already.
  received_ = request_.resume();
  Begin();
}

GenerationStream::~GenerationStream() {
  if (reader_ == nullptr) return;
  Cancel();
  (void)Finish();
}

void GenerationStream::Begin() {
  grpc::ClientContext* const context = retry_->NewContext();
  reader_ = retry_->stub().Generate(context, request_);
}

bool GenerationStream::Next(v1::GenerateResponse* event) {
  while (reader_ != nullptr) {
    while (reader_->Read(event)) {
      retry_->TakenIn();
      if (Take(*event)) return true;
    }
    outcome_ = retry_->Outcome(reader_->Finish());
    reader_.reset();
    if (outcome_.ok() || !TryAgain()) return false;
    Begin();
  }
  return false;
}

bool GenerationStream::Take(const v1::GenerateResponse& event) {
  const auto choice = [&](uint32_t index) -> v1::ResumedChoice* {
    return index < static_cast<uint32_t>(received_.choices_size())
               ? received_.mutable_choices(static_cast<int>(index))
               : nullptr;
  };
  switch (event.event_case()) {
    case v1::GenerateResponse::kStarted: {
      if (started_.has_value()) return false;
      // Not before: a server has not yet looked at `n`, which may be any number.
      const int choices = request_.has_n() ? request_.n() : 1;
      while (received_.choices_size() < choices) received_.add_choices();
      started_ = event.started();
      *received_.mutable_started() = event.started();
      return true;
    }
    case v1::GenerateResponse::kOutput:
      retry_->Progress();
      if (v1::ResumedChoice* had = choice(event.output().choice())) {
        had->mutable_tokens()->MergeFrom(event.output().tokens());
      }
      return true;
    case v1::GenerateResponse::kFinished:
      retry_->Progress();
      if (v1::ResumedChoice* had = choice(event.finished().choice())) had->set_finished(true);
      return true;
    default:
      return true;
  }
}

bool GenerationStream::TryAgain() {
  if (!retry_->AfterFailure(outcome_)) return false;
  if (started_.has_value()) {
    ++resumes_;
    *request_.mutable_resume() = received_;
  }
  return true;
}

absl::Status GenerationStream::Finish() {
  if (reader_ == nullptr) return outcome_;
  // gRPC's Finish waits for a stream that has been read to its end.
  v1::GenerateResponse rest;
  while (reader_->Read(&rest)) {
  }
  outcome_ = retry_->Outcome(reader_->Finish());
  reader_.reset();
  return outcome_;
}

void GenerationStream::Cancel() { retry_->Cancel(); }

absl::StatusOr<std::unique_ptr<Client>> Client::Create(const ClientOptions& options) {
  if (options.addresses.empty()) return absl::InvalidArgumentError("addresses is empty");
  if (options.certificate_pem.empty() != options.key_pem.empty()) {
    return absl::InvalidArgumentError("certificate_pem and key_pem go together");
  }
  if (!options.tls && !(options.ca_pem.empty() && options.certificate_pem.empty())) {
    return absl::InvalidArgumentError("ca_pem and certificate_pem need tls");
  }
  if (options.max_retries.value_or(0) < 0) {
    return absl::InvalidArgumentError("max_retries is negative");
  }
  if (options.first_backoff < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("first_backoff is negative");
  }
  // Else gRPC would end the process at the first call.
  const std::string api_key(absl::StripAsciiWhitespace(options.api_key));
  if (!std::all_of(api_key.begin(), api_key.end(), absl::ascii_isgraph)) {
    return absl::InvalidArgumentError("api_key has characters that no key has");
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (options.tls) {
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = options.ca_pem;
    ssl.pem_cert_chain = options.certificate_pem;
    ssl.pem_private_key = options.key_pem;
    credentials = grpc::SslCredentials(ssl);
  }
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (const std::string& address : options.addresses) {
    if (address.empty()) return absl::InvalidArgumentError("addresses has an empty one");
    channels.push_back(Connect(address, credentials, options.server_name));
  }
  return std::unique_ptr<Client>(new Client(std::make_shared<internal::Gateways>(
      std::move(channels), api_key,
      internal::RetryPolicy{options.max_retries, options.first_backoff})));
}

Client::Client(std::shared_ptr<internal::Gateways> gateways) : gateways_(std::move(gateways)) {}

Client::Client(const std::string& address)
    : Client(std::make_shared<internal::Gateways>(
          std::vector<std::shared_ptr<grpc::Channel>>{
              Connect(address, grpc::InsecureChannelCredentials(), "")},
          "", internal::RetryPolicy{ClientOptions().max_retries, ClientOptions().first_backoff})) {}

Client::Client(std::shared_ptr<grpc::Channel> channel)
    : Client(std::make_shared<internal::Gateways>(
          std::vector<std::shared_ptr<grpc::Channel>>{std::move(channel)}, "",
          internal::RetryPolicy{})) {}

std::unique_ptr<GenerationStream> Client::Generate(const v1::GenerateRequest& request,
                                                   CallOptions options) {
  return std::unique_ptr<GenerationStream>(
      new GenerationStream(gateways_, request, DeadlineOf(options)));
}

absl::Status Client::Generate(const v1::GenerateRequest& request,
                              const std::function<bool(const v1::GenerateResponse&)>& on_event,
                              CallOptions options) {
  std::unique_ptr<GenerationStream> stream = Generate(request, options);
  v1::GenerateResponse event;
  while (stream->Next(&event)) {
    if (!on_event(event)) {
      stream->Cancel();
      break;
    }
  }
  return stream->Finish();
}

absl::StatusOr<v1::ScoreResponse> Client::Score(const v1::ScoreRequest& request,
                                                CallOptions options) {
  return Call<v1::ScoreResponse>(gateways_, &v1::Generation::Stub::Score, request, options);
}

absl::StatusOr<std::vector<int32_t>> Client::Tokenize(const std::string& text,
                                                      CallOptions options) {
  v1::TokenizeRequest request;
  request.set_text(text);
  auto response =
      Call<v1::TokenizeResponse>(gateways_, &v1::Generation::Stub::Tokenize, request, options);
  if (!response.ok()) return response.status();
  return std::vector<int32_t>(response->tokens().begin(), response->tokens().end());
}

absl::StatusOr<std::string> Client::Detokenize(const std::vector<int32_t>& tokens,
                                               bool skip_special_tokens, CallOptions options) {
  v1::DetokenizeRequest request;
  request.mutable_tokens()->Add(tokens.begin(), tokens.end());
  request.set_skip_special_tokens(skip_special_tokens);
  auto response =
      Call<v1::DetokenizeResponse>(gateways_, &v1::Generation::Stub::Detokenize, request, options);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_text());
}

absl::StatusOr<v1::GetModelResponse> Client::GetModel(CallOptions options) {
  return Call<v1::GetModelResponse>(gateways_, &v1::Generation::Stub::GetModel,
                                    v1::GetModelRequest(), options);
}

}  // namespace blockserve
