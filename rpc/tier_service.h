// The service of a compute tier as its program runs it (rpc/tier_program.h).
#ifndef BLOCKSERVE_RPC_TIER_SERVICE_H_
#define BLOCKSERVE_RPC_TIER_SERVICE_H_

#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "common/progress.h"

namespace blockserve {

// The order of an end: StartDraining, WaitUntilDrained, Stop, then the server's Shutdown, then the
// destructor.
class TierService {
 public:
  virtual ~TierService() = default;

  // To be registered with one server, which must have ended before this is destroyed.
  virtual grpc::Service* service() = 0;
  // Returns when streams can be greeted, for which the hash of the model's part must be known: from
  // then on gateways give it work. Not thread-safe with Stop and the destructor.
  virtual void WaitUntilKnown() = 0;
  // Tells every gateway that this process leaves, and takes no new work.
  virtual void StartDraining() = 0;
  // True as soon as no work is in hand, false when `timeout` was over before.
  virtual bool WaitUntilDrained(absl::Duration timeout) = 0;
  // Answers what is left (UNAVAILABLE) and ends the streams and the threads. Idempotent.
  virtual void Stop() = 0;

  virtual const std::string& numeric_id() const = 0;
  // Of the thread that computes, for liveness.
  virtual std::shared_ptr<const Progress> progress() const = 0;
  // What it has in hand, for the log: "12 rows".
  virtual std::string InHand() const = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TIER_SERVICE_H_
