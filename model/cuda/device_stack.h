// A GPT-NeoX stack on a CUDA device: the layers that block decoder and token decoder have in
// common.
#ifndef BLOCKSERVE_MODEL_CUDA_DEVICE_STACK_H_
#define BLOCKSERVE_MODEL_CUDA_DEVICE_STACK_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/runtime.h"
#include "model/arithmetic.h"
#include "model/config.h"
#include "model/cuda/device_weights.h"
#include "model/cuda/step_profile.h"
#include "model/engine.h"

namespace blockserve {

// Buffers of one batch in flight. Type t is that of weights; widths and rows are padded.
struct StackActivations {
  cuda::DeviceBuffer x;             // [rows, width] float: the residual stream
  cuda::DeviceBuffer normed;        // [rows, width] t: input of attention, or of the MLP
  cuda::DeviceBuffer mlp_normed;    // [rows, width] t: input of the MLP
  cuda::DeviceBuffer qkv;           // [rows, 3 width] t
  cuda::DeviceBuffer attended;      // [rows, width] t
  cuda::DeviceBuffer intermediate;  // [rows, intermediate_size] t
  // Of the wanted rows, in the last layer.
  cuda::DeviceBuffer x_wanted;           // [wanted, width] float
  cuda::DeviceBuffer mlp_normed_wanted;  // [wanted, width] t
  cuda::DeviceBuffer attended_wanted;    // [wanted, width] t
};

// Of a CUDA arithmetic.
cuda::MatmulMode MatmulModeOf(Arithmetic arithmetic);
cuda::KernelLaunch KernelLaunchOf(const EngineOptions& options);

class DeviceStack {
 public:
  // As DecoderStack::Load. Products are of `library`, for up to `max_rows` rows.
  static absl::StatusOr<DeviceStack> Load(const DeviceLoader& loader, const std::string& prefix,
                                          const StackConfig& config,
                                          const cuda::MatmulLibrary& library, int64_t max_rows);
  absl::StatusOr<StackActivations> Allocate(int64_t rows, int64_t wanted) const;

  const StackConfig& config() const { return config_; }
  int64_t stride() const { return cuda::PadElements(config_.hidden_size); }
  int64_t qkv_stride() const { return cuda::PadElements(3 * int64_t{config_.hidden_size}); }

  // Attention of a layer over what `qkv` [rows, qkv_stride()] holds, to `attended`
  // [rows, stride()].
  using Attention = absl::FunctionRef<absl::Status(int32_t layer, const void* qkv, void* attended)>;
  // Runs `rows` rows of activations.x through all layers, and its `wanted` rows (indices on the
  // device; nullptr: all of them) through what comes after the last layer's attention. Returns
  // their residual streams before the final norm: x or x_wanted. Nothing here depends on values: it
  // may be captured.
  absl::StatusOr<const float*> Run(int64_t rows, const int32_t* wanted, int64_t num_wanted,
                                   const StackActivations& activations, Attention attention,
                                   const cuda::Stream& stream, const StepProfile& profile) const;
  // y [rows, stride()] of `type` = final layer norm of x.
  absl::Status FinalNorm(int64_t rows, const float* x, cuda::ElementType type, void* y,
                         cuda::StreamHandle stream) const;

 private:
  struct Layer {
    DeviceLayerNorm attention_norm;
    DeviceLayerNorm mlp_norm;
    DeviceMatrix qkv;
    DeviceMatrix dense;
    DeviceMatrix up;
    DeviceMatrix down;
  };

  absl::Status LoadLayer(const DeviceLoader& loader, const std::string& at, Layer& layer) const;

  StackConfig config_;
  cuda::ElementType type_ = cuda::ElementType::kF32;
  std::vector<Layer> layers_;
  DeviceLayerNorm final_norm_;
  // One plan for the equal products of all layers.
  std::unique_ptr<const cuda::MatmulPlan> qkv_;
  std::unique_ptr<const cuda::MatmulPlan> dense_;
  std::unique_ptr<const cuda::MatmulPlan> up_;
  std::unique_ptr<const cuda::MatmulPlan> down_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_DEVICE_STACK_H_
