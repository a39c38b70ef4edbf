// A build without CUDA.
#include "model/cuda/cuda_engines.h"

namespace blockserve {
namespace {

absl::Status Absent() {
  return absl::UnimplementedError(
      "this program was built without CUDA (CMake option BLOCKSERVE_CUDA)");
}

}  // namespace

absl::Status CheckCudaDevice(int32_t /*device*/) { return Absent(); }

absl::StatusOr<std::unique_ptr<BlockEngine>> LoadCudaBlockEngine(const Checkpoint& /*checkpoint*/,
                                                                 const EngineOptions& /*options*/) {
  return Absent();
}

absl::StatusOr<std::unique_ptr<TokenEngine>> LoadCudaTokenEngine(const Checkpoint& /*checkpoint*/,
                                                                 const EngineOptions& /*options*/) {
  return Absent();
}

absl::StatusOr<CudaDeviceRates> MeasureCudaDevice(int32_t /*device*/, Arithmetic /*arithmetic*/) {
  return Absent();
}

}  // namespace blockserve
