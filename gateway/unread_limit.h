// Bounds how long what a gRPC client does not read is kept.
#ifndef BLOCKSERVE_GATEWAY_UNREAD_LIMIT_H_
#define BLOCKSERVE_GATEWAY_UNREAD_LIMIT_H_

#include <grpc/grpc.h>
#include <grpcpp/alarm.h>
#include <grpcpp/server_context.h>

#include "absl/time/time.h"
#include "rpc/deadline.h"

namespace blockserve {

// Of one call, as a part of its reactor.
class UnreadLimit {
 public:
  // Nothing else bounds how long an answer may stay whose request is over, and counts no more for
  // any limit, while its client is connected and does not read.
  static constexpr absl::Duration kTime = absl::Minutes(2);

  // In the call's first turn: later the context may be gone with the client.
  UnreadLimit(grpc::CallbackServerContext* context, absl::Duration time)
      : call_(context->c_call()), time_(time) {
    grpc_call_ref(call_);
  }
  ~UnreadLimit() { grpc_call_unref(call_); }
  UnreadLimit(const UnreadLimit&) = delete;
  UnreadLimit& operator=(const UnreadLimit&) = delete;

  // Once, when the request is over: a call that is still there when the time is up is cancelled, as
  // by its client.
  void Start() {
    grpc_call_ref(call_);
    alarm_.Set(GrpcDeadlineIn(time_), [call = call_](bool due) {
      if (due) grpc_call_cancel(call, nullptr);
      grpc_call_unref(call);
    });
  }

 private:
  grpc_call* const call_;
  const absl::Duration time_;
  grpc::Alarm alarm_;  // its end is that of the wait
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_UNREAD_LIMIT_H_
