#include "common/log_writer.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <utility>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/mutex.h"

namespace blockserve {
namespace {

// A pipe that poll calls writable takes so much without a wait (PIPE_BUF).
constexpr size_t kPieceBytes = 4096;

bool WaitUntilWritable(int fd, int wait_ms) {
  pollfd polled = {fd, POLLOUT, 0};
  int ready = 0;
  do {
    ready = poll(&polled, 1, wait_ms);
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

// Returns what could not be written.
absl::string_view WriteAll(int fd, absl::string_view text) {
  while (!text.empty()) {
    const ssize_t written = write(fd, text.data(), text.size());
    if (written > 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (written < 0 && errno == EAGAIN) {  // somebody else has made it so
      if (!WaitUntilWritable(fd, -1)) break;
    } else if (written == 0 || errno != EINTR) {
      break;
    }
  }
  return text;
}

}  // namespace

struct LogWriter::State {
  int fd = -1;
  std::function<std::string(int64_t)> tell_lost;
  int64_t most_queued_bytes = 0;

  Mutex mutex;
  CondVar changed;
  std::string queued ABSL_GUARDED_BY(mutex);
  bool writing ABSL_GUARDED_BY(mutex) = false;
  bool ending ABSL_GUARDED_BY(mutex) = false;
  int64_t lost ABSL_GUARDED_BY(mutex) = 0;
  int64_t told ABSL_GUARDED_BY(mutex) = 0;  // of these

  ~State() {
    if (fd >= 0) close(fd);
  }
};

LogWriter::LogWriter(int fd, std::function<std::string(int64_t lost)> tell_lost,
                     int64_t most_queued_bytes)
    : state_(std::make_shared<State>()) {
  state_->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  state_->tell_lost = std::move(tell_lost);
  state_->most_queued_bytes = most_queued_bytes;
  // The process's signals are for others, who may ask for them later; and where the reader of a
  // pipe is gone, that is an error of the write alone.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  // Not joined: nothing ends a write that nobody reads.
  std::thread([state = state_] { Run(*state); }).detach();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

LogWriter::~LogWriter() {
  {
    MutexLock lock(&state_->mutex);
    state_->ending = true;
    state_->changed.SignalAll();
  }
  Flush(kLastWait);
}

void LogWriter::Write(absl::string_view line) {
  MutexLock lock(&state_->mutex);
  if (static_cast<int64_t>(state_->queued.size() + line.size()) > state_->most_queued_bytes) {
    ++state_->lost;
    return;
  }
  state_->queued.append(line.data(), line.size());
  if (!state_->writing) state_->changed.SignalAll();
}

bool LogWriter::Flush(absl::Duration wait) {
  const absl::Time end = SteadyClock().Now() + wait;
  MutexLock lock(&state_->mutex);
  while (state_->writing || !state_->queued.empty()) {
    const absl::Duration left = end - SteadyClock().Now();
    if (left <= absl::ZeroDuration()) return false;
    state_->changed.WaitWithTimeout(&state_->mutex, left);
  }
  return true;
}

int64_t LogWriter::lost() const {
  MutexLock lock(&state_->mutex);
  return state_->lost;
}

void LogWriter::Run(State& state) {
  std::string text;
  bool torn = false;  // the line that was written last has no end
  state.mutex.Lock();
  while (true) {
    while (state.queued.empty() && !state.ending) state.changed.Wait(&state.mutex);
    if (state.queued.empty()) break;
    // What was lost came after all that is queued now.
    const int64_t lost = state.lost;
    const int64_t untold = lost - state.told;
    text.clear();
    text.swap(state.queued);
    state.writing = true;
    state.mutex.Unlock();
    if (untold > 0) text += state.tell_lost(untold);
    // Else the next line would be one with what there is of it.
    if (torn) torn = !WriteAll(state.fd, "\n").empty();
    absl::string_view left = text;
    if (!torn) {
      left = WriteAll(state.fd, text);
      const size_t written = text.size() - left.size();
      torn = written > 0 && text[written - 1] != '\n';
    }
    const auto unwritten = std::count(left.begin(), left.end(), '\n');
    state.mutex.Lock();
    if (unwritten > 0) {
      state.lost +=
          unwritten - (untold > 0 ? 1 : 0);  // what tells of the others was told to nobody
    } else {
      state.told = lost;
    }
    state.writing = false;
    state.changed.SignalAll();
  }
  state.mutex.Unlock();
}

void WriteLineWithin(int fd, absl::string_view line, absl::Duration wait) {
  const absl::Time end = SteadyClock().Now() + wait;
  while (!line.empty()) {
    const int64_t left_ms =
        std::max<int64_t>(0, absl::ToInt64Milliseconds(end - SteadyClock().Now()));
    if (!WaitUntilWritable(fd, static_cast<int>(left_ms))) return;
    const ssize_t written = write(fd, line.data(), std::min(line.size(), kPieceBytes));
    if (written > 0) line.remove_prefix(static_cast<size_t>(written));
    if (written == 0 || (written < 0 && errno != EINTR && errno != EAGAIN)) return;
  }
}

}  // namespace blockserve
