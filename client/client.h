// C++ client of blockserve: generation, scoring and tokenising over a gRPC channel.
//
//   blockserve::Client client("127.0.0.1:7070");
//   blockserve::v1::GenerateRequest request;
//   request.set_text("Once upon a time");
//   absl::Status status = client.Generate(request, [](const auto& event) {
//     if (event.has_output()) std::cout << event.output().text();
//     return true;
//   });
//
// Messages and their defaults are those of blockserve/v1/generation.proto, status codes too.
#ifndef BLOCKSERVE_CLIENT_CLIENT_H_
#define BLOCKSERVE_CLIENT_CLIENT_H_

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/support/sync_stream.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "blockserve/v1/generation.grpc.pb.h"

namespace blockserve {

struct CallOptions {
  // After it the call ends with DEADLINE_EXCEEDED, on the server too.
  absl::Duration timeout = absl::Minutes(10);
};

// One generation that is read event by event. Destroying it before its end cancels it.
class GenerationStream {
 public:
  ~GenerationStream();
  GenerationStream(const GenerationStream&) = delete;
  GenerationStream& operator=(const GenerationStream&) = delete;

  // Blocks until the next event; false at the end, whose kind Finish tells.
  bool Next(v1::GenerateResponse* event);
  // OK after the usage event; the one error of the stream else. Once, after Next was false or
  // Cancel was called.
  absl::Status Finish();
  // The server stops working on it. From any thread.
  void Cancel() { context_->TryCancel(); }

 private:
  friend class Client;
  GenerationStream() = default;

  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  bool finished_ = false;
};

// Thread-safe.
class Client {
 public:
  // Plaintext, with keepalive; connects when the first call is made. `address`: host:port.
  explicit Client(const std::string& address);
  // Any channel: with credentials, or in-process.
  explicit Client(std::shared_ptr<grpc::Channel> channel);

  std::unique_ptr<GenerationStream> Generate(const v1::GenerateRequest& request,
                                             CallOptions options = {});
  // Calls `on_event` for every event in order; it returns false to cancel (then CANCELLED).
  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<bool(const v1::GenerateResponse&)>& on_event,
                        CallOptions options = {});

  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request,
                                          CallOptions options = {});
  absl::StatusOr<std::vector<int32_t>> Tokenize(const std::string& text, CallOptions options = {});
  absl::StatusOr<std::string> Detokenize(const std::vector<int32_t>& tokens,
                                         bool skip_special_tokens = false,
                                         CallOptions options = {});
  absl::StatusOr<v1::GetModelResponse> GetModel(CallOptions options = {});

 private:
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Generation::Stub> stub_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_CLIENT_CLIENT_H_
