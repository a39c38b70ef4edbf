// The event loop as the gateway's policy sees it: a clock and two ways to run something later. The
// real one is asio's (rpc/asio_loop.h); tests drive one by hand.
#ifndef BLOCKSERVE_RPC_LOOP_H_
#define BLOCKSERVE_RPC_LOOP_H_

#include <functional>
#include <memory>

#include "absl/time/time.h"

namespace blockserve {

// Tasks run one at a time, on the loop's thread, in the order of posting. What is posted while a
// task runs, runs after everything that was posted before: that is what makes one message of the
// items of one turn.
class Loop {
 public:
  virtual ~Loop() = default;
  // Never goes backwards. May be called from any thread.
  virtual absl::Time Now() const = 0;
  // Both may be called from any thread.
  virtual void Post(std::function<void()> task) = 0;
  virtual void PostAfter(absl::Duration delay, std::function<void()> task) = 0;
  // The loop does not end while what this returns is alive: for work that ends on another thread
  // and posts when it has.
  virtual std::shared_ptr<void> Hold() { return nullptr; }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_LOOP_H_
