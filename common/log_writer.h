// Lines for a file descriptor that may take them late, or never: a pipe whose reader has stopped,
// a network file, a disk that is full. Whoever logs must not stand still for that.
#ifndef BLOCKSERVE_COMMON_LOG_WRITER_H_
#define BLOCKSERVE_COMMON_LOG_WRITER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace blockserve {

// A thread writes what is queued; what finds the queue full, or cannot be written, is lost and
// counted, and once lines can be written again a line tells how many. Thread-safe.
class LogWriter {
 public:
  static constexpr int64_t kMostQueuedBytes = int64_t{1} << 20;
  // How long the end of the process waits for what is queued.
  static constexpr absl::Duration kLastWait = absl::Seconds(1);

  // The descriptor is duplicated: `fd` may be closed. `tell_lost` makes the line, with its end,
  // that tells of so many lost ones; it is called on the thread.
  LogWriter(int fd, std::function<std::string(int64_t lost)> tell_lost,
            int64_t most_queued_bytes = kMostQueuedBytes);
  // Waits for what is queued, no longer than kLastWait; a thread whose write does not return is
  // left behind.
  ~LogWriter();
  LogWriter(const LogWriter&) = delete;
  LogWriter& operator=(const LogWriter&) = delete;

  // Takes a line, with its end. Never waits for the descriptor.
  void Write(absl::string_view line);
  // True when all that was taken has been written or lost; false when that lasts longer than
  // `wait`.
  bool Flush(absl::Duration wait);
  // Lines, since the start.
  int64_t lost() const;

 private:
  struct State;
  static void Run(State& state);

  const std::shared_ptr<State> state_;  // the thread's too
};

// Writes a line to `fd` unless that would mean to wait for longer than `wait`.
void WriteLineWithin(int fd, absl::string_view line, absl::Duration wait);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_LOG_WRITER_H_
