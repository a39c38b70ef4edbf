// One gateway's stream: hellos, rows in, replies out. Thin: what is done with rows is
// TokenWorker's.
#ifndef BLOCKSERVE_TOKEN_SERVICE_TOKEN_SESSION_H_
#define BLOCKSERVE_TOKEN_SERVICE_TOKEN_SESSION_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "blockserve/v1/token_decoder.pb.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/open_spans.h"
#include "rpc/outgoing_queue.h"
#include "rpc/refused_gateways.h"
#include "rpc/server_stream.h"
#include "token_service/token_worker.h"

namespace blockserve {

using TokenServerStream = ServerStream<v1::TokenRequestBatch, v1::TokenReplyBatch>;

// What sessions share. Outlives them.
struct TokenSessionContext {
  const ModelConfig& config;
  const Clock& clock;
  TokenWorker& worker;
  std::string config_hash;
  std::string tokenizer_hash;
  uint64_t trace_seed = 0;      // of the ids of spans
  int64_t max_reply_bytes = 0;  // of rows in one message
  mutable RefusedGateways refused = {};
};

class TokenSession final : public TokenServerStream::Handler {
 public:
  // `ask_hello` is called once the gateway's hello was accepted: it calls SayHello, at once or
  // later. `on_closed` is called once when the stream is over.
  struct Hooks {
    std::function<void()> ask_hello;
    std::function<void()> on_closed;
  };
  TokenSession(StreamId id, std::shared_ptr<TokenServerStream> stream,
               const TokenSessionContext& context, Hooks hooks);

  void OnMessage(v1::TokenRequestBatch&& message) override;
  void OnClosed() override;

  // The service's hello; later calls, and those before the gateway's hello was accepted, do
  // nothing.
  void SayHello(const v1::TokenServiceHello& hello);
  // Replies go out behind the hello. Thread-safe.
  void Reply(v1::TokenReplyBatch reply);
  // Answers rows, with the worker's load at this moment, in as many messages as they need.
  void Deliver(const std::vector<const RowAnswer*>& answers);
  // Tells the load, and whether the worker is draining.
  void AnnounceLoad();
  void Finish(const absl::Status& status);

 private:
  enum class HelloState { kNotAccepted, kAccepted, kSaying, kSaid };

  absl::Status CheckHello(const v1::TokenRequestBatch& message) const;
  void TakeRows(const v1::TokenRequestBatch& message);

  const StreamId id_;
  const std::shared_ptr<TokenServerStream> stream_;
  const TokenSessionContext& context_;
  const Hooks hooks_;
  bool refused_ = false;  // used by the reading side alone
  OpenSpans spans_;
  Mutex mutex_;
  HelloState hello_state_ ABSL_GUARDED_BY(mutex_) = HelloState::kNotAccepted;
  // Replies to rows that came before the hello was said.
  OutgoingQueue<v1::TokenReplyBatch> before_hello_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_TOKEN_SESSION_H_
