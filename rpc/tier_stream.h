// Client side of the tiers' long-lived bidirectional streams, on gRPC's callback API: one stream, a
// bounded queue of requests with one outstanding write, replies in order.
//
//   auto stub = std::shared_ptr<v1::TokenDecoder::Stub>(v1::TokenDecoder::NewStub(channel));
//   auto stream = TokenStream::Create(
//       [stub](grpc::ClientContext* context, auto* reactor) { stub->async()->Run(context, reactor);
//       },
//       {.limits = {}, .merge = MergeTokenRequests},
//       {.on_message = ..., .on_closed = ...});
//   stream->Start();
//
// gRPC 1.51 joins the threads that run callbacks when the last channel or server of the process
// goes, which must not happen on one of those threads. So the caller keeps the channel until
// on_closed was called, and lets go of it on a thread of its own; what the stream itself holds of
// the channel (also the stub that `Open` captured) is gone before on_closed is called.
//
// A broken stream stays broken: when to connect again, and to whom, is the caller's policy. The
// stream has no deadline of its own; the channel's keepalive (TierChannelArguments) finds a dead
// peer.
#ifndef BLOCKSERVE_RPC_TIER_STREAM_H_
#define BLOCKSERVE_RPC_TIER_STREAM_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_callback.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "common/mutex.h"
#include "rpc/outgoing_queue.h"
#include "rpc/server.h"
#include "rpc/status.h"

namespace blockserve {

// Arguments of a channel to a tier: a ping every 10 s, dead when unanswered for 5 s (that is how a
// frozen or partitioned peer shows), short connection backoff since the gateway has its own,
// messages up to `max_message_bytes`, and connections of its own.
grpc::ChannelArguments TierChannelArguments(int max_message_bytes = kMaxTierMessageBytes);

// A channel to "host:port" with these arguments. Never fails; an address that cannot be reached
// shows when a stream is started. `credentials`: null for plaintext. `server_name`: what the
// certificate must name; empty: the host.
std::shared_ptr<grpc::Channel> MakeTierChannel(
    const std::string& address,
    const std::shared_ptr<grpc::ChannelCredentials>& credentials = nullptr,
    const std::string& server_name = {}, int max_message_bytes = kMaxTierMessageBytes);

template <class Request, class Reply>
class TierStream final : public std::enable_shared_from_this<TierStream<Request, Reply>> {
 public:
  using Reactor = grpc::ClientBidiReactor<Request, Reply>;
  // Begins the call on a stub; what it captures is freed before on_closed is called.
  using Open = std::function<void(grpc::ClientContext* context, Reactor* reactor)>;

  struct Options {
    OutgoingLimits limits;
    typename OutgoingQueue<Request>::Merge merge;
    // Runs what it is given on another thread, which then starts the write of what is queued.
    // Called by Send, with no lock held, where that is `large_bytes` or more: to put a megabyte
    // into frames takes a millisecond. Null: Send starts every write.
    std::function<void(std::function<void()> write)> write_large = {};
    int64_t large_bytes = int64_t{64} << 10;
  };

  // Called on gRPC threads, with no lock held; they must not block, and may call Send and Close.
  // They are destroyed after on_closed has returned.
  struct Callbacks {
    // One at a time, in order. At most one that had begun is still running when Close returns.
    std::function<void(Reply&& reply)> on_message;
    // Exactly once for a started stream, after the last on_message. OK: the service ended the
    // stream. CANCELLED: Close. RESOURCE_EXHAUSTED: the queue was full, the service did not read.
    std::function<void(absl::Status status)> on_closed;
  };

  static std::shared_ptr<TierStream> Create(Open open, Options options, Callbacks callbacks) {
    return std::shared_ptr<TierStream>(
        new TierStream(std::move(open), std::move(options), std::move(callbacks)));
  }

  // Starts the call, which then keeps the stream alive until on_closed: without Close it lives as
  // long as the connection. Once. What was sent before is written first.
  void Start() {
    const std::shared_ptr<TierStream> self = this->shared_from_this();
    grpc::ClientContext* context;
    {
      MutexLock lock(&mutex_);
      self_ = self;
      context = context_.get();
    }
    open_(context, &call_);
    call_.AddHold();  // writes are started from outside of gRPC's reactions: see ReleaseHoldIfOver
    call_.StartRead(&incoming_);
    call_.StartCall();
    {
      MutexLock lock(&mutex_);
      running_ = true;
    }
    // The call may have ended meanwhile; the hold has kept it.
    Advance();
    ReleaseHoldIfOver();
  }

  // Queues a request; thread-safe. False: it will not be delivered, because the stream is over or
  // because the queue is full: a service that does not read is given up, and on_closed follows.
  bool Send(Request request) {
    bool queued;
    bool hand_over = false;
    {
      MutexLock lock(&mutex_);
      if (over_ || closed_ || finishing_) return false;
      queued = queue_.Push(std::move(request));
      if (!queued) overflow_ = true;
      if (queued && handed_over_) return true;  // written by whoever has it in hand
      hand_over = queued && write_large_ && queue_.bytes() >= large_bytes_ && MayWriteLocked();
      handed_over_ = hand_over;
    }
    if (hand_over) {
      write_large_([self = this->shared_from_this()] { self->WriteHandedOver(); });
    } else if (queued) {
      Advance();
    } else {
      Close();
    }
    return queued;
  }

  // Of what was sent and is not being written yet. Thread-safe.
  int64_t queued_bytes() const {
    MutexLock lock(&mutex_);
    return queue_.bytes();
  }

  // No more is sent: what is queued is written, then this side ends, and the service ends the
  // stream in turn. Thread-safe; after Start.
  void Finish() {
    {
      MutexLock lock(&mutex_);
      finishing_ = true;
    }
    Advance();
  }

  // Breaks the stream off; thread-safe, any number of times, also before Start and from a callback.
  // Requests that were not written are dropped. on_closed follows, if the stream was started.
  void Close() {
    MutexLock lock(&mutex_);
    closed_ = true;
    queue_.Clear();
    // Under the lock, which keeps the context alive; it calls back nobody.
    if (context_ != nullptr) context_->TryCancel();
  }

 private:
  // gRPC's side; a member, so that the public class shows none of the reactor's methods.
  class Call final : public Reactor {
   public:
    explicit Call(TierStream& stream) : stream_(stream) {}
    void OnReadDone(bool ok) override { stream_.OnReadDone(ok); }
    void OnWriteDone(bool ok) override { stream_.OnWriteDone(ok); }
    void OnDone(const grpc::Status& status) override { stream_.OnDone(status); }

   private:
    TierStream& stream_;
  };

  TierStream(Open open, Options options, Callbacks callbacks)
      : open_(std::move(open)),
        callbacks_(std::move(callbacks)),
        write_large_(std::move(options.write_large)),
        large_bytes_(options.large_bytes),
        call_(*this),
        context_(std::make_unique<grpc::ClientContext>()),
        queue_(options.limits, std::move(options.merge)) {}

  bool MayWriteLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return running_ && !writing_ && !over_ && !closed_;
  }

  void WriteHandedOver() {
    {
      MutexLock lock(&mutex_);
      handed_over_ = false;
    }
    Advance();
  }

  bool IsClosed() {
    MutexLock lock(&mutex_);
    return closed_;
  }

  // Starts the next write, or ends this side, if no write is under way. gRPC's side of the call is
  // there while hold_ is set, and that waits for starting_.
  void Advance() {
    bool ends = false;
    {
      MutexLock lock(&mutex_);
      if (!MayWriteLocked()) return;
      if (queue_.empty() && !finishing_) return;
      ends = queue_.empty();
      if (!ends) outgoing_ = queue_.Pop();
      writing_ = true;  // for good, where it ends
      ++starting_;
    }
    if (ends) {
      call_.StartWritesDone();
    } else {
      call_.StartWrite(&outgoing_);
    }
    {
      MutexLock lock(&mutex_);
      --starting_;
    }
    ReleaseHoldIfOver();
  }

  // The hold is for operations that are started outside of gRPC's reactions. Once the reading side
  // has ended none is started, and the hold goes as soon as none is just being started.
  void ReleaseHoldIfOver() {
    {
      MutexLock lock(&mutex_);
      if (!over_ || !running_ || starting_ > 0 || !hold_) return;
      hold_ = false;
    }
    call_.RemoveHold();
  }

  void OnReadDone(bool ok) {
    if (ok) {
      if (!IsClosed()) callbacks_.on_message(std::move(incoming_));
      call_.StartRead(&incoming_);  // in a reaction, which is as good as a hold
      return;
    }
    {
      MutexLock lock(&mutex_);
      over_ = true;
      queue_.Clear();
    }
    ReleaseHoldIfOver();
  }

  void OnWriteDone(bool ok) {
    // Freed here, where nobody waits for it: Clear would keep most of it until the next message
    // takes its place, under the lock that senders take.
    outgoing_ = Request();
    {
      MutexLock lock(&mutex_);
      // After a failed write the reading side ends too; until then nothing more is written.
      if (!ok) {
        over_ = true;
        queue_.Clear();
      }
      writing_ = false;
    }
    Advance();
  }

  void OnDone(const grpc::Status& status) {
    absl::Status outcome = FromGrpcStatus(status);
    std::shared_ptr<TierStream> self;
    open_ = nullptr;
    {
      MutexLock lock(&mutex_);
      over_ = true;
      context_.reset();
      if (overflow_) {
        outcome = absl::ResourceExhaustedError("the service does not read its requests");
      } else if (closed_) {
        outcome = absl::CancelledError("the stream was closed");
      }
      self.swap(self_);
    }
    Callbacks callbacks = std::move(callbacks_);
    callbacks.on_closed(std::move(outcome));
    // `callbacks` may own the last other reference; `self` goes last.
  }

  Open open_;            // used by Start and OnDone alone
  Callbacks callbacks_;  // used by the reading side alone
  const std::function<void(std::function<void()>)> write_large_;
  const int64_t large_bytes_;
  Call call_;
  Reply incoming_;    // of the read under way
  Request outgoing_;  // of the write under way: owned by whoever set writing_
  mutable Mutex mutex_;
  // Set from Create until OnDone. Start hands it to gRPC, which uses it until OnDone.
  std::unique_ptr<grpc::ClientContext> context_ ABSL_GUARDED_BY(mutex_);
  OutgoingQueue<Request> queue_ ABSL_GUARDED_BY(mutex_);
  bool running_ ABSL_GUARDED_BY(mutex_) = false;      // StartCall has returned
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;      // a write is under way
  bool handed_over_ ABSL_GUARDED_BY(mutex_) = false;  // write_large_ has one to start
  // Threads that are just handing a write to gRPC: the write of one may complete, and another
  // begin, before it comes back.
  int starting_ ABSL_GUARDED_BY(mutex_) = 0;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;    // gRPC delivers and takes nothing more
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // by Close or a full queue
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool overflow_ ABSL_GUARDED_BY(mutex_) = false;
  bool hold_ ABSL_GUARDED_BY(mutex_) = true;
  std::shared_ptr<TierStream> self_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TIER_STREAM_H_
