#include "model/cuda/device_stack.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/row_kernels.h"

namespace blockserve {
namespace {

template <typename T>
absl::Status MoveInto(absl::StatusOr<T> value, T& target) {
  if (!value.ok()) return value.status();
  target = *std::move(value);
  return absl::OkStatus();
}

}  // namespace

cuda::MatmulMode MatmulModeOf(Arithmetic arithmetic) {
  if (arithmetic == Arithmetic::kCudaBf16Own) return cuda::MatmulMode::kOwn;
  return IsBatchInvariant(arithmetic) ? cuda::MatmulMode::kPinned : cuda::MatmulMode::kFastest;
}

cuda::KernelLaunch KernelLaunchOf(const EngineOptions& options) {
  return options.early_launch ? cuda::KernelLaunch::kEarly : cuda::KernelLaunch::kInTurn;
}

absl::StatusOr<DeviceStack> DeviceStack::Load(const DeviceLoader& loader, const std::string& prefix,
                                              const StackConfig& config,
                                              const cuda::MatmulLibrary& library,
                                              int64_t max_rows) {
  if (config.rotary_dims() % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rotary_pct: ", config.rotary_pct, " of a head of ", config.head_size(),
                     " gives ", config.rotary_dims(), " dimensions; pairs need an even number"));
  }
  if (config.head_size() > cuda::kMaxHeadSize) {
    return absl::UnimplementedError(absl::StrCat("heads of ", config.head_size(),
                                                 " dimensions; the CUDA engines run up to ",
                                                 cuda::kMaxHeadSize));
  }
  DeviceStack stack;
  stack.config_ = config;
  stack.type_ = loader.type();
  stack.layers_.resize(config.num_layers);
  for (int32_t i = 0; i < config.num_layers; ++i) {
    absl::Status status =
        stack.LoadLayer(loader, absl::StrCat(prefix, "layers.", i, "."), stack.layers_[i]);
    if (!status.ok()) return status;
  }
  absl::Status status = MoveInto(loader.LayerNorm(prefix + "final_layer_norm", config.hidden_size),
                                 stack.final_norm_);
  if (!status.ok()) return status;

  const int64_t width = stack.stride();
  const int64_t inner = cuda::PadElements(config.intermediate_size);
  const auto plan = [&](int64_t n, int64_t k, bool accumulate, bool gelu,
                        std::unique_ptr<const cuda::MatmulPlan>& target) {
    cuda::MatmulShape shape;
    shape.n = n;
    shape.k = k;
    shape.type = stack.type_;
    shape.output = accumulate ? cuda::ElementType::kF32 : stack.type_;
    shape.bias = true;
    shape.accumulate = accumulate;
    shape.gelu = gelu;
    return MoveInto(library.Plan(shape, max_rows), target);
  };
  status = plan(stack.qkv_stride(), width, false, false, stack.qkv_);
  if (status.ok()) status = plan(width, width, true, false, stack.dense_);
  if (status.ok()) status = plan(inner, width, false, cuda::HasGelu(library.mode()), stack.up_);
  if (status.ok()) status = plan(width, inner, true, false, stack.down_);
  if (!status.ok()) return status;
  return stack;
}

absl::Status DeviceStack::LoadLayer(const DeviceLoader& loader, const std::string& at,
                                    Layer& layer) const {
  const int64_t width = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  const auto matrix = [&](const char* name, int64_t n, int64_t k, cuda::ElementType bias_type,
                          DeviceMatrix& target) {
    MatrixForm form;
    form.n = n;
    form.k = k;
    form.bias = true;
    form.bias_type = bias_type;
    return MoveInto(loader.Matrix(absl::StrCat(at, name), form), target);
  };
  constexpr cuda::ElementType kFloat = cuda::ElementType::kF32;
  absl::Status status =
      MoveInto(loader.LayerNorm(at + "input_layernorm", width), layer.attention_norm);
  if (status.ok()) {
    status = MoveInto(loader.LayerNorm(at + "post_attention_layernorm", width), layer.mlp_norm);
  }
  if (status.ok()) {
    status = matrix("attention.query_key_value", 3 * width, width, type_, layer.qkv);
  }
  if (status.ok()) status = matrix("attention.dense", width, width, kFloat, layer.dense);
  if (status.ok()) status = matrix("mlp.dense_h_to_4h", inner, width, type_, layer.up);
  if (status.ok()) status = matrix("mlp.dense_4h_to_h", width, inner, kFloat, layer.down);
  return status;
}

absl::StatusOr<StackActivations> DeviceStack::Allocate(int64_t rows, int64_t wanted) const {
  StackActivations activations;
  const int64_t element = cuda::ElementBytes(type_);
  absl::Status status;
  const auto allocate = [&](int64_t count, int64_t row_bytes, cuda::DeviceBuffer& target) {
    if (!status.ok()) return;
    status = MoveInto(cuda::DeviceBuffer::Allocate(cuda::PadRows(count) * row_bytes), target);
  };
  allocate(rows, stride() * 4, activations.x);
  allocate(rows, stride() * element, activations.normed);
  allocate(rows, stride() * element, activations.mlp_normed);
  allocate(rows, qkv_stride() * element, activations.qkv);
  allocate(rows, stride() * element, activations.attended);
  allocate(rows, cuda::PadElements(config_.intermediate_size) * element, activations.intermediate);
  allocate(wanted, stride() * 4, activations.x_wanted);
  allocate(wanted, stride() * element, activations.mlp_normed_wanted);
  allocate(wanted, stride() * element, activations.attended_wanted);
  if (!status.ok()) return status;
  return activations;
}

absl::StatusOr<const float*> DeviceStack::Run(int64_t rows, const int32_t* wanted,
                                              int64_t num_wanted,
                                              const StackActivations& activations,
                                              Attention attention, const cuda::Stream& on,
                                              const StepProfile& profile) const {
  const cuda::StreamHandle stream = on.get();
  float* x = activations.x.as<float>();
  void* attended = activations.attended.data();
  void* mlp_normed = activations.mlp_normed.data();
  absl::Status status;
  const auto norm = [&](const DeviceLayerNorm& first, void* first_y, const DeviceLayerNorm* second,
                        void* second_y) {
    if (!status.ok()) return;
    cuda::LayerNormArgs args;
    args.rows = rows;
    args.width = config_.hidden_size;
    args.epsilon = static_cast<float>(config_.layer_norm_eps);
    args.x = x;
    args.x_stride = stride();
    args.type = type_;
    args.outputs[0] = {first.weight.as<float>(), first.bias.as<float>(), first_y, stride()};
    if (second != nullptr) {
      args.outputs[1] = {second->weight.as<float>(), second->bias.as<float>(), second_y, stride()};
    }
    status = cuda::LayerNorm(args, stream);
    profile.Lap(StepTimer::kRows);
  };
  const auto matmul = [&](const cuda::MatmulPlan& plan, const DeviceMatrix& weights, const void* in,
                          void* y) {
    if (status.ok()) {
      status = plan.Run(in, weights.weight.data(), weights.bias.data(), y, rows, on);
      profile.Lap(StepTimer::kMatmul);
    }
  };
  const auto gather = [&](const void* from, void* to, int64_t row_bytes) {
    if (!status.ok()) return;
    cuda::GatherRowsArgs args;
    args.rows = num_wanted;
    args.indices = wanted;
    args.from = from;
    args.from_stride_bytes = row_bytes;
    args.to = to;
    args.to_stride_bytes = row_bytes;
    args.row_bytes = row_bytes;
    status = cuda::GatherRows(args, stream);
  };

  const bool parallel = config_.parallel_residual;
  for (int32_t i = 0; i < config_.num_layers && status.ok(); ++i) {
    const Layer& layer = layers_[i];
    norm(layer.attention_norm, activations.normed.data(), parallel ? &layer.mlp_norm : nullptr,
         mlp_normed);
    matmul(*qkv_, layer.qkv, activations.normed.data(), activations.qkv.data());
    if (status.ok()) status = attention(i, activations.qkv.data(), attended);
    profile.Lap(StepTimer::kAttention);
    if (i + 1 == config_.num_layers && wanted != nullptr) {
      if (num_wanted == 0) break;  // keys and values are stored
      const int64_t row_bytes = stride() * cuda::ElementBytes(type_);
      gather(x, activations.x_wanted.data(), stride() * 4);
      gather(attended, activations.attended_wanted.data(), row_bytes);
      if (parallel) gather(mlp_normed, activations.mlp_normed_wanted.data(), row_bytes);
      x = activations.x_wanted.as<float>();
      attended = activations.attended_wanted.data();
      mlp_normed = activations.mlp_normed_wanted.data();
      rows = num_wanted;
    }
    matmul(*dense_, layer.dense, attended, x);
    if (!parallel) norm(layer.mlp_norm, mlp_normed, nullptr, nullptr);
    matmul(*up_, layer.up, mlp_normed, activations.intermediate.data());
    if (status.ok() && !up_->shape().gelu) {
      status = cuda::Gelu(type_, activations.intermediate.data(),
                          rows * cuda::PadElements(config_.intermediate_size), stream);
    }
    profile.Lap(StepTimer::kRows);
    matmul(*down_, layer.down, activations.intermediate.data(), x);
  }
  if (!status.ok()) return status;
  return x;
}

absl::Status DeviceStack::FinalNorm(int64_t rows, const float* x, cuda::ElementType type, void* y,
                                    cuda::StreamHandle stream) const {
  cuda::LayerNormArgs args;
  args.rows = rows;
  args.width = config_.hidden_size;
  args.epsilon = static_cast<float>(config_.layer_norm_eps);
  args.x = x;
  args.x_stride = stride();
  args.type = type;
  args.outputs[0] = {final_norm_.weight.as<float>(), final_norm_.bias.as<float>(), y, stride()};
  return cuda::LayerNorm(args, stream);
}

}  // namespace blockserve
