// SIGTERM and SIGINT as something that main waits for; and SIGPIPE as nothing.
#ifndef BLOCKSERVE_RPC_SIGNALS_H_
#define BLOCKSERVE_RPC_SIGNALS_H_

#include <csignal>

namespace blockserve {

// Made in main before any thread is started: the threads inherit the blocked signals, so that they
// are delivered to Wait alone.
class TerminationWaiter {
 public:
  // Blocks SIGTERM and SIGINT, and ignores SIGPIPE: whoever read the log may be gone, and the
  // server serves on.
  TerminationWaiter();
  TerminationWaiter(const TerminationWaiter&) = delete;
  TerminationWaiter& operator=(const TerminationWaiter&) = delete;

  // Returns the first signal that comes. After that a second one ends the process at once: who is
  // asked twice does not finish draining.
  int Wait();

 private:
  sigset_t signals_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_SIGNALS_H_
