// Deadlines for gRPC that do not look at the wall clock, which may be set.
#ifndef BLOCKSERVE_RPC_DEADLINE_H_
#define BLOCKSERVE_RPC_DEADLINE_H_

#include <grpc/support/time.h>

#include "absl/time/time.h"

namespace blockserve {

inline gpr_timespec GrpcDeadlineIn(absl::Duration left) {
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_nanos(absl::ToInt64Nanoseconds(left), GPR_TIMESPAN));
}

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_DEADLINE_H_
