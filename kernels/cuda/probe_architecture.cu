// Which code this build holds for the current device: all kernels are built for the same
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

// What the code was compiled for decides, not the device: a device of 9.0 also runs code of 8.0,
// which does not wait (WaitForEarlierWork), and launched early would read what is not there yet.
extern "C" int BlockserveCudaLaunchesEarly() {
  cudaFuncAttributes attributes;
  if (cudaFuncGetAttributes(&attributes, EmptyKernel) == cudaSuccess) {
    return attributes.ptxVersion >= 90 && attributes.binaryVersion >= 90 ? 1 : 0;
  }
  (void)cudaGetLastError();
  return 0;
}
