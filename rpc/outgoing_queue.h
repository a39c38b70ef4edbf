// Messages that wait for a stream's one outstanding write: bounded, and merged while they wait, so
// that the cost of a message is spread over a batch when the stream is busy.
#ifndef BLOCKSERVE_RPC_OUTGOING_QUEUE_H_
#define BLOCKSERVE_RPC_OUTGOING_QUEUE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <utility>

namespace blockserve {

struct OutgoingLimits {
  // Serialised size of all that waits; a message beyond it is refused. The message being written is
  // not counted.
  int64_t max_queued_bytes = int64_t{64} << 20;
  // Two messages are not merged where the result would be larger.
  int64_t max_merged_bytes = int64_t{1} << 20;
};

// Not thread-safe.
template <class Message>
class OutgoingQueue {
 public:
  // Moves the content of `from` behind that of `into`; false, leaving both as they were, where the
  // two cannot be one message. Must not block or call back. Empty: nothing is ever merged.
  using Merge = std::function<bool(Message& into, Message& from)>;

  OutgoingQueue(OutgoingLimits limits, Merge merge) : limits_(limits), merge_(std::move(merge)) {}

  bool empty() const { return waiting_.empty(); }
  size_t size() const { return waiting_.size(); }
  int64_t bytes() const { return bytes_; }

  // False: the queue is full, and the message is dropped. A single message always has room in an
  // empty queue.
  bool Push(Message message) {
    const int64_t size = static_cast<int64_t>(message.ByteSizeLong()) + kMessageOverheadBytes;
    if (!waiting_.empty() && bytes_ + size > limits_.max_queued_bytes) return false;
    bytes_ += size;
    if (merge_ && !waiting_.empty() && waiting_.back().bytes + size <= limits_.max_merged_bytes &&
        merge_(waiting_.back().message, message)) {
      waiting_.back().bytes += size;
    } else {
      waiting_.push_back({std::move(message), size});
    }
    return true;
  }

  // The oldest message; the queue must not be empty.
  Message Pop() {
    Message message = std::move(waiting_.front().message);
    bytes_ -= waiting_.front().bytes;
    waiting_.pop_front();
    return message;
  }

  void Clear() {
    waiting_.clear();
    bytes_ = 0;
  }

 private:
  // So that empty messages are bounded too.
  static constexpr int64_t kMessageOverheadBytes = 64;

  struct Waiting {
    Message message;
    int64_t bytes;
  };

  const OutgoingLimits limits_;
  const Merge merge_;
  std::deque<Waiting> waiting_;
  int64_t bytes_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_OUTGOING_QUEUE_H_
