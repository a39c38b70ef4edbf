#include "gateway/stream_writers.h"

#include <utility>

#include "common/thread_name.h"

namespace blockserve {

StreamWriters::StreamWriters(Loop& loop, int32_t threads) : loop_(loop) {
  for (int32_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      SetThreadName("grpc-write");
      Work();
    });
  }
}

StreamWriters::~StreamWriters() {
  {
    MutexLock lock(&mutex_);
    stopped_ = true;
    changed_.SignalAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

void StreamWriters::Add(std::shared_ptr<Stream> stream) {
  turn_.push_back(std::move(stream));
  if (turn_.size() == kBatch) {
    turn_is_busy_ = true;
    HandOver();
  }
  if (std::exchange(turn_ends_, true)) return;
  loop_.Post([this] { EndTurn(); });
}

void StreamWriters::EndTurn() {
  turn_ends_ = false;
  const bool busy = std::exchange(turn_is_busy_, false);
  if (busy || turn_.size() > kFew) return HandOver();
  for (const std::shared_ptr<Stream>& stream : std::exchange(turn_, {})) stream->WriteNext();
}

void StreamWriters::HandOver() {
  if (turn_.empty()) return;
  Streams batch;
  batch.reserve(kBatch);
  batch.swap(turn_);
  MutexLock lock(&mutex_);
  waiting_.push_back(std::move(batch));
  changed_.Signal();
}

void StreamWriters::Work() {
  while (true) {
    Streams batch;
    {
      MutexLock lock(&mutex_);
      while (waiting_.empty() && !stopped_) changed_.Wait(&mutex_);
      if (stopped_) return;
      batch = std::move(waiting_.front());
      waiting_.pop_front();
    }
    for (const std::shared_ptr<Stream>& stream : batch) stream->WriteNext();
  }
}

}  // namespace blockserve
