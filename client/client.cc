#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <utility>

#include "absl/time/clock.h"

namespace blockserve {
namespace {

constexpr int kKeepaliveTimeMs = 10'000;
constexpr int kKeepaliveTimeoutMs = 5'000;
// As large as servers take.
constexpr int kMaxMessageBytes = 16 << 20;

std::shared_ptr<grpc::Channel> Connect(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

// The codes of both have the same numbers (google.rpc.Code). The library stands by itself where it
// is installed, so that it does not use the conversions of rpc/.
absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

void SetDeadline(grpc::ClientContext& context, const CallOptions& options) {
  if (options.timeout == absl::InfiniteDuration()) return;
  context.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
}

template <class Response, class Request, class Method>
absl::StatusOr<Response> Call(v1::Generation::Stub& stub, Method method, const Request& request,
                              const CallOptions& options) {
  grpc::ClientContext context;
  SetDeadline(context, options);
  Response response;
  const grpc::Status status = (stub.*method)(&context, request, &response);
  if (!status.ok()) return FromGrpc(status);
  return response;
}

}  // namespace

GenerationStream::~GenerationStream() {
  if (finished_) return;
  Cancel();
  (void)Finish();
}

bool GenerationStream::Next(v1::GenerateResponse* event) { return reader_->Read(event); }

absl::Status GenerationStream::Finish() {
  finished_ = true;
  // gRPC's Finish waits for a stream that has been read to its end.
  v1::GenerateResponse rest;
  while (reader_->Read(&rest)) {
  }
  return FromGrpc(reader_->Finish());
}

Client::Client(const std::string& address) : Client(Connect(address)) {}

Client::Client(std::shared_ptr<grpc::Channel> channel)
    : channel_(std::move(channel)), stub_(v1::Generation::NewStub(channel_)) {}

std::unique_ptr<GenerationStream> Client::Generate(const v1::GenerateRequest& request,
                                                   CallOptions options) {
  std::unique_ptr<GenerationStream> stream(new GenerationStream);
  stream->context_ = std::make_unique<grpc::ClientContext>();
  SetDeadline(*stream->context_, options);
  stream->reader_ = stub_->Generate(stream->context_.get(), request);
  return stream;
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
  return Call<v1::ScoreResponse>(*stub_, &v1::Generation::Stub::Score, request, options);
}

absl::StatusOr<std::vector<int32_t>> Client::Tokenize(const std::string& text,
                                                      CallOptions options) {
  v1::TokenizeRequest request;
  request.set_text(text);
  auto response =
      Call<v1::TokenizeResponse>(*stub_, &v1::Generation::Stub::Tokenize, request, options);
  if (!response.ok()) return response.status();
  return std::vector<int32_t>(response->tokens().begin(), response->tokens().end());
}

absl::StatusOr<std::string> Client::Detokenize(const std::vector<int32_t>& tokens,
                                               bool skip_special_tokens, CallOptions options) {
  v1::DetokenizeRequest request;
  request.mutable_tokens()->Add(tokens.begin(), tokens.end());
  request.set_skip_special_tokens(skip_special_tokens);
  auto response =
      Call<v1::DetokenizeResponse>(*stub_, &v1::Generation::Stub::Detokenize, request, options);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_text());
}

absl::StatusOr<v1::GetModelResponse> Client::GetModel(CallOptions options) {
  return Call<v1::GetModelResponse>(*stub_, &v1::Generation::Stub::GetModel, v1::GetModelRequest(),
                                    options);
}

}  // namespace blockserve
