// Whether this build holds code for the current device: all kernels are built for the same
// architectures.
#include <cuda_runtime.h>

namespace {
__global__ void EmptyKernel() {}
}  // namespace

extern "C" int BlockserveCudaHasCode() {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, EmptyKernel) == cudaSuccess) return 1;
  (void)cudaGetLastError();
  return 0;
}
