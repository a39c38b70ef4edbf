#include "model/weights.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "common/logging.h"
#include "model/run_matmul.h"

namespace blockserve {
namespace {

// Rows of a table that a thread copies at a time.
constexpr int64_t kTableGrain = 256;

absl::Status NoMemory(absl::string_view name, int64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of ", name));
}

}  // namespace

absl::StatusOr<Elements> FindElements(const LoadContext& context, absl::string_view name,
                                      int64_t count) {
  absl::StatusOr<TensorView> tensor = context.checkpoint.Find(name);
  if (!tensor.ok()) return tensor.status();
  if (tensor->num_elements() != count) {
    return absl::InvalidArgumentError(absl::StrCat("tensor ", name, " has ", tensor->num_elements(),
                                                   " elements, ", count, " are needed"));
  }
  switch (tensor->dtype) {
    case DType::kF32:
      return Elements{ElementType::kF32, tensor->data.data()};
    case DType::kF16:
      return Elements{ElementType::kF16, tensor->data.data()};
    case DType::kBF16:
      return Elements{ElementType::kBf16, tensor->data.data()};
    case DType::kOther:
      break;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", name, " has dtype ", tensor->dtype_name, ", not F32, F16 or BF16"));
}

void TakenOver(const LoadContext& context, int64_t bytes) {
  context.checkpoint.ReleasePages();
  if (context.progress == nullptr) return;
  const std::string line = context.progress->Add(bytes, std::chrono::steady_clock::now());
  if (!line.empty()) LogInfo(line);
}

absl::StatusOr<PackedMatrix> LoadMatrix(const LoadContext& context, absl::string_view name,
                                        int64_t n, int64_t k, bool has_bias, int64_t kernel_size) {
  absl::StatusOr<Elements> weight = FindElements(context, absl::StrCat(name, ".weight"), n * k);
  if (!weight.ok()) return weight.status();
  MatrixSource source;
  source.type = weight->type;
  source.data = weight->data;
  source.kernel_size = kernel_size;
  if (has_bias) {
    absl::StatusOr<Elements> bias = FindElements(context, absl::StrCat(name, ".bias"), n);
    if (!bias.ok()) return bias.status();
    source.bias = bias->data;
    source.bias_type = bias->type;
  }
  absl::StatusOr<PackedMatrix> packed = PackedMatrix::Pack(
      source, n, k, WeightFormatOf(context.arithmetic, source.type), context.pool);
  TakenOver(context, n * k * ElementBytes(source.type));
  return packed;
}

absl::StatusOr<AlignedBuffer> LoadVector(const LoadContext& context, absl::string_view name,
                                         int64_t n) {
  absl::StatusOr<Elements> elements = FindElements(context, name, n);
  if (!elements.ok()) return elements.status();
  AlignedBuffer vector(PadToPanel(n) * sizeof(float));
  if (vector.data() == nullptr) return NoMemory(name, PadToPanel(n) * 4);
  for (int64_t i = 0; i < n; ++i) {
    vector.as<float>()[i] = LoadElement(elements->type, elements->data, i);
  }
  return vector;
}

absl::StatusOr<LayerNormWeights> LayerNormWeights::Load(const LoadContext& context,
                                                        absl::string_view name, int64_t width) {
  absl::StatusOr<AlignedBuffer> weight = LoadVector(context, absl::StrCat(name, ".weight"), width);
  if (!weight.ok()) return weight.status();
  absl::StatusOr<AlignedBuffer> bias = LoadVector(context, absl::StrCat(name, ".bias"), width);
  if (!bias.ok()) return bias.status();
  return LayerNormWeights{*std::move(weight), *std::move(bias)};
}

absl::StatusOr<EmbeddingTable> EmbeddingTable::Load(const LoadContext& context,
                                                    absl::string_view name, int64_t rows,
                                                    int64_t width) {
  absl::StatusOr<Elements> elements = FindElements(context, name, rows * width);
  if (!elements.ok()) return elements.status();
  EmbeddingTable table;
  table.width_ = width;
  table.bf16_ = StoresBf16(context.arithmetic) || elements->type == ElementType::kBf16;
  const int64_t bytes = rows * width * (table.bf16_ ? 2 : 4);
  table.data_ = AlignedBuffer(bytes);
  if (table.data_.data() == nullptr) return NoMemory(name, bytes);
  const int64_t element_bytes = table.bf16_ ? 2 : 4;
  const bool same_type = elements->type == (table.bf16_ ? ElementType::kBf16 : ElementType::kF32);
  context.pool.ParallelFor((rows + kTableGrain - 1) / kTableGrain, [&](int64_t task, int) {
    const int64_t begin = task * kTableGrain * width;
    const int64_t end = std::min(rows, (task + 1) * kTableGrain) * width;
    if (same_type) {
      std::memcpy(table.data_.data() + begin * element_bytes,
                  elements->data + begin * element_bytes, (end - begin) * element_bytes);
      return;
    }
    for (int64_t i = begin; i < end; ++i) {
      const float value = LoadElement(elements->type, elements->data, i);
      if (table.bf16_) {
        table.data_.as<uint16_t>()[i] = Bf16FromFloat(value);
      } else {
        table.data_.as<float>()[i] = value;
      }
    }
  });
  TakenOver(context, rows * width * ElementBytes(elements->type));
  return table;
}

void EmbeddingTable::CopyRow(int64_t row, float* out) const {
  if (!bf16_) {
    std::memcpy(out, data_.as<float>() + row * width_, width_ * sizeof(float));
    return;
  }
  FloatsFromBf16(data_.as<uint16_t>() + row * width_, width_, out);
}

void EmbeddingTable::AddRow(int64_t row, float* out) const {
  if (!bf16_) {
    const float* in = data_.as<float>() + row * width_;
    for (int64_t i = 0; i < width_; ++i) out[i] += in[i];
    return;
  }
  const uint16_t* in = data_.as<uint16_t>() + row * width_;
  for (int64_t i = 0; i < width_; ++i) out[i] += FloatFromBf16(in[i]);
}

}  // namespace blockserve
