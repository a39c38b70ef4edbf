// Where the time of a step on a device goes, kernel by kernel.
#ifndef BLOCKSERVE_MODEL_CUDA_STEP_PROFILE_H_
#define BLOCKSERVE_MODEL_CUDA_STEP_PROFILE_H_

#include <cstddef>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/runtime.h"
#include "model/step_timer.h"

namespace blockserve {

// Takes the device's own times of one batch after another: an event after each lap, read when the
// batch is done. What the host takes to launch is not in them, for the device is held back by some
// work of no use until the launches are ahead of it. An event takes about a microsecond of its own,
// and two kernels with one between them do not overlap.
class StepProfiler {
 public:
  // Waits for what `stream` has to do; its next work is of `part`. The stream must live until
  // Finish.
  absl::Status Begin(StepTimer::Part part, const cuda::Stream& stream);
  void SetPart(StepTimer::Part part) { part_ = part; }
  // What was given to the stream since the last lap is of this kind.
  void Lap(StepTimer::Work work);
  // Waits for the stream, and tells the timer.
  absl::Status Finish(StepTimer& timer);

 private:
  struct Booking {
    StepTimer::Part part;
    StepTimer::Work work;
  };

  // An event of so many laps.
  absl::Status Record(size_t index);
  // Gives the stream work for about kHoldMs.
  absl::Status HoldBack();
  absl::Status MeasureFill();

  const cuda::Stream* stream_ = nullptr;
  StepTimer::Part part_ = StepTimer::kBlockStep;
  std::vector<cuda::Event> events_;  // timed; kept for the next batch
  std::vector<Booking> laps_;
  absl::Status status_;
  cuda::DeviceBuffer held_;  // what the useless work fills
  int fills_ = -1;           // that hold it back; < 0: not known yet
};

// How the engines' code tells its laps. Without a profiler every call does nothing: so it is when a
// graph is captured.
struct StepProfile {
  StepProfiler* profiler = nullptr;

  void SetPart(StepTimer::Part part) const {
    if (profiler != nullptr) profiler->SetPart(part);
  }
  void Lap(StepTimer::Work work) const {
    if (profiler != nullptr) profiler->Lap(work);
  }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_STEP_PROFILE_H_
