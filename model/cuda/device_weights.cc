#include "model/cuda/device_weights.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "kernels/aligned_buffer.h"

namespace blockserve {
namespace {

// Rows that a thread converts at a time.
constexpr int64_t kGrain = 64;

void Store(cuda::ElementType type, void* data, int64_t index, float value) {
  if (type == cuda::ElementType::kBf16) {
    static_cast<uint16_t*>(data)[index] = Bf16FromFloat(value);
  } else {
    static_cast<float*>(data)[index] = value;
  }
}

}  // namespace

absl::StatusOr<DeviceLoader> DeviceLoader::Create(const LoadContext& context,
                                                  cuda::ElementType type) {
  absl::StatusOr<cuda::Stream> stream = cuda::Stream::Create();
  if (!stream.ok()) return stream.status();
  return DeviceLoader(context, type, *std::move(stream));
}

absl::StatusOr<cuda::DeviceBuffer> DeviceLoader::Upload(const void* from, int64_t bytes) const {
  absl::StatusOr<cuda::DeviceBuffer> buffer = cuda::DeviceBuffer::Allocate(bytes);
  if (!buffer.ok()) return buffer;
  absl::Status status = cuda::CopyToDevice(buffer->data(), from, bytes, stream_.get());
  if (status.ok()) status = stream_.Synchronize();
  if (!status.ok()) return status;
  return buffer;
}

absl::StatusOr<DeviceMatrix> DeviceLoader::Matrix(absl::string_view name,
                                                  const MatrixForm& form) const {
  const std::string tensor = absl::StrCat(name, ".weight");
  const absl::StatusOr<Elements> elements = FindElements(context_, tensor, form.n * form.k);
  if (!elements.ok()) return elements.status();
  const int64_t vector = form.n / form.vectors;
  DeviceMatrix matrix;
  matrix.n = form.vectors * cuda::PadElements(vector);
  matrix.k = cuda::PadElements(form.k);
  const AlignedBuffer host(matrix.n * matrix.k * cuda::ElementBytes(type_));
  if (host.data() == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for ", matrix.n * matrix.k * cuda::ElementBytes(type_),
                     " bytes to convert ", tensor, " in"));
  }
  const int64_t inner = form.k / form.kernel_size;
  context_.pool.ParallelFor((form.n + kGrain - 1) / kGrain, [&](int64_t task, int) {
    for (int64_t o = task * kGrain; o < std::min(form.n, (task + 1) * kGrain); ++o) {
      const int64_t to = (o / vector * cuda::PadElements(vector) + o % vector) * matrix.k;
      for (int64_t j = 0; j < form.kernel_size; ++j) {
        for (int64_t e = 0; e < inner; ++e) {
          Store(type_, host.data(), to + j * inner + e,
                LoadElement(elements->type, elements->data, o * form.k + e * form.kernel_size + j));
        }
      }
    }
  });
  absl::StatusOr<cuda::DeviceBuffer> weight = Upload(host.data(), host.size_bytes());
  if (!weight.ok()) return weight.status();
  matrix.weight = *std::move(weight);
  TakenOver(context_, form.n * form.k * ElementBytes(elements->type));
  if (!form.bias) return matrix;
  absl::StatusOr<cuda::DeviceBuffer> bias =
      Vector(absl::StrCat(name, ".bias"), form, form.bias_type);
  if (!bias.ok()) return bias.status();
  matrix.bias = *std::move(bias);
  return matrix;
}

absl::StatusOr<cuda::DeviceBuffer> DeviceLoader::Vector(absl::string_view name,
                                                        const MatrixForm& form,
                                                        cuda::ElementType type) const {
  const absl::StatusOr<Elements> elements = FindElements(context_, name, form.n);
  if (!elements.ok()) return elements.status();
  const int64_t vector = form.n / form.vectors;
  const AlignedBuffer host(form.vectors * cuda::PadElements(vector) * cuda::ElementBytes(type));
  if (host.data() == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory to convert ", name, " in"));
  }
  for (int64_t o = 0; o < form.n; ++o) {
    Store(type, host.data(), o / vector * cuda::PadElements(vector) + o % vector,
          LoadElement(elements->type, elements->data, o));
  }
  return Upload(host.data(), static_cast<int64_t>(host.size_bytes()));
}

absl::StatusOr<cuda::DeviceBuffer> DeviceLoader::Table(absl::string_view name, int64_t rows,
                                                       int64_t width) const {
  const absl::StatusOr<Elements> elements = FindElements(context_, name, rows * width);
  if (!elements.ok()) return elements.status();
  const int64_t stride = cuda::PadElements(width);
  const AlignedBuffer host(rows * stride * cuda::ElementBytes(type_));
  if (host.data() == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory to convert ", name, " in"));
  }
  context_.pool.ParallelFor((rows + kGrain - 1) / kGrain, [&](int64_t task, int) {
    for (int64_t row = task * kGrain; row < std::min(rows, (task + 1) * kGrain); ++row) {
      for (int64_t i = 0; i < width; ++i) {
        Store(type_, host.data(), row * stride + i,
              LoadElement(elements->type, elements->data, row * width + i));
      }
    }
  });
  absl::StatusOr<cuda::DeviceBuffer> table =
      Upload(host.data(), static_cast<int64_t>(host.size_bytes()));
  TakenOver(context_, rows * width * ElementBytes(elements->type));
  return table;
}

absl::StatusOr<DeviceLayerNorm> DeviceLoader::LayerNorm(absl::string_view name,
                                                        int64_t width) const {
  MatrixForm form;
  form.n = width;
  absl::StatusOr<cuda::DeviceBuffer> weight =
      Vector(absl::StrCat(name, ".weight"), form, cuda::ElementType::kF32);
  if (!weight.ok()) return weight.status();
  absl::StatusOr<cuda::DeviceBuffer> bias =
      Vector(absl::StrCat(name, ".bias"), form, cuda::ElementType::kF32);
  if (!bias.ok()) return bias.status();
  return DeviceLayerNorm{*std::move(weight), *std::move(bias)};
}

}  // namespace blockserve
