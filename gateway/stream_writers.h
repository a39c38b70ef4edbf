// Threads that write the events of gRPC's streams. Who starts a write frames it and makes the
// system's call for it; the gateway's loop has one thread, and its own work to do.
#ifndef BLOCKSERVE_GATEWAY_STREAM_WRITERS_H_
#define BLOCKSERVE_GATEWAY_STREAM_WRITERS_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "common/mutex.h"
#include "rpc/loop.h"

namespace blockserve {

class StreamWriters {
 public:
  class Stream {
   public:
    virtual ~Stream() = default;
    // Starts the write of what waits, if none is under way. Thread-safe; does not throw.
    virtual void WriteNext() = 0;
  };

  // To wake a thread costs about as much as a write: streams are handed over by so many, or what
  // there is at the end of the loop's turn.
  static constexpr size_t kBatch = 32;
  // So few in a turn are written on the loop: a lone stream waits for no other thread.
  static constexpr size_t kFew = 2;

  // `loop` must run all that is posted to it before this is destroyed. `threads`: at least 1.
  StreamWriters(Loop& loop, int32_t threads);
  // Streams that wait are dropped.
  ~StreamWriters();
  StreamWriters(const StreamWriters&) = delete;
  StreamWriters& operator=(const StreamWriters&) = delete;

  // On the loop. WriteNext will be called once, on one of the threads or on the loop, not from
  // within. What waits is bounded by the streams there are: none may be added a second time before
  // WriteNext has been called.
  void Add(std::shared_ptr<Stream> stream);

 private:
  using Streams = std::vector<std::shared_ptr<Stream>>;

  // What the loop has been told in this turn.
  void EndTurn();
  void HandOver();
  void Work();

  Loop& loop_;
  Streams turn_;               // the loop's
  bool turn_is_busy_ = false;  // some of this turn has been handed over
  bool turn_ends_ = false;     // EndTurn is posted
  Mutex mutex_;
  CondVar changed_;
  std::deque<Streams> waiting_ ABSL_GUARDED_BY(mutex_);
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_STREAM_WRITERS_H_
