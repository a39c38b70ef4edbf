// Where the time of a step on a device goes, kernel by kernel.
#ifndef BLOCKSERVE_MODEL_CUDA_STEP_PROFILE_H_
#define BLOCKSERVE_MODEL_CUDA_STEP_PROFILE_H_

#include "kernels/cuda/runtime.h"
#include "model/step_timer.h"

namespace blockserve {

// Without a timer every call does nothing: so it is when a graph is captured. With one, each lap
// waits for the device, which takes time of its own: shares of a profiled step are those of other
// steps, its length is not.
struct StepProfile {
  StepTimer* timer = nullptr;
  const cuda::Stream* stream = nullptr;

  void SetPart(StepTimer::Part part) const {
    if (timer != nullptr) timer->SetPart(part);
  }
  void Lap(StepTimer::Work work) const {
    // An error of the device is told by the wait that ends the step.
    if (timer != nullptr && stream->Synchronize().ok()) timer->Lap(work);
  }
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_STEP_PROFILE_H_
