// Weights of a checkpoint in the memory of a CUDA device.
#ifndef BLOCKSERVE_MODEL_CUDA_DEVICE_WEIGHTS_H_
#define BLOCKSERVE_MODEL_CUDA_DEVICE_WEIGHTS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/runtime.h"
#include "model/weights.h"

namespace blockserve {

// W [n, k] of y = x W^T + bias, with zero rows and columns up to multiples of
// cuda::kElementPadding.
struct DeviceMatrix {
  int64_t n = 0;              // padded
  int64_t k = 0;              // padded
  cuda::DeviceBuffer weight;  // [n, k] of the loader's type
  cuda::DeviceBuffer bias;    // [n] of MatrixForm::bias_type; empty without a bias
};

// How a checkpoint's matrix becomes a DeviceMatrix.
struct MatrixForm {
  int64_t n = 0;
  int64_t k = 0;
  bool bias = false;
  cuda::ElementType bias_type = cuda::ElementType::kF32;
  // > 1: a convolution, as in MatrixSource (kernels/cpu/packed_matrix.h).
  int64_t kernel_size = 1;
  // The outputs are so many vectors, each padded by itself.
  int64_t vectors = 1;
};

struct DeviceLayerNorm {
  cuda::DeviceBuffer weight;  // [width padded] float
  cuda::DeviceBuffer bias;
};

// Converts tensors on the pool of `context`, whose turn the caller holds, and copies them to the
// current device. Errors name the tensor; RESOURCE_EXHAUSTED where device or host has no memory.
class DeviceLoader {
 public:
  static absl::StatusOr<DeviceLoader> Create(const LoadContext& context, cuda::ElementType type);

  cuda::ElementType type() const { return type_; }
  // `name`.weight, and `name`.bias where the form has one.
  absl::StatusOr<DeviceMatrix> Matrix(absl::string_view name, const MatrixForm& form) const;
  // [rows, width padded] of the loader's type.
  absl::StatusOr<cuda::DeviceBuffer> Table(absl::string_view name, int64_t rows,
                                           int64_t width) const;
  absl::StatusOr<DeviceLayerNorm> LayerNorm(absl::string_view name, int64_t width) const;
  // `bytes` of host memory; returns when they are there.
  absl::StatusOr<cuda::DeviceBuffer> Upload(const void* from, int64_t bytes) const;

 private:
  DeviceLoader(const LoadContext& context, cuda::ElementType type, cuda::Stream stream)
      : context_(context), type_(type), stream_(std::move(stream)) {}
  absl::StatusOr<cuda::DeviceBuffer> Vector(absl::string_view name, const MatrixForm& form,
                                            cuda::ElementType type) const;

  LoadContext context_;
  cuda::ElementType type_;
  cuda::Stream stream_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_DEVICE_WEIGHTS_H_
