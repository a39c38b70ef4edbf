// What a gRPC call carries beside its messages: the caller's trace context, when to come again, and
// whose error it is.
#ifndef BLOCKSERVE_GATEWAY_CALL_METADATA_H_
#define BLOCKSERVE_GATEWAY_CALL_METADATA_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/trace_context.h"
#include "gateway/retry_after.h"
#include "rpc/status.h"

namespace blockserve {

inline TraceContext CallerTrace(const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find(kTraceparentKey);
  if (found == context.client_metadata().end()) return {};
  return ParseTraceparent(absl::string_view(found->second.data(), found->second.size()))
      .value_or(TraceContext());
}

// The call's status; one that tells when to come again does so in the trailing metadata, in seconds
// for people and proxies, and in the form that gRPC's own retries heed. An INTERNAL is marked as a
// gateway's: gRPC has one of its own for a stream that a proxy resets, and that one may be resumed.
// A gateway's may have killed workers: whatever the client's retry policy, it must not come again.
inline grpc::Status FinalStatus(const absl::Status& status, grpc::CallbackServerContext& context) {
  if (const std::optional<absl::Duration> wait = RetryAfter(status)) {
    context.AddTrailingMetadata("retry-after", absl::StrCat(RetryAfterSeconds(*wait)));
    context.AddTrailingMetadata("grpc-retry-pushback-ms",
                                absl::StrCat(absl::ToInt64Milliseconds(*wait)));
  }
  if (absl::IsInternal(status)) {
    context.AddTrailingMetadata("blockserve-status", "INTERNAL");
    context.AddTrailingMetadata("grpc-retry-pushback-ms", "-1");
  }
  return ToGrpcStatus(status);
}

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_CALL_METADATA_H_
