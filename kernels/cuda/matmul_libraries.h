// The libraries behind MatmulLibrary::Load.
#ifndef BLOCKSERVE_KERNELS_CUDA_MATMUL_LIBRARIES_H_
#define BLOCKSERVE_KERNELS_CUDA_MATMUL_LIBRARIES_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/matmul.h"

namespace blockserve::cuda {

// kPinned and kFastest; kernels/cuda/emulation has another one of that name.
absl::StatusOr<std::shared_ptr<const MatmulLibrary>> LoadCublasLt(MatmulMode mode);

// kOwn.
absl::StatusOr<std::shared_ptr<const MatmulLibrary>> LoadOwnMatmul();

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_MATMUL_LIBRARIES_H_
