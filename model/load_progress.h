// How far the loading of a large model has come, in a line now and then.
#ifndef BLOCKSERVE_MODEL_LOAD_PROGRESS_H_
#define BLOCKSERVE_MODEL_LOAD_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <string>

#include "model/checkpoint.h"

namespace blockserve {

class LoadProgress {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  // `what` is loaded, from tensors of `total_bytes` in all.
  LoadProgress(std::string what, int64_t total_bytes, TimePoint start);

  // So many bytes more are packed. Returns a line such as "loading the token decoder: 43 % of 2.4
  // GB" when the last one, or the start, is two seconds back; else nothing.
  std::string Add(int64_t bytes, TimePoint now);

 private:
  std::string what_;
  int64_t total_bytes_;
  int64_t done_bytes_ = 0;
  TimePoint last_;
};

// Bytes of the tensors of a part, as the checkpoint stores them.
int64_t StoredBytes(const Checkpoint& checkpoint, CheckpointPart part);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_LOAD_PROGRESS_H_
