// SIGTERM and SIGINT as something that main waits for; and SIGPIPE as nothing.
#ifndef BLOCKSERVE_RPC_SIGNALS_H_
#define BLOCKSERVE_RPC_SIGNALS_H_

#include <memory>

namespace blockserve {

// Made in main before any thread is started: the threads inherit the blocked signals, so that they
// are delivered to one of its own alone.
class TerminationWaiter {
 public:
  // Blocks SIGTERM and SIGINT, and ignores SIGPIPE: whoever read the log may be gone, and the
  // server serves on.
  TerminationWaiter();
  TerminationWaiter(const TerminationWaiter&) = delete;
  TerminationWaiter& operator=(const TerminationWaiter&) = delete;

  // While it is set a signal ends the process at once: who still loads has nothing in hand.
  void SetLoading(bool loading);
  // Returns the first other signal that comes, or has come. One after it ends the process at once:
  // who is asked twice does not finish draining.
  int Wait();

 private:
  struct State;

  std::shared_ptr<State> state_;  // of a thread that ends with the process
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_SIGNALS_H_
