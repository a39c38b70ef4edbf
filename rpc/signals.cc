#include "rpc/signals.h"

#include <pthread.h>

namespace blockserve {

TerminationWaiter::TerminationWaiter() {
  sigemptyset(&signals_);
  sigaddset(&signals_, SIGTERM);
  sigaddset(&signals_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

int TerminationWaiter::Wait() {
  int signal = 0;
  while (sigwait(&signals_, &signal) != 0) {
    // Interrupted by a signal of another kind.
  }
  // Unblocked in this thread alone, which is enough for the default action to end the process.
  pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);
  return signal;
}

}  // namespace blockserve
