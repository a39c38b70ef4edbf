// One Generate call: the reactor that writes a generation's events to its stream.
#ifndef BLOCKSERVE_GATEWAY_GENERATE_CALL_H_
#define BLOCKSERVE_GATEWAY_GENERATE_CALL_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <deque>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "gateway/generation.h"
#include "gateway/stream_writers.h"
#include "gateway/unread_limit.h"

namespace blockserve {

// Owns itself until gRPC's OnDone; the core shares the ownership. One write is outstanding at most.
// Events that wait are bounded: from kWindow on WantsMore is false, and each choice adds at most
// the block that is under way. Blocks that wait and follow one another leave as one event: where
// streams are more than this machine can write one by one, there is less to write. The first write
// of what waits is started by a writer, those that follow it by gRPC's threads.
class GenerateCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                           public GenerationSink,
                           public StreamWriters::Stream,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  static constexpr size_t kWindow = 16;

  // `core` and `writers` must outlive it. `writers`: null where whoever tells an event writes it.
  static std::shared_ptr<GenerateCall> Create(GenerationCore* core, StreamWriters* writers,
                                              grpc::CallbackServerContext* context,
                                              absl::Duration unread_for);
  // Starts the generation, or finishes the call with the request's error. To be called once, on any
  // thread, also after the client has left.
  void Begin(absl::StatusOr<GenerationRequest> request);
  // Whether the client has left.
  bool gone() const;

  void OnStarted(v1::Started started) override;
  void OnOutput(v1::Output output, OutputDetail detail) override;
  void OnFinished(v1::Finished finished) override;
  void OnDone(absl::Status status, v1::Usage usage) override;
  bool WantsMore() const override;

  void WriteNext() override;

  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  GenerateCall(GenerationCore* core, StreamWriters* writers, grpc::CallbackServerContext* context,
               absl::Duration unread_for)
      : core_(core), writers_(writers), context_(context), unread_(context, unread_for) {}

  void Enqueue(v1::GenerateResponse event);
  void Stop();
  // Starts the next write, or finishes the call: whatever is due.
  void Pump();
  // The oldest event, with the blocks that follow it.
  v1::GenerateResponse TakeNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  GenerationCore* const core_;
  StreamWriters* const writers_;
  grpc::CallbackServerContext* const context_;  // gRPC's, until OnDone
  UnreadLimit unread_;
  grpc::ByteBuffer writing_buffer_;  // of the write under way
  mutable Mutex mutex_;
  std::deque<v1::GenerateResponse> waiting_ ABSL_GUARDED_BY(mutex_);
  // Not known before Core::Generate returns, while the core's events may come earlier.
  std::optional<GenerationId> id_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> outcome_ ABSL_GUARDED_BY(mutex_);
  bool handed_over_ ABSL_GUARDED_BY(mutex_) = false;  // a writer will call WriteNext
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;            // the client has left
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;        // Finish was called
  mutable bool paused_ ABSL_GUARDED_BY(mutex_) = false;  // the core was told not to go on
  std::shared_ptr<GenerateCall> self_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_GENERATE_CALL_H_
