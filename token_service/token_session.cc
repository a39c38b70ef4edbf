#include "token_service/token_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "rpc/status.h"
#include "rpc/tier_hello.h"
#include "rpc/tier_merge.h"
#include "token_service/row_codec.h"

namespace blockserve {
namespace {

constexpr OutgoingLimits kBeforeHello = {.max_queued_bytes = 1 << 20, .max_merged_bytes = 1 << 20};

// Of rows, and of ids to cancel. No gateway comes near it: rows have contexts, and a message may
// have 16 MiB.
constexpr int kMostRowsOfMessage = 1 << 16;

void FillLoad(const WorkerLoad& load, v1::TokenReplyBatch& reply) {
  v1::TokenLoad& out = *reply.mutable_load();
  out.set_steps(load.steps);
  out.set_waiting(load.waiting);
  out.set_running(load.running);
  out.set_busy_share(load.busy_share);
  reply.set_draining(load.draining);
}

}  // namespace

TokenSession::TokenSession(StreamId id, std::shared_ptr<TokenServerStream> stream,
                           const TokenSessionContext& context, Hooks hooks)
    : id_(id),
      stream_(std::move(stream)),
      context_(context),
      hooks_(std::move(hooks)),
      spans_(context.trace_seed + id),
      before_hello_(kBeforeHello, MergeTokenReplies) {}

absl::Status TokenSession::CheckHello(const v1::TokenRequestBatch& message) const {
  if (!message.has_hello()) {
    return absl::InvalidArgumentError("hello: missing in the stream's first message");
  }
  return CheckGatewayHello(message.hello(), context_.config_hash, context_.tokenizer_hash);
}

void TokenSession::OnMessage(v1::TokenRequestBatch&& message) {
  if (refused_) return;
  bool first;
  {
    MutexLock lock(&mutex_);
    first = hello_state_ == HelloState::kNotAccepted;
  }
  absl::Status status;
  if (first) {
    status = CheckHello(message);
  } else if (message.has_hello()) {
    status = absl::InvalidArgumentError("hello: only the stream's first message has one");
  }
  // Before anything is made of them: a row may take two bytes there, and some hundred here.
  if (status.ok() && std::max(message.rows_size(), message.cancel_size()) > kMostRowsOfMessage) {
    status = absl::ResourceExhaustedError(
        absl::StrCat(message.rows_size(), " rows, and ", message.cancel_size(),
                     " to cancel, in one message; at most ", kMostRowsOfMessage));
  }
  if (!status.ok()) {
    context_.refused.Warn(
        absl::StrCat("token worker: gateway ", stream_->peer(), " refused: ", status.message()));
    refused_ = true;
    Finish(status);
    return;
  }
  if (first) {
    {
      MutexLock lock(&mutex_);
      hello_state_ = HelloState::kAccepted;
    }
    LogInfo(absl::StrCat("token worker: gateway ", stream_->peer(), " connected"));
    hooks_.ask_hello();
  }
  if (message.ping() != 0) {
    v1::TokenReplyBatch pong;
    pong.set_pong(message.ping());
    Reply(std::move(pong));
  }
  if (message.rows_size() > 0) TakeRows(message);
  if (message.cancel_size() > 0) {
    const std::vector<RowAnswer> cancelled = context_.worker.Cancel(
        id_, absl::MakeConstSpan(message.cancel().data(), message.cancel_size()));
    std::vector<const RowAnswer*> answers;
    for (const RowAnswer& answer : cancelled) answers.push_back(&answer);
    if (!answers.empty()) Deliver(answers);
  }
}

void TokenSession::TakeRows(const v1::TokenRequestBatch& message) {
  const absl::Time now = context_.clock.Now();
  std::vector<RowContext> contexts;
  const absl::Status batch_status = SplitContexts(context_.config, message, contexts);
  std::vector<QueuedRow> rows;
  std::vector<RowAnswer> refused;
  rows.reserve(message.rows_size());
  for (int i = 0; i < message.rows_size(); ++i) {
    const v1::TokenRowRequest& request = message.rows(i);
    auto row = std::make_unique<DecodeRow>();
    absl::Status status = batch_status;
    if (status.ok()) status = ParseRow(context_.config, request, contexts[i], *row);
    if (!status.ok()) {
      RowAnswer answer;
      answer.id = request.id();
      answer.status = std::move(status);
      refused.push_back(std::move(answer));
      continue;
    }
    spans_.Begin(request.id(), "token.row", request.header().traceparent(),
                 request.header().request_key(), now);
    QueuedRow queued;
    queued.stream = id_;
    queued.id = request.id();
    if (request.header().remaining_ms() > 0) {
      queued.deadline = now + absl::Milliseconds(request.header().remaining_ms());
    }
    queued.priority = request.header().priority();
    queued.row = std::move(row);
    rows.push_back(std::move(queued));
  }
  for (RowAnswer& answer : context_.worker.Submit(std::move(rows))) {
    refused.push_back(std::move(answer));
  }
  std::vector<const RowAnswer*> answers;
  for (const RowAnswer& answer : refused) answers.push_back(&answer);
  if (!answers.empty()) Deliver(answers);
}

void TokenSession::OnClosed() {
  context_.worker.CloseStream(id_);
  bool greeted;
  {
    MutexLock lock(&mutex_);
    greeted = hello_state_ != HelloState::kNotAccepted;
  }
  if (greeted) LogInfo(absl::StrCat("token worker: gateway ", stream_->peer(), " disconnected"));
  hooks_.on_closed();
}

void TokenSession::SayHello(const v1::TokenServiceHello& hello) {
  {
    MutexLock lock(&mutex_);
    if (hello_state_ != HelloState::kAccepted) return;
    hello_state_ = HelloState::kSaying;
  }
  v1::TokenReplyBatch next;
  *next.mutable_hello() = hello;
  FillLoad(context_.worker.load(), next);
  while (true) {
    stream_->Send(std::move(next));
    MutexLock lock(&mutex_);
    if (before_hello_.empty()) {
      hello_state_ = HelloState::kSaid;
      return;
    }
    next = before_hello_.Pop();
  }
}

void TokenSession::Reply(v1::TokenReplyBatch reply) {
  bool said, kept = false;
  {
    MutexLock lock(&mutex_);
    said = hello_state_ == HelloState::kSaid;
    if (!said) kept = before_hello_.Push(std::move(reply));
  }
  if (said) {
    stream_->Send(std::move(reply));
  } else if (!kept) {
    Finish(absl::ResourceExhaustedError("too many rows before this worker's hello"));
  }
}

void TokenSession::Deliver(const std::vector<const RowAnswer*>& answers) {
  v1::TokenReplyBatch reply;
  reply.mutable_rows()->Reserve(static_cast<int>(answers.size()));
  int64_t bytes = 0;
  const absl::Time now = context_.clock.Now();
  for (const RowAnswer* answer : answers) {
    v1::TokenRowReply row;
    FillReply(*answer, row);
    const int64_t row_bytes = static_cast<int64_t>(row.ByteSizeLong());
    // Long blocks with the log-probabilities of many tokens are more than a message may hold. The
    // last one tells the load.
    if (bytes > 0 && bytes + row_bytes > context_.max_reply_bytes) {
      Reply(std::exchange(reply, {}));
      bytes = 0;
    }
    bytes += row_bytes;
    *reply.add_rows() = std::move(row);
    spans_.End(answer->id, answer->status.code(), now);
  }
  FillLoad(context_.worker.load(), reply);
  Reply(std::move(reply));
}

void TokenSession::AnnounceLoad() {
  v1::TokenReplyBatch reply;
  FillLoad(context_.worker.load(), reply);
  Reply(std::move(reply));
}

void TokenSession::Finish(const absl::Status& status) { stream_->Finish(ToGrpcStatus(status)); }

}  // namespace blockserve
