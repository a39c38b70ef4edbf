#include "block_service/block_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "block_service/item_codec.h"
#include "common/logging.h"
#include "rpc/context_codec.h"
#include "rpc/status.h"
#include "rpc/tier_hello.h"

namespace blockserve {
namespace {

// Room for calls that free something, and for refusals that the client has not read yet.
constexpr int64_t kHardLimitFactor = 4;

absl::string_view SpanName(const v1::BlockRequest& request) {
  return request.has_open() ? "block.open" : request.has_fork() ? "block.fork" : "block.append";
}

bool FreesSomething(const v1::BlockRequest& request) {
  return request.has_close() || request.has_cancel();
}

void FillLoad(const BlockLoadReport& report, v1::BlockReplyBatch& batch) {
  v1::BlockLoad& load = *batch.mutable_load();
  load.set_steps(report.steps);
  load.set_free_pages(report.pages.free_pages);
  load.set_cached_pages(report.pages.cached_pages);
  load.set_sequences(report.pages.sequences);
  load.set_waiting(report.pages.waiting);
  load.set_busy_share(static_cast<float>(report.busy_share));
  batch.set_draining(report.draining);
}

}  // namespace

bool BlockSession::CheckHello(const v1::BlockRequestBatch& batch) {
  if (greeted_) {
    if (!batch.has_hello()) return true;
    End(absl::StatusCode::kInvalidArgument, "hello: only a stream's first message may have one");
    return false;
  }
  if (!batch.has_hello()) {
    End(absl::StatusCode::kInvalidArgument, "hello: a stream's first message must have one");
    return false;
  }
  const absl::Status fits = CheckGatewayHello(batch.hello(), context_->hello.tier().config_hash(),
                                              context_->hello.tier().tokenizer_hash());
  if (!fits.ok()) {
    context_->refused.Warn(absl::StrCat("block service: gateway ", stream_->peer(),
                                        " does not fit: ", fits.message()));
    End(fits.code(), std::string(fits.message()));
    return false;
  }
  greeted_ = true;
  incarnation_ = batch.hello().gateway_incarnation();
  if (!context_->mailbox->Post(StreamOpened{id_, incarnation_, shared_from_this()})) {
    End(absl::StatusCode::kUnavailable, "this block service leaves");
    return false;
  }
  LogInfo(absl::StrCat("block service: gateway ", stream_->peer(), " connected"));
  return true;
}

void BlockSession::OnMessage(v1::BlockRequestBatch&& batch) {
  if (ended_ || !CheckHello(batch)) return;
  if (batch.ping() != 0) {
    ping_.store(batch.ping());
    AnswerPing();
  }
  if (batch.items_size() == 0) return;
  const absl::Time now = context_->clock->Now();
  StreamItems items;
  items.stream = id_;
  items.items.reserve(static_cast<size_t>(batch.items_size()));
  int64_t outstanding = outstanding_.fetch_add(batch.items_size());
  for (v1::BlockRequest& request : *batch.mutable_items()) {
    if (++outstanding > context_->max_items && !FreesSomething(request)) {
      items.refused.push_back(request.id());
    } else {
      spans_.Begin(request.id(), SpanName(request), request.header().traceparent(),
                   request.header().request_key(), now);
      items.items.push_back(ToItem(request, id_, incarnation_, now));
    }
  }
  if (outstanding > kHardLimitFactor * context_->max_items) {
    return End(absl::StatusCode::kResourceExhausted, "far too many items wait for their replies");
  }
  if (!context_->mailbox->Post(std::move(items))) {
    End(absl::StatusCode::kUnavailable, "this block service leaves");
  }
}

void BlockSession::OnClosed() {
  if (!greeted_) return;
  context_->mailbox->Post(StreamClosed{id_});
  LogInfo(absl::StrCat("block service: gateway ", stream_->peer(), " disconnected"));
}

void BlockSession::End(absl::StatusCode code, const std::string& message) {
  ended_ = true;
  stream_->Finish(ToGrpcStatus(absl::Status(code, message)));
}

void BlockSession::SayHello(const std::string& part_hash, const BlockLoadReport& load) {
  *batch_.mutable_hello() = context_->hello;
  batch_.mutable_hello()->mutable_tier()->set_part_hash(part_hash);
  Flush(load);
  hello_said_.store(true);
  AnswerPing();
}

void BlockSession::AnswerPing() {
  if (!hello_said_.load()) return;  // SayHello will
  const uint64_t ping = ping_.exchange(0);
  if (ping == 0) return;
  v1::BlockReplyBatch pong;
  pong.set_pong(ping);
  stream_->Send(std::move(pong));
}

void BlockSession::Add(const BlockItemReply& reply) {
  const int64_t row_bytes = static_cast<int64_t>(reply.contexts.size() *
                                                 ContextValueBytes(context_->hello.context_type()));
  // The last message of a batch tells the load; those before it do not.
  if (batch_.items_size() > 0 &&
      static_cast<int64_t>(batch_.contexts().size()) + row_bytes > context_->max_reply_bytes) {
    SendBatch();
  }
  v1::BlockReply& item = *batch_.add_items();
  item.set_id(reply.id);
  if (!reply.status.ok()) *item.mutable_status() = ToItemStatus(reply.status);
  item.set_first_block(reply.first_block);
  item.set_rows(reply.rows);
  item.set_last(reply.last);
  item.set_suspended(reply.suspended);
  item.set_cached_blocks(reply.cached_blocks);
  AppendContexts(reply.contexts, context_->hello.context_type(), *batch_.mutable_contexts());
  if (reply.last) {
    outstanding_.fetch_sub(1);
    spans_.End(reply.id, reply.status.code(), context_->clock->Now());
  }
}

void BlockSession::Flush(const BlockLoadReport& load) {
  FillLoad(load, batch_);
  SendBatch();
}

void BlockSession::SendBatch() {
  stream_->Send(std::move(batch_));
  batch_ = v1::BlockReplyBatch();
}

void BlockSession::End(const absl::Status& status) { stream_->Finish(ToGrpcStatus(status)); }

}  // namespace blockserve
