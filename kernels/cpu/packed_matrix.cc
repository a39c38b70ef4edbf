#include "kernels/cpu/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/bf16.h"

namespace blockserve {
namespace {

// Inner steps that are transposed at a time: 16 rows of them stay in the first-level cache.
constexpr int64_t kBlock = 64;

template <ElementType kType>
float Load(const uint8_t* data, int64_t index) {
  if constexpr (kType == ElementType::kF32) {
    float value;
    std::memcpy(&value, data + index * 4, 4);
    return value;
  } else {
    uint16_t bits;
    std::memcpy(&bits, data + index * 2, 2);
    return kType == ElementType::kF16 ? FloatFromF16(bits) : FloatFromBf16(bits);
  }
}

template <ElementType kType>
void PackPanel(const MatrixSource& source, int64_t n, int64_t k, int64_t panel, float* f32,
               uint32_t* bf16) {
  const int64_t rows = std::min(kPanelWidth, n - panel * kPanelWidth);
  const int64_t width = k / source.kernel_size;  // of one convolution input row
  alignas(64) float block[kBlock][kPanelWidth] = {};
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t steps = std::min(kBlock, k - begin);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = (panel * kPanelWidth + r) * k;
      if (source.kernel_size == 1) {
        for (int64_t i = 0; i < steps; ++i) block[i][r] = Load<kType>(source.data, row + begin + i);
      } else {
        for (int64_t i = 0; i < steps; ++i) {
          const int64_t j = (begin + i) / width;
          const int64_t e = (begin + i) % width;
          block[i][r] = Load<kType>(source.data, row + e * source.kernel_size + j);
        }
      }
    }
    if (f32 != nullptr) {
      std::memcpy(f32 + begin * kPanelWidth, block, steps * sizeof(block[0]));
      continue;
    }
    for (int64_t i = 0; i < steps; i += 2) {
      uint32_t* pair = bf16 + (begin + i) / 2 * kPanelWidth;
      for (int64_t r = 0; r < kPanelWidth; ++r) {
        const uint32_t high = i + 1 < steps ? Bf16FromFloat(block[i + 1][r]) : 0;
        pair[r] = Bf16FromFloat(block[i][r]) | high << 16;
      }
    }
  }
}

}  // namespace

int64_t ElementBytes(ElementType type) { return type == ElementType::kF32 ? 4 : 2; }

float LoadElement(ElementType type, const uint8_t* data, int64_t index) {
  switch (type) {
    case ElementType::kF32:
      return Load<ElementType::kF32>(data, index);
    case ElementType::kF16:
      return Load<ElementType::kF16>(data, index);
    case ElementType::kBf16:
      break;
  }
  return Load<ElementType::kBf16>(data, index);
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(const MatrixSource& source, int64_t n, int64_t k,
                                                bool bf16, ThreadPool& pool) {
  PackedMatrix packed;
  packed.n_ = n;
  packed.k_ = k;
  packed.bf16_ = bf16;
  const int64_t bytes = packed.num_panels() * packed.panel_stride() * 4;
  packed.panels_ = AlignedBuffer(bytes);
  packed.bias_ = AlignedBuffer(PadToPanel(n) * sizeof(float));
  if (packed.panels_.data() == nullptr || packed.bias_.data() == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of weights"));
  }
  if (source.bias != nullptr) {
    float* bias = packed.bias_.as<float>();
    for (int64_t i = 0; i < n; ++i) bias[i] = LoadElement(source.bias_type, source.bias, i);
  }
  pool.ParallelFor(packed.num_panels(), [&](int64_t panel, int) {
    float* f32 = bf16 ? nullptr : packed.panels_.as<float>() + panel * packed.panel_stride();
    uint32_t* pairs =
        bf16 ? packed.panels_.as<uint32_t>() + panel * packed.panel_stride() : nullptr;
    switch (source.type) {
      case ElementType::kF32:
        return PackPanel<ElementType::kF32>(source, n, k, panel, f32, pairs);
      case ElementType::kF16:
        return PackPanel<ElementType::kF16>(source, n, k, panel, f32, pairs);
      case ElementType::kBf16:
        return PackPanel<ElementType::kBf16>(source, n, k, panel, f32, pairs);
    }
  });
  return packed;
}

}  // namespace blockserve
