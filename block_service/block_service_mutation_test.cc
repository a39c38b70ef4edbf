// What a broken or hostile gateway may send: bytes and fields changed at random. The process lives,
// no stream hangs, and a well-formed stream beside it gets the same context rows as before.
#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "block_service/block_service.h"
#include "blockserve/v1/block_decoder.grpc.pb.h"
#include "common/logging.h"
#include "model/checkpoint.h"
#include "rpc/mutation_for_test.h"
#include "rpc/server.h"
#include "rpc/tier_protocol.h"
#include "rpc/tier_stream.h"

namespace blockserve {
namespace {

constexpr char kMethod[] = "/blockserve.v1.BlockDecoder/Run";

v1::BlockRequestBatch HelloMessage(uint64_t incarnation) {
  v1::BlockRequestBatch message;
  message.mutable_hello()->set_protocol_version(kTierProtocolVersion);
  message.mutable_hello()->set_gateway_incarnation(incarnation);
  return message;
}

// Opens a sequence of three blocks, appends two, forks it after four, appends to the fork, closes
// both. Items first_id, first_id + 1, …, seven in all, of which the last two close.
constexpr int kItems = 7, kCloses = 2;
v1::BlockRequestBatch WellFormed(int32_t block_length, uint64_t first_id, uint64_t sequence) {
  v1::BlockRequestBatch batch;
  uint64_t id = first_id;
  const auto add = [&](uint64_t of) {
    v1::BlockRequest* item = batch.add_items();
    item->set_id(id++);
    item->set_sequence(of);
    item->mutable_header()->set_priority(2);
    return item;
  };
  const auto tokens = [&](auto& message, int32_t first, int32_t blocks) {
    for (int32_t i = 0; i < blocks * block_length; ++i) message.add_tokens((first + 13 * i) % 500);
  };
  v1::OpenSequence& open = *add(sequence)->mutable_open();
  tokens(open, 5, 3);
  open.set_reserve_blocks(8);
  for (int64_t index = 3; index < 5; ++index) {
    v1::AppendBlock& append = *add(sequence)->mutable_append();
    append.set_block_index(index);
    tokens(append, static_cast<int32_t>(index), 1);
  }
  v1::ForkSequence& fork = *add(sequence + 1)->mutable_fork();
  fork.set_parent(sequence);
  fork.set_blocks(4);
  fork.set_reserve_blocks(2);
  v1::AppendBlock& append = *add(sequence + 1)->mutable_append();
  append.set_block_index(4);
  tokens(append, 99, 1);
  add(sequence)->mutable_close();
  add(sequence + 1)->mutable_close();
  return batch;
}

// A well-formed gateway.
class Client {
 public:
  explicit Client(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(v1::BlockDecoder::NewStub(channel)) {
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(5));
    stream_ = stub_->Run(&context_);
    stream_->Write(HelloMessage(1));
    v1::BlockReplyBatch reply;
    if (stream_->Read(&reply)) block_length_ = reply.hello().block_length();
  }
  ~Client() {
    context_.TryCancel();
    v1::BlockReplyBatch reply;
    while (stream_->Read(&reply)) {
    }
    stream_->Finish();
  }
  // 0: there was no hello.
  int32_t block_length() const { return block_length_; }

  // The context rows of the well-formed items, by item; empty when one failed.
  std::map<uint64_t, std::string> Run() {
    v1::BlockRequestBatch work = WellFormed(block_length_, 1, 1), closes;
    for (int i = 0; i < kCloses; ++i) *closes.add_items() = work.items(kItems - kCloses + i);
    work.mutable_items()->DeleteSubrange(kItems - kCloses, kCloses);
    std::map<uint64_t, std::string> rows;
    // A Close does not wait for what was asked before it.
    stream_->Write(work);
    if (!ReadAnswers(kItems - kCloses, rows)) return {};
    stream_->Write(closes);
    if (!ReadAnswers(kCloses, rows)) return {};
    return rows;
  }

 private:
  // Reads until so many items are done.
  bool ReadAnswers(int items, std::map<uint64_t, std::string>& rows) {
    int done = 0;
    v1::BlockReplyBatch batch;
    while (done < items) {
      if (!stream_->Read(&batch)) return false;
      int64_t all_rows = 0, row = 0;
      for (const v1::BlockReply& reply : batch.items()) all_rows += reply.rows();
      const size_t row_bytes = all_rows == 0 ? 0 : batch.contexts().size() / all_rows;
      for (const v1::BlockReply& reply : batch.items()) {
        EXPECT_EQ(reply.status().code(), 0) << reply.id() << ": " << reply.status().message();
        rows[reply.id()] += batch.contexts().substr(row * row_bytes, reply.rows() * row_bytes);
        row += reply.rows();
        done += reply.last();
      }
    }
    return true;
  }

  std::unique_ptr<v1::BlockDecoder::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::BlockRequestBatch, v1::BlockReplyBatch>> stream_;
  int32_t block_length_ = 0;
};

TEST(BlockServiceMutation, LivesThroughDamagedStreams) {
  ASSERT_TRUE(ConfigureLogging({.program = "", .level = "error"}).ok());
  auto checkpoint = Checkpoint::Open("tests/golden/concat_l4");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ThreadPool pool(1);
  BlockServiceConfig config;
  config.kv_pages = 512;
  config.page_blocks = 4;
  // What a broken stream leaves behind must not fill the replica for the streams after it.
  config.lease = absl::ZeroDuration();
  config.allow_long_contexts = true;
  auto service = BlockService::Create(config, **checkpoint, &pool);
  ASSERT_TRUE(service.ok()) << service.status();
  ServerOptions options;
  options.listen_address = "127.0.0.1:0";
  auto server = RpcServer::Start(options, {(*service)->service()});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::shared_ptr<grpc::Channel> channel = MakeTierChannel((*server)->address());
  {
    Client client(channel);
    ASSERT_EQ(client.block_length(), 4);
    const std::map<uint64_t, std::string> expected = client.Run();
    ASSERT_EQ(expected.size(), static_cast<size_t>(kItems));
    EXPECT_FALSE(expected.at(2).empty());
    for (uint32_t seed = 0; seed < 300; ++seed) {
      Mutator mutator(seed);
      std::vector<std::string> messages;
      // Another gateway: its sequences are its own.
      v1::BlockRequestBatch hello = HelloMessage(1000 + seed);
      if (mutator.Below(4) == 0) mutator.MutateField(*hello.mutable_hello());
      hello.mutable_hello()->set_gateway_incarnation(1000 + seed);
      messages.push_back(hello.SerializeAsString());
      if (mutator.Below(8) == 0) messages.back() = mutator.Bytes(40);
      for (uint32_t count = 1 + mutator.Below(6); count > 0; --count) {
        if (mutator.Below(6) == 0) {
          messages.push_back(mutator.Bytes(300));
          continue;
        }
        v1::BlockRequestBatch batch =
            WellFormed(client.block_length(), count * 10, 1 + 2 * mutator.Below(3));
        for (uint32_t times = mutator.Below(6); times > 0; --times) mutator.MutateField(batch);
        messages.push_back(batch.SerializeAsString());
        if (mutator.Below(4) == 0) mutator.MutateBytes(messages.back());
      }
      const grpc::Status status = SendBytes(channel, kMethod, messages);
      ASSERT_NE(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << "seed " << seed;
      ASSERT_NE(status.error_code(), grpc::StatusCode::UNAVAILABLE) << "seed " << seed;
      ASSERT_EQ(client.Run(), expected) << "seed " << seed;
    }
  }
  (*service)->Stop();
  (*server)->Shutdown(absl::ZeroDuration());
}

}  // namespace
}  // namespace blockserve
