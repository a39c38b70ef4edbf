// A gateway's end of a block service's stream, for tests of the service over an in-process channel:
// it writes items, reads answers, and checks what holds of every message.
#ifndef BLOCKSERVE_BLOCK_SERVICE_TEST_GATEWAY_H_
#define BLOCKSERVE_BLOCK_SERVICE_TEST_GATEWAY_H_

#include <grpcpp/client_context.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "block_service/block_service.h"
#include "blockserve/v1/block_decoder.grpc.pb.h"
#include "gtest/gtest.h"
#include "rpc/server.h"
#include "rpc/tier_protocol.h"

namespace blockserve {

// All replies to one item, joined.
struct Answer {
  absl::StatusCode code = absl::StatusCode::kOk;
  std::string message;
  std::string rows;  // bytes
  int64_t first_block = 0;
  int64_t cached_blocks = 0;
  bool done = false;
  bool suspended = false;
  int replies = 0;
};

// One gateway's stream.
class TestGateway {
 public:
  explicit TestGateway(const std::shared_ptr<grpc::Channel>& channel, uint64_t incarnation = 1,
                       v1::GatewayHello hello = DefaultHello())
      : stub_(v1::BlockDecoder::NewStub(channel)) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(120));
    stream_ = stub_->Run(&context_);
    v1::BlockRequestBatch batch;
    hello.set_gateway_incarnation(incarnation);
    *batch.mutable_hello() = std::move(hello);
    stream_->Write(batch);
  }
  ~TestGateway() {
    if (stream_ != nullptr) Vanish();
  }

  static v1::GatewayHello DefaultHello() {
    v1::GatewayHello hello;
    hello.set_protocol_version(kTierProtocolVersion);
    return hello;
  }

  v1::BlockRequest& Add(uint64_t sequence) {
    v1::BlockRequest& request = *batch_.add_items();
    request.set_id(++last_id_);
    request.set_sequence(sequence);
    return request;
  }
  uint64_t Open(uint64_t sequence, absl::Span<const int32_t> tokens, int64_t first_context = -1,
                bool close_after = false, int64_t reserve_blocks = 64) {
    v1::OpenSequence& open = *Add(sequence).mutable_open();
    open.mutable_tokens()->Add(tokens.begin(), tokens.end());
    open.set_first_context(first_context);
    open.set_close_after(close_after);
    open.set_reserve_blocks(reserve_blocks);
    return last_id_;
  }
  uint64_t Append(uint64_t sequence, int64_t index, absl::Span<const int32_t> tokens) {
    v1::AppendBlock& append = *Add(sequence).mutable_append();
    append.set_block_index(index);
    append.mutable_tokens()->Add(tokens.begin(), tokens.end());
    return last_id_;
  }
  uint64_t Fork(uint64_t child, uint64_t parent, int64_t blocks) {
    v1::ForkSequence& fork = *Add(child).mutable_fork();
    fork.set_parent(parent);
    fork.set_blocks(blocks);
    fork.set_reserve_blocks(64);
    return last_id_;
  }
  uint64_t Close(uint64_t sequence) {
    Add(sequence).mutable_close();
    return last_id_;
  }
  // Sends what was added.
  void Flush() {
    stream_->Write(batch_);
    batch_.Clear();
  }

  void Ping(uint64_t ping) {
    v1::BlockRequestBatch batch;
    batch.set_ping(ping);
    stream_->Write(batch);
  }

  // Reads one message; false at the end of the stream.
  bool Read() {
    v1::BlockReplyBatch batch;
    if (!stream_->Read(&batch)) return false;
    ++messages;
    if (messages == 1) {
      EXPECT_TRUE(batch.has_hello());
      hello = batch.hello();
    } else {
      EXPECT_FALSE(batch.has_hello());
    }
    draining |= batch.draining();
    if (batch.pong() != 0) pong = batch.pong();
    if (batch.has_load()) load = batch.load();
    largest_message = std::max(largest_message, batch.ByteSizeLong());
    const size_t row_bytes = static_cast<size_t>(hello.context_width()) *
                             (hello.context_type() == v1::CONTEXT_TYPE_BFLOAT16 ? 2 : 4);
    size_t offset = 0;
    for (const v1::BlockReply& reply : batch.items()) {
      Answer& answer = answers_[reply.id()];
      EXPECT_FALSE(answer.done) << "item " << reply.id() << " is answered twice";
      if (answer.replies++ == 0) answer.first_block = reply.first_block();
      const size_t bytes = static_cast<size_t>(reply.rows()) * row_bytes;
      answer.rows += batch.contexts().substr(offset, bytes);
      offset += bytes;
      answer.code = static_cast<absl::StatusCode>(reply.status().code());
      answer.message = reply.status().message();
      answer.done = reply.last();
      answer.suspended = reply.suspended();
      answer.cached_blocks = reply.cached_blocks();
    }
    EXPECT_EQ(offset, batch.contexts().size());
    return true;
  }
  const Answer& Wait(uint64_t id) {
    while (!answers_[id].done) {
      if (!Read()) {
        ADD_FAILURE() << "the stream ended before item " << id << " was answered";
        break;
      }
    }
    return answers_[id];
  }
  // The last row of an answer that must be OK.
  std::string Rows(uint64_t id) {
    const Answer& answer = Wait(id);
    EXPECT_EQ(answer.code, absl::StatusCode::kOk) << answer.message;
    return answer.rows;
  }
  // Ends the stream in order; its status.
  grpc::Status Finish() {
    stream_->WritesDone();
    while (Read()) {
    }
    const grpc::Status status = stream_->Finish();
    stream_.reset();
    return status;
  }
  // Breaks the stream off.
  void Vanish() {
    context_.TryCancel();
    v1::BlockReplyBatch ignored;
    while (stream_->Read(&ignored)) {
    }
    stream_->Finish();
    stream_.reset();
  }

  v1::BlockServiceHello hello;
  v1::BlockLoad load;
  bool draining = false;
  uint64_t pong = 0;
  int messages = 0;
  size_t largest_message = 0;

 private:
  std::unique_ptr<v1::BlockDecoder::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::BlockRequestBatch, v1::BlockReplyBatch>> stream_;
  v1::BlockRequestBatch batch_;
  uint64_t last_id_ = 0;
  std::map<uint64_t, Answer> answers_;
};

inline std::unique_ptr<RpcServer> Serve(BlockService& service) {
  absl::StatusOr<std::unique_ptr<RpcServer>> server = RpcServer::Start({}, {service.service()});
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_TEST_GATEWAY_H_
