// The real TierLink: a gRPC channel and stream to one address, made again with a jittered backoff
// whenever it breaks.
#ifndef BLOCKSERVE_GATEWAY_TIER_CLIENT_H_
#define BLOCKSERVE_GATEWAY_TIER_CLIENT_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "blockserve/v1/block_decoder.grpc.pb.h"
#include "blockserve/v1/token_decoder.grpc.pb.h"
#include "gateway/backoff.h"
#include "gateway/tier_link.h"
#include "rpc/loop.h"
#include "rpc/tier_merge.h"
#include "rpc/tier_stream.h"

namespace blockserve {

struct BlockProtocol {
  using Request = v1::BlockRequestBatch;
  using Reply = v1::BlockReplyBatch;
  using Stub = v1::BlockDecoder::Stub;
  static std::unique_ptr<Stub> NewStub(const std::shared_ptr<grpc::Channel>& channel) {
    return v1::BlockDecoder::NewStub(channel);
  }
  static bool Merge(Request& into, Request& from) { return MergeBlockRequests(into, from); }
  static bool Answers(const Reply& reply) { return reply.items_size() > 0; }
};

struct TokenProtocol {
  using Request = v1::TokenRequestBatch;
  using Reply = v1::TokenReplyBatch;
  using Stub = v1::TokenDecoder::Stub;
  static std::unique_ptr<Stub> NewStub(const std::shared_ptr<grpc::Channel>& channel) {
    return v1::TokenDecoder::NewStub(channel);
  }
  static bool Merge(Request& into, Request& from) { return MergeTokenRequests(into, from); }
  static bool Answers(const Reply& reply) { return reply.rows_size() > 0; }
};

struct TierClientOptions {
  v1::GatewayHello hello;
  std::function<std::shared_ptr<grpc::Channel>(const std::string& address)> channel_factory;
  uint64_t seed = 0;  // of the backoff's jitter
  // As of TierStream's options.
  std::function<void(std::function<void()> write)> write_large = {};
};

template <class Protocol>
class TierClient final : public TierLink<typename Protocol::Request, typename Protocol::Reply> {
 public:
  using Request = typename Protocol::Request;
  using Reply = typename Protocol::Reply;
  using Observer = typename TierLink<Request, Reply>::Observer;

  TierClient(Loop& loop, std::string address, TierClientOptions options)
      : state_(std::make_shared<State>(loop, std::move(address), std::move(options))) {}
  ~TierClient() override { state_->Stop(); }

  void Start(Observer* observer) override {
    state_->observer = observer;
    state_->Connect();
  }
  void Send(Request request) override {
    // False: the stream is over, and OnLost follows.
    if (state_->ready) state_->connection->stream->Send(std::move(request));
  }
  int64_t queued_bytes() const override {
    return state_->ready ? state_->connection->stream->queued_bytes() : 0;
  }
  void Finish(std::function<void()> over) override { state_->Finish(std::move(over)); }

 private:
  // A connection that has held so long without work was a good one.
  static constexpr absl::Duration kSettled = absl::Seconds(5);
  using Stream = TierStream<Request, Reply>;

  // One stream. Its channel is let go of on the loop, never on a gRPC thread (rpc/tier_stream.h).
  struct Connection {
    std::shared_ptr<grpc::Channel> channel;
    std::shared_ptr<Stream> stream;
    std::shared_ptr<void> hold;  // of the loop, which must outlive the stream
  };

  struct State : std::enable_shared_from_this<State> {
    State(Loop& loop, std::string address, TierClientOptions options)
        : loop(loop),
          address(std::move(address)),
          options(std::move(options)),
          backoff(absl::Milliseconds(50), absl::Seconds(2), this->options.seed) {}

    void Connect() {
      const std::shared_ptr<State> self = this->shared_from_this();
      auto made = std::make_shared<Connection>();
      connection = made;
      made->hold = loop.Hold();
      made->channel = options.channel_factory(address);
      std::shared_ptr<typename Protocol::Stub> stub = Protocol::NewStub(made->channel);
      made->stream = Stream::Create(
          [stub](grpc::ClientContext* context, auto* reactor) {
            stub->async()->Run(context, reactor);
          },
          {.limits = {}, .merge = Protocol::Merge, .write_large = options.write_large},
          {.on_message =
               [self, made](Reply&& reply) {
                 auto message = std::make_shared<Reply>(std::move(reply));
                 self->loop.Post([self, made, message] {
                   if (self->connection == made) self->Take(std::move(*message));
                 });
               },
           .on_closed =
               [self, made](absl::Status status) {
                 self->loop.Post([self, made, status] {
                   made->stream.reset();
                   made->channel.reset();
                   if (self->connection == made) self->Lost(status);
                   made->hold.reset();
                 });
               }});
      stub.reset();
      Request first;
      *first.mutable_hello() = options.hello;
      made->stream->Send(std::move(first));
      made->stream->Start();
    }

    void Take(Reply reply) {
      if (stopped) return;
      if (ready) {
        if (Protocol::Answers(reply)) backoff.Reset();
        observer->OnMessage(std::move(reply));
      } else if (reply.has_hello()) {
        ready = true;
        ready_at = loop.Now();
        observer->OnReady(std::move(reply));
      } else {
        connection->stream->Close();  // OnLost follows
      }
    }

    void Lost(const absl::Status& status) {
      connection.reset();
      // A hello alone is no sign that the next connection will hold.
      if (ready && loop.Now() - ready_at >= kSettled) backoff.Reset();
      ready = false;
      if (stopped) return over();
      observer->OnLost(status);
      const std::weak_ptr<State> weak = this->weak_from_this();
      loop.PostAfter(backoff.Next(), [weak] {
        const std::shared_ptr<State> again = weak.lock();
        if (again != nullptr && !again->stopped) again->Connect();
      });
    }

    void Finish(std::function<void()> then) {
      stopped = true;
      over = std::move(then);
      if (connection == nullptr) {
        const std::weak_ptr<State> weak = this->weak_from_this();
        return loop.Post([weak] {
          if (const std::shared_ptr<State> self = weak.lock()) self->over();
        });
      }
      if (ready) {
        connection->stream->Finish();
      } else {
        connection->stream->Close();  // the service knows nothing of us yet
      }
      ready = false;
    }

    void Stop() {
      stopped = true;
      ready = false;
      // What still comes from it is not listened to; its channel goes when it has closed.
      if (connection != nullptr) connection->stream->Close();
      connection.reset();
    }

    Loop& loop;
    const std::string address;
    const TierClientOptions options;
    Backoff backoff;
    Observer* observer = nullptr;
    std::shared_ptr<Connection> connection;  // null while it waits to connect again
    bool ready = false;
    absl::Time ready_at;
    bool stopped = false;
    std::function<void()> over;  // of Finish
  };

  const std::shared_ptr<State> state_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TIER_CLIENT_H_
