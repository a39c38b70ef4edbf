#include "common/prepare_process.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <new>
#include <system_error>

#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/log_writer.h"

namespace blockserve {
namespace {

void FillStandardDescriptors() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) >= 0) continue;
    // The wrong way round: a write fails, as to one that is closed, and who writes is told.
    (void)open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
  }
}

// Before the libraries' own initialisers: gRPC's opens an eventfd.
[[gnu::section(".preinit_array"),
  gnu::used]] void (*const fill_standard_descriptors)() = &FillStandardDescriptors;

// Takes no lock and no memory. Not in the order of the log, which another thread writes.
void Say(absl::string_view line) { WriteLineWithin(STDERR_FILENO, line, absl::Milliseconds(100)); }

void SayError(const std::exception& error) {
  Say("this process ends: ");
  Say(error.what());
  Say("\n");
}

constexpr char kNoMemory[] = "this process ends: it gets no memory (ulimit -v, or the system's)\n";
constexpr char kNoThread[] =
    "this process ends: it gets no thread (ulimit -u, a limit of pids, or memory)\n";

[[noreturn]] void OnTerminate() {
  std::signal(SIGABRT, SIG_DFL);  // what there is to say is said here
  try {
    if (std::current_exception() != nullptr) std::rethrow_exception(std::current_exception());
  } catch (const std::bad_alloc&) {
    Say(kNoMemory);
  } catch (const std::system_error& error) {
    if (error.code() == std::errc::resource_unavailable_try_again) {
      Say(kNoThread);
    } else {
      SayError(error);
    }
  } catch (const std::exception& error) {
    SayError(error);
  } catch (...) {
  }
  std::abort();
}

void OnBusError(int) {
  Say("this process ends: a mapped file, most likely the model's, was cut short or cannot be read "
      "from its disk\n");
  // The default is set again: on return the same access ends the process.
}

// What a thread takes for its stack, and more than jemalloc asks for at a time.
constexpr size_t kProbeBytes = size_t{8} << 20;

struct sigaction before_fault;  // a sanitizer's, which reports it
struct sigaction before_abort;

// Libraries end a process that gets no more memory or threads by these: jemalloc 5.3 goes on with
// an arena that it could not make (a fault near address 0), gRPC checks that it has its threads.
void OnFaultOrAbort(int signal, siginfo_t* info, void*) {
  if (mmap(nullptr, kProbeBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ==
      MAP_FAILED) {
    Say(kNoMemory);
  } else if (const pid_t child = vfork(); child == 0) {
    _exit(0);
  } else if (child < 0 && errno == EAGAIN) {
    Say(kNoThread);
  }
  sigaction(signal, signal == SIGABRT ? &before_abort : &before_fault, nullptr);
  // On return the same access faults again, but nothing is repeated where somebody sent the signal.
  if (info->si_code <= 0) raise(signal);
}

}  // namespace

void PrepareProcess() {
  // Debian builds Abseil with its search for lock cycles on, in which every lock of the process,
  // gRPC's too, takes one that all of them share: programs do without it, tests keep it.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  std::set_terminate(&OnTerminate);
  struct sigaction action = {};
  action.sa_handler = &OnBusError;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGBUS, &action, nullptr);
  action.sa_sigaction = &OnFaultOrAbort;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &before_fault);
  sigaction(SIGABRT, &action, &before_abort);
}

}  // namespace blockserve
