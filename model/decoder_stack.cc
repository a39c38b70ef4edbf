#include "model/decoder_stack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace blockserve {
namespace {

// Rows that a thread takes at a time for norms.
constexpr int64_t kRowGrain = 8;
// Rows that a thread takes at a time for splitting q, k and v, at most: two pages of a prompt.
constexpr int64_t kSplitGrain = 32;
// Pieces of attention for each thread, at least, where there are as many.
constexpr int64_t kAttentionPieces = 4;

// Calls body(begin, end, thread) over [0, count) in pieces of `grain`.
template <typename Body>
void ForRanges(ThreadPool& pool, int64_t count, int64_t grain, const Body& body) {
  pool.ParallelFor((count + grain - 1) / grain, [&](int64_t task, int thread) {
    body(task * grain, std::min(count, (task + 1) * grain), thread);
  });
}

template <typename T>
absl::Status MoveInto(absl::StatusOr<T> value, T& target) {
  if (!value.ok()) return value.status();
  target = *std::move(value);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DecoderStack> DecoderStack::Load(const LoadContext& context,
                                                const std::string& prefix,
                                                const StackConfig& config,
                                                const CpuKernels& kernels, int64_t max_rows) {
  if (config.rotary_dims() % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("rotary_pct: ", config.rotary_pct, " of a head of ", config.head_size(),
                     " gives ", config.rotary_dims(), " dimensions; pairs need an even number"));
  }
  DecoderStack stack;
  stack.config_ = config;
  stack.kernels_ = &kernels;
  stack.attention_ =
      context.arithmetic == Arithmetic::kBf16Dot ? kernels.bf16dot_attention : kernels.attention;
  stack.max_rows_ = max_rows;
  stack.rotary_ = RotaryTable(config.rotary_dims(), config.rotary_base);
  stack.layers_.resize(config.num_layers);
  for (int32_t i = 0; i < config.num_layers; ++i) {
    absl::Status status =
        stack.LoadLayer(context, absl::StrCat(prefix, "layers.", i, "."), stack.layers_[i]);
    if (!status.ok()) return status;
  }
  absl::Status status =
      MoveInto(LayerNormWeights::Load(context, prefix + "final_layer_norm", config.hidden_size),
               stack.final_norm_);
  if (!status.ok()) return status;

  stack.wanted_rows_.reserve(max_rows);
  const int64_t row_bytes = stack.stride() * sizeof(float);
  const int64_t q_bytes = config.num_heads * PadToPanel(config.head_size()) * sizeof(float);
  stack.normed_ = AlignedBuffer(max_rows * row_bytes);
  stack.mlp_normed_ = AlignedBuffer(max_rows * row_bytes);
  stack.qkv_ = AlignedBuffer(max_rows * RowStride(3 * config.hidden_size) * sizeof(float));
  stack.q_ = AlignedBuffer(max_rows * q_bytes);
  stack.attended_ = AlignedBuffer(max_rows * row_bytes);
  stack.intermediate_ =
      AlignedBuffer(max_rows * RowStride(config.intermediate_size) * sizeof(float));
  stack.quantized_ = QuantizedRows(context.arithmetic, max_rows,
                                   std::max(config.hidden_size, config.intermediate_size));
  if (!stack.quantized_.has_memory()) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for activations of ", max_rows, " rows"));
  }
  for (const AlignedBuffer* buffer : {&stack.normed_, &stack.mlp_normed_, &stack.qkv_, &stack.q_,
                                      &stack.attended_, &stack.intermediate_}) {
    if (buffer->data() == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no memory for activations of ", max_rows, " rows"));
    }
  }
  return stack;
}

absl::Status DecoderStack::LoadLayer(const LoadContext& context, const std::string& at,
                                     Layer& layer) const {
  const int64_t width = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  absl::Status status = MoveInto(LayerNormWeights::Load(context, at + "input_layernorm", width),
                                 layer.attention_norm);
  if (!status.ok()) return status;
  status = MoveInto(LayerNormWeights::Load(context, at + "post_attention_layernorm", width),
                    layer.mlp_norm);
  if (!status.ok()) return status;
  status = MoveInto(LoadMatrix(context, at + "attention.query_key_value", 3 * width, width, true),
                    layer.qkv);
  if (!status.ok()) return status;
  status = MoveInto(LoadMatrix(context, at + "attention.dense", width, width, true), layer.dense);
  if (!status.ok()) return status;
  status = MoveInto(LoadMatrix(context, at + "mlp.dense_h_to_4h", inner, width, true), layer.up);
  if (!status.ok()) return status;
  return MoveInto(LoadMatrix(context, at + "mlp.dense_4h_to_h", width, inner, true), layer.down);
}

void DecoderStack::ReserveScratch(ThreadPool& pool, absl::Span<const SequenceRow> rows,
                                  const KvLayout& layout) {
  int64_t last = 0;
  for (const SequenceRow& row : rows) last = std::max(last, row.position);
  rotary_.Reserve(last + 1);
  const size_t scratch = AttentionScratch(layout, last);
  scores_.resize(pool.num_threads());
  for (std::vector<float>& scores : scores_) {
    // Doubling: a sequence that grows by a block a step does not allocate in every step.
    if (scores.size() < scratch) scores.resize(std::max(scratch, 2 * scores.size()));
  }
}

void DecoderStack::SplitQkv(ThreadPool& pool, absl::Span<const SequenceRow> rows,
                            const KvLayout& layout, uint8_t* kv) const {
  SplitQkvArgs split;
  split.qkv = qkv_.as<float>();
  split.qkv_stride = RowStride(3 * config_.hidden_size);
  split.sequence_rows = rows.data();
  split.layout = &layout;
  split.kv = kv;
  split.rotary_dims = rotary_.dims();
  split.cos = rotary_.cos();
  split.sin = rotary_.sin();
  split.q_scale = 1.0f / std::sqrt(static_cast<float>(config_.head_size()));
  split.q = q_.as<float>();
  const int64_t count = static_cast<int64_t>(rows.size());
  const int64_t grain = std::clamp<int64_t>(count / (2 * pool.num_threads()), 1, kSplitGrain);
  ForRanges(pool, count, grain,
            [&](int64_t begin, int64_t end, int) { kernels_->split_qkv(split, begin, end); });
}

void DecoderStack::RunAttention(ThreadPool& pool, absl::Span<const SequenceRow> rows,
                                const KvLayout& layout, const uint8_t* kv) {
  const int64_t count = static_cast<int64_t>(rows.size());
  AttentionArgs attention;
  attention.q = q_.as<float>();
  attention.sequence_rows = rows.data();
  attention.layout = &layout;
  attention.kv = kv;
  attention.out = attended_.as<float>();
  attention.out_stride = stride();
  // Whole runs of rows, unless threads would stay without work.
  int64_t grain = kAttentionRun;
  const auto pieces_of = [&] { return (count + grain - 1) / grain; };
  while (grain > kAttentionQueries &&
         pieces_of() * config_.num_heads < kAttentionPieces * pool.num_threads()) {
    grain /= 2;
  }
  const int64_t pieces = pieces_of();
  pool.ParallelFor(pieces * config_.num_heads, [&](int64_t task, int thread) {
    const int64_t begin = task % pieces * grain;
    const int32_t head = static_cast<int32_t>(task / pieces);
    attention_(attention, begin, std::min(count, begin + grain), head, scores_[thread].data());
  });
}

void DecoderStack::Compact(absl::Span<const SequenceRow> rows, absl::Span<const int32_t> wanted,
                           float* x) {
  const int64_t q_stride = config_.num_heads * PadToPanel(config_.head_size());
  const auto move = [](float* values, int64_t stride, int64_t to, int64_t from) {
    if (to != from)
      std::memcpy(values + to * stride, values + from * stride, stride * sizeof(float));
  };
  wanted_rows_.clear();
  for (const int32_t row : wanted) {
    const int64_t to = static_cast<int64_t>(wanted_rows_.size());
    move(x, stride(), to, row);
    move(q_.as<float>(), q_stride, to, row);
    move(mlp_normed_.as<float>(), stride(), to, row);
    wanted_rows_.push_back(rows[row]);
  }
}

void DecoderStack::Run(ThreadPool& pool, absl::Span<const SequenceRow> rows,
                       absl::Span<const int32_t> wanted, const KvStore& kv, float* x,
                       StepTimer* timer) {
  int64_t count = static_cast<int64_t>(rows.size());
  ReserveScratch(pool, rows, kv.layout());

  const auto norm = [&](const LayerNormWeights& first, float* first_y,
                        const LayerNormWeights* second, float* second_y) {
    LayerNormArgs args;
    args.x = x;
    args.x_stride = stride();
    args.width = config_.hidden_size;
    args.epsilon = static_cast<float>(config_.layer_norm_eps);
    args.outputs[0] = {first.weight.as<float>(), first.bias.as<float>(), first_y, stride()};
    if (second != nullptr) {
      args.outputs[1] = {second->weight.as<float>(), second->bias.as<float>(), second_y, stride()};
    }
    ForRanges(pool, count, kRowGrain,
              [&](int64_t begin, int64_t end, int) { kernels_->layer_norm(args, begin, end); });
    Lap(timer, StepTimer::kRows);
  };
  const auto matmul = [&](const PackedMatrix& weights, const AlignedBuffer& in, Epilogue epilogue,
                          float* y, const PackedMatrix* next) {
    MatmulArgs args;
    args.x = in.as<float>();
    args.x_stride = RowStride(weights.k());
    args.rows = count;
    args.weights = &weights;
    args.epilogue = epilogue;
    args.residual = epilogue == Epilogue::kAddResidual ? y : nullptr;
    args.y = y;
    args.y_stride = RowStride(weights.n());
    RunMatmul(*kernels_, pool, quantized_, args, next);
    Lap(timer, StepTimer::kMatmul);
  };

  const bool parallel = config_.parallel_residual;
  for (int32_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = layers_[i];
    norm(layer.attention_norm, normed_.as<float>(), parallel ? &layer.mlp_norm : nullptr,
         mlp_normed_.as<float>());
    matmul(layer.qkv, normed_, Epilogue::kNone, qkv_.as<float>(), &layer.dense);
    SplitQkv(pool, rows, kv.layout(), kv.layer(i));
    Lap(timer, StepTimer::kRows);
    if (i + 1 == config_.num_layers && wanted.size() < rows.size()) {
      Compact(rows, wanted, x);
      rows = wanted_rows_;
      count = static_cast<int64_t>(rows.size());
      if (count == 0) return;
    }
    RunAttention(pool, rows, kv.layout(), kv.layer(i));
    Lap(timer, StepTimer::kAttention);
    matmul(layer.dense, attended_, Epilogue::kAddResidual, x, &layer.up);
    if (!parallel) norm(layer.mlp_norm, mlp_normed_.as<float>(), nullptr, nullptr);
    matmul(layer.up, mlp_normed_, Epilogue::kGelu, intermediate_.as<float>(), &layer.down);
    matmul(layer.down, intermediate_, Epilogue::kAddResidual, x,
           i + 1 < config_.num_layers ? &layers_[i + 1].qkv : nullptr);
  }
}

void DecoderStack::FinalNorm(ThreadPool& pool, int64_t rows, const float* x, float* y) const {
  LayerNormArgs args;
  args.x = x;
  args.x_stride = stride();
  args.width = config_.hidden_size;
  args.epsilon = static_cast<float>(config_.layer_norm_eps);
  args.outputs[0] = {final_norm_.weight.as<float>(), final_norm_.bias.as<float>(), y, stride()};
  ForRanges(pool, rows, kRowGrain,
            [&](int64_t begin, int64_t end, int) { kernels_->layer_norm(args, begin, end); });
}

}  // namespace blockserve
