// Batches in flight, each with buffers of its own, taken in turn.
#ifndef BLOCKSERVE_MODEL_CUDA_LANE_RING_H_
#define BLOCKSERVE_MODEL_CUDA_LANE_RING_H_

#include <cstdint>

namespace blockserve {

// Which of `lanes` lanes the next batch takes, and which must be finished before. A lane is
// finished in the order in which it was started, so that at most `lanes` batches are in flight and
// results are read while later batches run.
class LaneRing {
 public:
  explicit LaneRing(int32_t lanes) : lanes_(lanes) {}

  // True when the lane that Start will give is still in flight: finish oldest() first.
  bool full() const { return started_ - finished_ == lanes_; }
  bool empty() const { return started_ == finished_; }
  int32_t in_flight() const { return static_cast<int32_t>(started_ - finished_); }
  // The lane of the batch that was started first; not when empty.
  int32_t oldest() const { return static_cast<int32_t>(finished_ % lanes_); }
  // Not when full.
  int32_t Start() { return static_cast<int32_t>(started_++ % lanes_); }
  // Of the oldest; not when empty.
  void Finish() { ++finished_; }

 private:
  int64_t lanes_;
  int64_t started_ = 0;
  int64_t finished_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_LANE_RING_H_
