// Threads beside those that serve connections and calls, for what would hold these up: long texts
// are read, checked and tokenized there.
#ifndef BLOCKSERVE_GATEWAY_TEXT_WORKERS_H_
#define BLOCKSERVE_GATEWAY_TEXT_WORKERS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "gateway/retry_after.h"

namespace blockserve {

// A shorter request takes 5 ms at most, and seldom 1.
inline constexpr size_t kLongTextBytes = size_t{16} << 10;
inline constexpr size_t kMostWaitingTextBytes = size_t{256} << 20;

// What those are told for whom there is no room.
inline absl::Status TooManyTexts() {
  return WithRetryAfter(
      absl::ResourceExhaustedError("too many long texts wait to be read; try again later"),
      absl::Seconds(1));
}

// Thread-safe.
class TextWorkers {
 public:
  // `thread_name`: as the system shows it, at most 15 characters. `most_bytes`: of the texts that
  // wait.
  TextWorkers(const char* thread_name, int32_t threads, size_t most_bytes);
  // As Stop.
  ~TextWorkers();
  TextWorkers(const TextWorkers&) = delete;
  TextWorkers& operator=(const TextWorkers&) = delete;

  // Runs `task`, which is about a text of so many bytes, on one of the threads. Keys take turns;
  // within a key the first come goes first. False, and `task` is dropped: there is no room (a key
  // may hold as much as it leaves free), or Stop was called.
  bool Run(const std::string& key, size_t bytes, std::function<void()> task);
  // Drops what waits, and returns when what runs has ended. Further calls do nothing.
  void Stop();

 private:
  struct Task {
    size_t bytes = 0;
    std::function<void()> run;
  };
  struct Queue {
    std::deque<Task> tasks;
    size_t bytes = 0;
  };

  void Work();
  // False: it is over.
  bool Take(Task& task);

  const size_t most_bytes_;
  Mutex mutex_;
  CondVar changed_;
  std::map<std::string, Queue> queues_ ABSL_GUARDED_BY(mutex_);  // by key; none is empty
  std::deque<std::string> turns_ ABSL_GUARDED_BY(mutex_);        // the keys of `queues_`
  size_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TEXT_WORKERS_H_
