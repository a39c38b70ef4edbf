#include "rpc/signals.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <future>
#include <thread>

#include "common/thread_name.h"

namespace blockserve {
namespace {

constexpr int kEndedBySignal = 128;  // as shells have it

int NextOf(const sigset_t& signals) {
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
    // Interrupted by a signal of another kind.
  }
  return signal;
}

[[noreturn]] void EndBy(int signal) {
  sigset_t one;
  sigemptyset(&one);
  sigaddset(&one, signal);
  std::signal(signal, SIG_DFL);
  pthread_sigmask(SIG_UNBLOCK, &one, nullptr);
  (void)raise(signal);
  // To the first process of a container the default is to go on.
  _exit(kEndedBySignal + signal);
}

}  // namespace

struct TerminationWaiter::State {
  std::atomic<bool> loading{false};
  std::promise<int> first;
};

TerminationWaiter::TerminationWaiter() : state_(std::make_shared<State>()) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
  std::thread([state = state_, signals] {
    SetThreadName("signals");
    const int first = NextOf(signals);
    if (state->loading) EndBy(first);
    state->first.set_value(first);
    EndBy(NextOf(signals));
  }).detach();
}

void TerminationWaiter::SetLoading(bool loading) { state_->loading = loading; }

int TerminationWaiter::Wait() { return state_->first.get_future().get(); }

}  // namespace blockserve
