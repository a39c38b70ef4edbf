// One gateway's stream: from protobuf to the engine loop's mailbox, and back.
#ifndef BLOCKSERVE_BLOCK_SERVICE_BLOCK_SESSION_H_
#define BLOCKSERVE_BLOCK_SERVICE_BLOCK_SESSION_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "block_service/engine_loop.h"
#include "blockserve/v1/block_decoder.pb.h"
#include "common/clock.h"
#include "common/open_spans.h"
#include "rpc/refused_gateways.h"
#include "rpc/server_stream.h"

namespace blockserve {

using BlockServerStream = ServerStream<v1::BlockRequestBatch, v1::BlockReplyBatch>;

// What sessions need to know of the replica; shared, since a session may outlive the service.
struct BlockSessionContext {
  v1::BlockServiceHello hello;  // without part_hash
  int32_t max_items = 0;        // of one stream, not yet answered
  int64_t max_reply_bytes = 0;
  const Clock* clock = nullptr;  // not used after the mailbox is closed
  std::shared_ptr<BlockMailbox> mailbox;
  mutable RefusedGateways refused;
};

class BlockSession final : public BlockServerStream::Handler,
                           public BlockReplySink,
                           public std::enable_shared_from_this<BlockSession> {
 public:
  BlockSession(std::shared_ptr<BlockServerStream> stream, StreamId id,
               std::shared_ptr<const BlockSessionContext> context)
      : stream_(std::move(stream)),
        id_(id),
        context_(std::move(context)),
        spans_(context_->hello.tier().incarnation() + id) {}

  // On gRPC's threads, one at a time.
  void OnMessage(v1::BlockRequestBatch&& batch) override;
  void OnClosed() override;

  // On the loop's thread.
  void SayHello(const std::string& part_hash, const BlockLoadReport& load) override;
  void Add(const BlockItemReply& reply) override;
  void Flush(const BlockLoadReport& load) override;
  void End(const absl::Status& status) override;
  int64_t unsent_bytes() const override { return stream_->queued_bytes(); }

 private:
  bool CheckHello(const v1::BlockRequestBatch& batch);
  void End(absl::StatusCode code, const std::string& message);
  void SendBatch();
  // By the gRPC thread that took the ping: the engine's may be in the middle of a step. Only a ping
  // that came before the hello was said is answered by the engine's.
  void AnswerPing();

  const std::shared_ptr<BlockServerStream> stream_;
  const StreamId id_;
  const std::shared_ptr<const BlockSessionContext> context_;

  // gRPC's side.
  bool greeted_ = false;
  bool ended_ = false;
  uint64_t incarnation_ = 0;

  // The loop's side.
  v1::BlockReplyBatch batch_;

  OpenSpans spans_;
  std::atomic<int64_t> outstanding_{0};  // items without their last reply
  std::atomic<bool> hello_said_{false};
  std::atomic<uint64_t> ping_{0};  // the latest that is not answered; 0: none
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_BLOCK_SESSION_H_
