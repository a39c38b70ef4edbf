// A gateway for tests: one stream to a token service, answers collected by row.
#ifndef BLOCKSERVE_TOKEN_SERVICE_TOKEN_CLIENT_FOR_TEST_H_
#define BLOCKSERVE_TOKEN_SERVICE_TOKEN_CLIENT_FOR_TEST_H_

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "blockserve/v1/token_decoder.grpc.pb.h"
#include "common/mutex.h"
#include "rpc/context_codec.h"
#include "rpc/tier_merge.h"
#include "rpc/tier_protocol.h"
#include "rpc/tier_stream.h"

namespace blockserve {

inline v1::TokenRequestBatch HelloMessage() {
  v1::TokenRequestBatch message;
  message.mutable_hello()->set_protocol_version(kTierProtocolVersion);
  message.mutable_hello()->set_gateway_incarnation(7);
  return message;
}

// Adds a row with its context; the caller fills in the rest.
inline v1::TokenRowRequest& AddRow(v1::TokenRequestBatch& batch, uint64_t id,
                                   absl::Span<const float> context, int32_t limit) {
  batch.set_context_type(v1::CONTEXT_TYPE_FLOAT32);
  AppendContexts(context, v1::CONTEXT_TYPE_FLOAT32, *batch.mutable_contexts());
  v1::TokenRowRequest& row = *batch.add_rows();
  row.set_id(id);
  row.set_limit(limit);
  row.set_logprobs(true);
  return row;
}

// Every wait ends after a minute, as failed. The channel must outlive this.
class TokenClient {
 public:
  explicit TokenClient(const std::shared_ptr<grpc::Channel>& channel) : seen_(new Seen) {
    std::shared_ptr<v1::TokenDecoder::Stub> stub = v1::TokenDecoder::NewStub(channel);
    std::shared_ptr<Seen> seen = seen_;
    stream_ = Stream::Create(
        [stub](grpc::ClientContext* context, Stream::Reactor* reactor) {
          stub->async()->Run(context, reactor);
        },
        {.limits = {}, .merge = MergeTokenRequests},
        {.on_message = [seen](v1::TokenReplyBatch&& reply) { seen->Add(std::move(reply)); },
         .on_closed = [seen](absl::Status status) { seen->Close(std::move(status)); }});
    stream_->Start();
  }
  ~TokenClient() {
    stream_->Close();
    WaitForEnd().IgnoreError();
  }

  // Says hello and waits for the service's.
  std::optional<v1::TokenServiceHello> Hello(const v1::TokenRequestBatch& hello = HelloMessage()) {
    Send(hello);
    return WaitForHello();
  }
  bool Send(v1::TokenRequestBatch batch) { return stream_->Send(std::move(batch)); }
  void Close() { stream_->Close(); }

  std::optional<v1::TokenServiceHello> WaitForHello() {
    MutexLock lock(&seen_->mutex);
    seen_->Wait([this] { return seen_->hello.has_value() || seen_->end.has_value(); });
    return seen_->hello;
  }
  // The rows answered so far once they are `count`, by id; empty when the stream ended before.
  std::map<uint64_t, v1::TokenRowReply> WaitForRows(size_t count) {
    MutexLock lock(&seen_->mutex);
    seen_->Wait([&] { return seen_->rows.size() >= count || seen_->end.has_value(); });
    if (seen_->rows.size() < count) return {};
    return seen_->rows;
  }
  bool WaitForDraining() {
    MutexLock lock(&seen_->mutex);
    seen_->Wait([this] { return seen_->draining || seen_->end.has_value(); });
    return seen_->draining;
  }
  bool WaitForPong(uint64_t ping) {
    MutexLock lock(&seen_->mutex);
    seen_->Wait([&] { return seen_->pong == ping || seen_->end.has_value(); });
    return seen_->pong == ping;
  }
  absl::Status WaitForEnd() {
    MutexLock lock(&seen_->mutex);
    seen_->Wait([this] { return seen_->end.has_value(); });
    return seen_->end.value_or(absl::UnknownError("the stream did not end"));
  }
  void Forget() {
    MutexLock lock(&seen_->mutex);
    seen_->rows.clear();
  }
  v1::TokenLoad load() const {
    MutexLock lock(&seen_->mutex);
    return seen_->load;
  }
  size_t largest_message_bytes() const {
    MutexLock lock(&seen_->mutex);
    return seen_->largest_message_bytes;
  }
  // Answers to rows that were answered already, and messages before the hello.
  int faults() const {
    MutexLock lock(&seen_->mutex);
    return seen_->faults;
  }

 private:
  using Stream = TierStream<v1::TokenRequestBatch, v1::TokenReplyBatch>;

  struct Seen {
    void Add(v1::TokenReplyBatch reply) {
      MutexLock lock(&mutex);
      largest_message_bytes = std::max(largest_message_bytes, reply.ByteSizeLong());
      if (reply.has_hello()) hello = reply.hello();
      if (!hello.has_value()) ++faults;
      for (v1::TokenRowReply& row : *reply.mutable_rows()) {
        const uint64_t id = row.id();
        if (!rows.emplace(id, std::move(row)).second) ++faults;
      }
      if (reply.has_load()) load = reply.load();
      draining |= reply.draining();
      if (reply.pong() != 0) pong = reply.pong();
      changed.SignalAll();
    }
    void Close(absl::Status status) {
      MutexLock lock(&mutex);
      end = std::move(status);
      changed.SignalAll();
    }
    template <class Condition>
    void Wait(const Condition& condition) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
      const absl::Time deadline = absl::Now() + absl::Minutes(1);
      while (!condition() && absl::Now() < deadline) {
        changed.WaitWithTimeout(&mutex, deadline - absl::Now());
      }
    }

    Mutex mutex;
    CondVar changed;
    std::optional<v1::TokenServiceHello> hello ABSL_GUARDED_BY(mutex);
    std::map<uint64_t, v1::TokenRowReply> rows ABSL_GUARDED_BY(mutex);
    v1::TokenLoad load ABSL_GUARDED_BY(mutex);
    bool draining ABSL_GUARDED_BY(mutex) = false;
    uint64_t pong ABSL_GUARDED_BY(mutex) = 0;
    int faults ABSL_GUARDED_BY(mutex) = 0;
    size_t largest_message_bytes ABSL_GUARDED_BY(mutex) = 0;
    std::optional<absl::Status> end ABSL_GUARDED_BY(mutex);
  };

  const std::shared_ptr<Seen> seen_;
  std::shared_ptr<Stream> stream_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_TOKEN_CLIENT_FOR_TEST_H_
