#include "gateway/generate_call.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <utility>

#include "gateway/call_metadata.h"
#include "gateway/gathering_sink.h"
#include "gateway/stop_string_sink.h"
#include "rpc/status.h"

namespace blockserve {
namespace {

// Moves a block behind the one in `into`; false, with both as they were, where it does not follow
// it or another worker wrote it.
bool AppendBlock(v1::GenerateResponse& from, v1::GenerateResponse& into) {
  if (!from.has_output() || !into.has_output()) return false;
  const v1::Output& more = from.output();
  v1::Output& output = *into.mutable_output();
  if (more.choice() != output.choice() || more.worker() != output.worker() ||
      more.position() != output.position() + output.tokens_size()) {
    return false;
  }
  AppendOutput(std::move(*from.mutable_output()), output);
  return true;
}

}  // namespace

std::shared_ptr<GenerateCall> GenerateCall::Create(GenerationCore* core, StreamWriters* writers,
                                                   grpc::CallbackServerContext* context,
                                                   absl::Duration unread_for) {
  std::shared_ptr<GenerateCall> call(new GenerateCall(core, writers, context, unread_for));
  call->self_ = call;
  return call;
}

bool GenerateCall::gone() const {
  MutexLock lock(&mutex_);
  return gone_;
}

void GenerateCall::Begin(absl::StatusOr<GenerationRequest> request) {
  if (!request.ok()) return OnDone(request.status(), {});
  std::shared_ptr<GenerationSink> sink = Gathering(WithStopStrings(shared_from_this(), *request),
                                                   request->stream_interval, request->n);
  const GenerationId id = core_->Generate(*std::move(request), std::move(sink));
  bool gone = false;
  bool resume = false;
  {
    MutexLock lock(&mutex_);
    id_ = id;
    gone = gone_;
    // The window may have filled and drained before the id was known.
    resume = paused_ && waiting_.size() <= kWindow / 2;
    if (resume) paused_ = false;
  }
  if (gone) {
    core_->Cancel(id, ClientHasGone());
  } else if (resume) {
    core_->Resume(id);
  }
}

void GenerateCall::OnStarted(v1::Started started) {
  v1::GenerateResponse event;
  *event.mutable_started() = std::move(started);
  Enqueue(std::move(event));
}

void GenerateCall::OnOutput(v1::Output output, OutputDetail /*detail*/) {
  v1::GenerateResponse event;
  *event.mutable_output() = std::move(output);
  Enqueue(std::move(event));
}

void GenerateCall::OnFinished(v1::Finished finished) {
  v1::GenerateResponse event;
  *event.mutable_finished() = std::move(finished);
  Enqueue(std::move(event));
}

void GenerateCall::OnDone(absl::Status status, v1::Usage usage) {
  bool will_be_pumped = false;
  {
    MutexLock lock(&mutex_);
    if (gone_ || outcome_.has_value()) return;
    if (status.ok()) {
      v1::GenerateResponse event;
      *event.mutable_usage() = std::move(usage);
      waiting_.push_back(std::move(event));
    }
    outcome_ = std::move(status);
    will_be_pumped = handed_over_ || writing_;  // as in Enqueue
  }
  // Once for a call, and where it is refused not on the loop.
  if (!will_be_pumped) Pump();
  {
    MutexLock lock(&mutex_);
    if (finished_) return;  // there is nothing that could be left unread
  }
  unread_.Start();
}

bool GenerateCall::WantsMore() const {
  MutexLock lock(&mutex_);
  if (waiting_.size() < kWindow) return true;
  paused_ = true;
  return false;
}

void GenerateCall::Enqueue(v1::GenerateResponse event) {
  {
    MutexLock lock(&mutex_);
    if (gone_ || finished_) return;
    waiting_.push_back(std::move(event));
    // Whoever is about to write, or to hear of the write under way, finds it.
    if (handed_over_ || writing_) return;
    handed_over_ = writers_ != nullptr;
  }
  if (writers_ == nullptr) return Pump();
  writers_->Add(shared_from_this());
}

void GenerateCall::WriteNext() {
  {
    MutexLock lock(&mutex_);
    handed_over_ = false;
  }
  Pump();
}

void GenerateCall::OnWriteDone(bool ok) {
  if (!ok) Stop();
  std::optional<GenerationId> resume;
  {
    MutexLock lock(&mutex_);
    writing_ = false;
    // Not at every message, so that the core is not woken for each.
    if (paused_ && id_.has_value() && waiting_.size() <= kWindow / 2) {
      paused_ = false;
      resume = id_;
    }
  }
  Pump();
  if (resume.has_value()) core_->Resume(*resume);
}

void GenerateCall::OnCancel() {
  Stop();
  Pump();
}

void GenerateCall::Stop() {
  std::optional<GenerationId> cancel;
  {
    MutexLock lock(&mutex_);
    if (gone_) return;
    gone_ = true;
    waiting_.clear();
    cancel = id_;
  }
  if (cancel.has_value()) core_->Cancel(*cancel, ClientHasGone());
}

void GenerateCall::Pump() {
  grpc::Status outcome;
  bool finish = false;
  {
    MutexLock lock(&mutex_);
    if (writing_ || finished_) return;
    if (!waiting_.empty()) {
      writing_ = true;
      bool own_buffer = false;
      writing_buffer_.Clear();  // of the write before: gRPC serializes into empty buffers only
      outcome = grpc::SerializationTraits<v1::GenerateResponse>::Serialize(
          TakeNext(), &writing_buffer_, &own_buffer);
      finish = !outcome.ok();
    } else if (gone_ || outcome_.has_value()) {
      outcome = gone_ ? grpc::Status::CANCELLED : FinalStatus(*outcome_, *context_);
      finish = true;
    } else {
      return;
    }
    finished_ = finish;
  }
  // Outside the lock, by the one thread that set writing_ or finished_.
  if (finish) {
    Finish(outcome);
  } else {
    StartWrite(&writing_buffer_);
  }
}

v1::GenerateResponse GenerateCall::TakeNext() {
  v1::GenerateResponse next = std::move(waiting_.front());
  waiting_.pop_front();
  while (!waiting_.empty() && AppendBlock(waiting_.front(), next)) {
    waiting_.pop_front();
  }
  return next;
}

void GenerateCall::OnDone() { std::exchange(self_, nullptr).reset(); }

}  // namespace blockserve
