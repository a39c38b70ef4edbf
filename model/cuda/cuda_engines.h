// The CUDA engines, as loading sees them. Three libraries define these functions: the engines of a
// build with CUDA, their emulation on the CPU (tests), and, where CUDA was left out of a build,
// functions that say so.
#ifndef BLOCKSERVE_MODEL_CUDA_CUDA_ENGINES_H_
#define BLOCKSERVE_MODEL_CUDA_CUDA_ENGINES_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/checkpoint.h"
#include "model/engine.h"

namespace blockserve {

// OK where an engine can run on the device, else one line without the flag: no CUDA in this build
// (UNIMPLEMENTED), no driver or no such device (FAILED_PRECONDITION), no code for its architecture.
absl::Status CheckCudaDevice(int32_t device);

// Of options.device, which CheckCudaDevice has found usable. Errors: RESOURCE_EXHAUSTED telling
// what is needed and what is there, or naming the tensor.
absl::StatusOr<std::unique_ptr<BlockEngine>> LoadCudaBlockEngine(const Checkpoint& checkpoint,
                                                                 const EngineOptions& options);
absl::StatusOr<std::unique_ptr<TokenEngine>> LoadCudaTokenEngine(const Checkpoint& checkpoint,
                                                                 const EngineOptions& options);

// What a device can do at most, measured: for benchmarks.
struct CudaDeviceRates {
  std::string name;
  std::string libraries;     // versions of driver, runtime and cuBLASLt
  int64_t memory_bytes = 0;  // in all
  double flop_per_s = 0;     // of a large product of the arithmetic's type
  double bytes_per_s = 0;    // read and written by a copy
};
// Of a CUDA arithmetic; the product is cuBLASLt's fastest, where the arithmetic's own products can
// do without, and it is not there, theirs. Takes 1.3 GiB of the device and under a second.
absl::StatusOr<CudaDeviceRates> MeasureCudaDevice(int32_t device, Arithmetic arithmetic);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_CUDA_ENGINES_H_
