// A CUDA call's result as a status. For files that include CUDA's headers anyway.
#ifndef BLOCKSERVE_KERNELS_CUDA_CUDA_STATUS_H_
#define BLOCKSERVE_KERNELS_CUDA_CUDA_STATUS_H_

#include <cuda_runtime.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace blockserve::cuda {

inline absl::Status CudaStatus(cudaError_t error, absl::string_view call) {
  if (error == cudaSuccess) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(call, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_CUDA_STATUS_H_
