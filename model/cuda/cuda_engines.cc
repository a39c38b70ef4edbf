#include "model/cuda/cuda_engines.h"

#include "kernels/cuda/runtime.h"
#include "model/cuda/block_engine_cuda.h"
#include "model/cuda/token_engine_cuda.h"

namespace blockserve {

absl::Status CheckCudaDevice(int32_t device) { return cuda::GetDeviceInfo(device).status(); }

absl::StatusOr<std::unique_ptr<BlockEngine>> LoadCudaBlockEngine(const Checkpoint& checkpoint,
                                                                 const EngineOptions& options) {
  return CudaBlockEngine::Load(checkpoint, options);
}

absl::StatusOr<std::unique_ptr<TokenEngine>> LoadCudaTokenEngine(const Checkpoint& checkpoint,
                                                                 const EngineOptions& options) {
  return CudaTokenEngine::Load(checkpoint, options);
}

}  // namespace blockserve
