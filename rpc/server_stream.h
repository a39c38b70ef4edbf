// Server side of a bidirectional stream on gRPC's callback API: reads without end into a handler,
// and writes from a queue that any thread may fill.
//
//   grpc::ServerBidiReactor<Request, Reply>* Run(grpc::CallbackServerContext* context) override {
//     auto stream = ServerStream<Request, Reply>::Create(context, options);
//     stream->Start(std::make_shared<Session>(stream, ...));  // a ServerStream::Handler
//     return stream.get();
//   }
//
// What holds, whatever either side does and when:
// - the handler gets OnMessage one at a time and in order, and OnClosed exactly once after the
// last;
// - one write is outstanding at most, and gRPC's Finish is called exactly once, when none is;
// - no lock is held while the handler is called or a gRPC operation is started;
// - the object lives until gRPC is done with it (OnDone), and longer if somebody keeps the
// shared_ptr:
//   Send and Finish are then refused quietly.
#ifndef BLOCKSERVE_RPC_SERVER_STREAM_H_
#define BLOCKSERVE_RPC_SERVER_STREAM_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <string>
#include <utility>

#include "common/mutex.h"
#include "rpc/outgoing_queue.h"

namespace blockserve {

template <class Request, class Reply>
class ServerStream final : public grpc::ServerBidiReactor<Request, Reply>,
                           public std::enable_shared_from_this<ServerStream<Request, Reply>> {
 public:
  class Handler {
   public:
    virtual ~Handler() = default;
    // Called on a gRPC thread: must not block. The next message is read when it returns. May call
    // Send and Finish.
    virtual void OnMessage(Request&& message) = 0;
    // No message comes any more: the client has ended its side, or the connection or the call is
    // gone. After it returns the stream finishes by itself (what is queued is written first),
    // unless Finish was called before; work in hand for this stream has nobody to go to.
    virtual void OnClosed() = 0;
  };

  struct Options {
    OutgoingLimits limits;
    typename OutgoingQueue<Reply>::Merge merge;
  };

  static std::shared_ptr<ServerStream> Create(grpc::CallbackServerContext* context,
                                              Options options) {
    return std::shared_ptr<ServerStream>(new ServerStream(context, std::move(options)));
  }

  // Keeps the stream and its handler alive until gRPC's OnDone, and starts to read. Once.
  void Start(std::shared_ptr<Handler> handler) {
    handler_ = std::move(handler);
    {
      MutexLock lock(&mutex_);
      self_ = this->shared_from_this();
    }
    this->StartRead(&incoming_);
  }

  // Queues a reply; thread-safe. False: it will not be delivered, because the stream is over, or
  // because the queue is full: a peer that does not read then loses its stream (the call is
  // cancelled).
  bool Send(Reply reply) {
    bool overflow = false;
    {
      MutexLock lock(&mutex_);
      if (broken_ || finish_wanted_) return false;
      if (!queue_.Push(std::move(reply))) {
        overflow = true;
        BreakLocked();
        finish_wanted_ = true;
        status_ = grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED,
                               "the client does not read its replies");
        cancelling_ = true;  // keeps the context alive: see Advance
      }
    }
    if (overflow) {
      // A write to a peer that does not read may never complete by itself.
      context_->TryCancel();
      MutexLock lock(&mutex_);
      cancelling_ = false;
    }
    Advance();
    return !overflow;
  }

  // Of what was sent and is not being written yet. Thread-safe.
  int64_t queued_bytes() const {
    MutexLock lock(&mutex_);
    return queue_.bytes();
  }

  // Ends the stream with `status` after what is queued has been written; thread-safe. The first
  // call counts. OnClosed still follows.
  void Finish(grpc::Status status) {
    {
      MutexLock lock(&mutex_);
      if (finish_wanted_) return;
      finish_wanted_ = true;
      status_ = std::move(status);
    }
    Advance();
  }

  // Address of the client as gRPC writes it, or "in this process".
  const std::string& peer() const { return peer_; }

 private:
  ServerStream(grpc::CallbackServerContext* context, Options options)
      : context_(context),
        peer_(PeerName(context->peer())),
        queue_(options.limits, std::move(options.merge)) {}

  static std::string PeerName(std::string address) {
    return address == "unknown" ? "in this process" : address;
  }

  // Starts the next operation on the writing side, if none is under way. `context_` and gRPC's side
  // of the stream are there until finish_issued_ is set, and that waits for writing_ and
  // cancelling_.
  void Advance() {
    grpc::Status status;
    bool finish = false;
    {
      MutexLock lock(&mutex_);
      if (writing_ || cancelling_ || finish_issued_) return;
      if (!queue_.empty()) {
        outgoing_ = queue_.Pop();
        writing_ = true;
      } else if (finish_wanted_) {
        finish_issued_ = true;
        finish = true;
        status = std::move(status_);
      } else {
        return;
      }
    }
    if (finish) {
      grpc::ServerBidiReactor<Request, Reply>::Finish(std::move(status));
    } else {
      this->StartWrite(&outgoing_);
    }
  }

  void BreakLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    broken_ = true;
    queue_.Clear();
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      handler_->OnMessage(std::move(incoming_));
      bool finished;
      {
        MutexLock lock(&mutex_);
        finished = finish_issued_;
      }
      if (!finished) {
        this->StartRead(&incoming_);
        return;
      }
    }
    handler_->OnClosed();
    {
      MutexLock lock(&mutex_);
      if (!finish_wanted_) {
        finish_wanted_ = true;
        // Also set where a message could not be parsed.
        status_ = context_->IsCancelled()
                      ? grpc::Status(grpc::StatusCode::CANCELLED, "the stream was broken off")
                      : grpc::Status::OK;
      }
    }
    Advance();
  }

  void OnWriteDone(bool ok) override {
    outgoing_ = Reply();  // outside of the lock, and all of it: see TierStream
    {
      MutexLock lock(&mutex_);
      writing_ = false;
      if (!ok) BreakLocked();
    }
    Advance();
  }

  // The pending read and write complete with false; the rest follows from there.
  void OnCancel() override {
    MutexLock lock(&mutex_);
    BreakLocked();
  }

  void OnDone() override {
    std::shared_ptr<Handler> handler = std::move(handler_);
    std::shared_ptr<ServerStream> self;
    MutexLock lock(&mutex_);
    self.swap(self_);
    // `lock` is released before `self`, and `self` before `handler`.
  }

  grpc::CallbackServerContext* const context_;  // gRPC's, until OnDone
  const std::string peer_;
  std::shared_ptr<Handler> handler_;  // used by the reading side alone
  Request incoming_;                  // of the read under way
  Reply outgoing_;                    // of the write under way: owned by whoever set writing_
  mutable Mutex mutex_;
  OutgoingQueue<Reply> queue_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool cancelling_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;  // nothing more can be written
  bool finish_wanted_ ABSL_GUARDED_BY(mutex_) = false;
  bool finish_issued_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::Status status_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<ServerStream> self_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_SERVER_STREAM_H_
