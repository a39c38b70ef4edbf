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
#include <grpcpp/support/sync_stream.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "blockserve/v1/generation.grpc.pb.h"

namespace blockserve {

struct CallOptions {
  // After it the call ends with DEADLINE_EXCEEDED, on the server too. Tries again included.
  absl::Duration timeout = absl::Minutes(10);
};

struct ClientOptions {
  // host:port of gateways of one deployment. Calls go to one of them, drawn for each client, and on
  // to the next when it cannot be reached or refuses.
  std::vector<std::string> addresses;
  // Sent with every call, without the whitespace around it; over plaintext everybody on the way can
  // read it. Empty or blank: none.
  std::string api_key;
  bool tls = false;
  std::string ca_pem;  // whose servers are trusted; empty: the CAs that this machine trusts
  std::string certificate_pem;  // shown to servers that ask for one; may be empty, with key_pem
  std::string key_pem;
  std::string server_name;  // in the servers' certificates; empty: the host of the address
  // A call that a gateway cannot take (UNAVAILABLE, RESOURCE_EXHAUSTED) is tried again, and a
  // stream that breaks is resumed, so many times in a row without a new token; 0: never. So too
  // behind a proxy, which makes UNKNOWN or an INTERNAL of its own of a lost gateway. Not set:
  // while a gateway that has answered before is lost, for 30 s; where it refuses
  // (RESOURCE_EXHAUSTED or UNAVAILABLE with a retry-after), or none has ever answered, 5 times.
  // RESOURCE_EXHAUSTED without one is final, unless it breaks off a stream that had begun.
  std::optional<int32_t> max_retries;
  // Doubles, up to 2 s, with jitter; the gateway's retry-after is waited for where it is longer. A
  // wait that would pass the call's timeout is not begun: the call ends with its error.
  absl::Duration first_backoff = absl::Milliseconds(100);
};

// When the gateway that refused a call wants to be asked again; none where it does not tell.
std::optional<absl::Duration> RetryAfterOf(const absl::Status& status);

namespace internal {
class Gateways;
class RetryState;
}  // namespace internal

// One generation that is read event by event. Destroying it before its end cancels it. When its
// gateway is lost it goes on through another (or the same, once it is there again), and its reader
// sees the events of an undisturbed stream.
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
  void Cancel();
  // How often it went on after a loss.
  int32_t resumes() const { return resumes_; }

 private:
  friend class Client;
  GenerationStream(std::shared_ptr<internal::Gateways> gateways, v1::GenerateRequest request,
                   absl::Time deadline);
  void Begin();
  // Takes the event in; false: it repeats what was told.
  bool Take(const v1::GenerateResponse& event);
  bool TryAgain();  // after `outcome_`

  const std::shared_ptr<internal::Gateways> gateways_;
  v1::GenerateRequest request_;
  const absl::Time deadline_;
  std::unique_ptr<internal::RetryState> retry_;
  std::optional<v1::Started> started_;
  v1::Resume received_;  // choices: what came of each
  int32_t resumes_ = 0;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;  // null once it is over
  absl::Status outcome_;
};

// Thread-safe.
class Client {
 public:
  // Plaintext, with keepalive; connects when the first call is made. `address`: host:port.
  explicit Client(const std::string& address);
  // INVALID_ARGUMENT naming the option.
  static absl::StatusOr<std::unique_ptr<Client>> Create(const ClientOptions& options);
  // Any channel: with credentials of one's own, or in-process. Nothing is tried again.
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
  explicit Client(std::shared_ptr<internal::Gateways> gateways);

  const std::shared_ptr<internal::Gateways> gateways_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_CLIENT_CLIENT_H_
