#include "kernels/cpu/packed_matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/bf16.h"

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

using Block = float[kBlock][kPanelWidth];

// block[i][r] = W[panel * 16 + r, begin + i] for i < steps; rows beyond n stay as they are.
template <ElementType kType>
void LoadBlock(const MatrixSource& source, int64_t n, int64_t k, int64_t panel, int64_t begin,
               int64_t steps, Block& block) {
  const int64_t rows = std::min(kPanelWidth, n - panel * kPanelWidth);
  const int64_t width = k / source.kernel_size;  // of one convolution input row
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
}

void LoadBlock(const MatrixSource& source, int64_t n, int64_t k, int64_t panel, int64_t begin,
               int64_t steps, Block& block) {
  switch (source.type) {
    case ElementType::kF32:
      return LoadBlock<ElementType::kF32>(source, n, k, panel, begin, steps, block);
    case ElementType::kF16:
      return LoadBlock<ElementType::kF16>(source, n, k, panel, begin, steps, block);
    case ElementType::kBf16:
      return LoadBlock<ElementType::kBf16>(source, n, k, panel, begin, steps, block);
  }
}

void StoreBf16(const Block& block, int64_t steps, uint32_t* pairs) {
  for (int64_t i = 0; i < steps; i += 2, pairs += kPanelWidth) {
    for (int64_t r = 0; r < kPanelWidth; ++r) {
      const uint32_t high = i + 1 < steps ? Bf16FromFloat(block[i + 1][r]) : 0;
      pairs[r] = Bf16FromFloat(block[i][r]) | high << 16;
    }
  }
}

// Symmetric quantisation of one panel: the largest magnitude of an output becomes 127.
void PackInt8Panel(const MatrixSource& source, int64_t n, int64_t k, int64_t panel, int8_t* out,
                   float* scales, int32_t* offsets) {
  alignas(64) Block block = {};
  float largest[kPanelWidth] = {};
  bool finite[kPanelWidth];
  std::fill(finite, finite + kPanelWidth, true);
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t steps = std::min(kBlock, k - begin);
    LoadBlock(source, n, k, panel, begin, steps, block);
    for (int64_t i = 0; i < steps; ++i) {
      for (int64_t r = 0; r < kPanelWidth; ++r) {
        largest[r] = std::max(largest[r], std::abs(block[i][r]));
        finite[r] = finite[r] && std::isfinite(block[i][r]);
      }
    }
  }
  float inverse[kPanelWidth];
  for (int64_t r = 0; r < kPanelWidth; ++r) {
    inverse[r] = largest[r] > 1e-30f && finite[r] ? 127.0f / largest[r] : 0.0f;
    // Outputs of weights that are not finite are not finite either.
    scales[r] = finite[r] ? largest[r] / 127.0f : std::numeric_limits<float>::quiet_NaN();
    offsets[r] = 0;
  }
  for (int64_t begin = 0; begin < k; begin += kBlock) {
    const int64_t steps = std::min(kBlock, k - begin);
    LoadBlock(source, n, k, panel, begin, steps, block);
    for (int64_t i = 0; i < steps; ++i) {
      int8_t* group = out + (begin + i) / 4 * kPanelWidth * 4 + (begin + i) % 4;
      for (int64_t r = 0; r < kPanelWidth; ++r) {
        if (inverse[r] == 0.0f) continue;
        const int32_t q = static_cast<int32_t>(std::nearbyint(block[i][r] * inverse[r]));
        group[r * 4] = static_cast<int8_t>(std::clamp(q, -127, 127));
        offsets[r] += 128 * std::clamp(q, -127, 127);
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

int64_t PackedMatrix::Lines(WeightFormat format, int64_t k) {
  switch (format) {
    case WeightFormat::kF32:
      break;
    case WeightFormat::kBf16:
    case WeightFormat::kBf16Dot:
      return (k + 1) / 2;
    case WeightFormat::kInt8:
      return (k + 3) / 4;
  }
  return k;
}

absl::StatusOr<PackedMatrix> PackedMatrix::Pack(const MatrixSource& source, int64_t n, int64_t k,
                                                WeightFormat format, ThreadPool& pool) {
  PackedMatrix packed;
  packed.n_ = n;
  packed.k_ = k;
  packed.format_ = format;
  const bool int8 = format == WeightFormat::kInt8;
  if (int8 && k > kMaxInt8Inputs) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a matrix of ", k, " inputs: arithmetic int8, whose sums have 32 bits, takes at most ",
        kMaxInt8Inputs));
  }
  const int64_t vector_bytes = PadToPanel(n) * 4;
  const int64_t bytes = packed.num_panels() * packed.panel_bytes();
  packed.panels_ = AlignedBuffer(bytes);
  packed.bias_ = AlignedBuffer(vector_bytes);
  if (int8) {
    packed.scales_ = AlignedBuffer(vector_bytes);
    packed.offsets_ = AlignedBuffer(vector_bytes);
  }
  if (packed.panels_.data() == nullptr || packed.bias_.data() == nullptr ||
      (int8 && (packed.scales_.data() == nullptr || packed.offsets_.data() == nullptr))) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", bytes, " bytes of weights"));
  }
  if (source.bias != nullptr) {
    float* bias = packed.bias_.as<float>();
    for (int64_t i = 0; i < n; ++i) bias[i] = LoadElement(source.bias_type, source.bias, i);
  }
  pool.ParallelFor(packed.num_panels(), [&](int64_t panel, int) {
    uint8_t* out = packed.panels_.data() + panel * packed.panel_bytes();
    if (int8) {
      return PackInt8Panel(source, n, k, panel, reinterpret_cast<int8_t*>(out),
                           packed.scales_.as<float>() + panel * kPanelWidth,
                           packed.offsets_.as<int32_t>() + panel * kPanelWidth);
    }
    alignas(64) Block block = {};
    for (int64_t begin = 0; begin < k; begin += kBlock) {
      const int64_t steps = std::min(kBlock, k - begin);
      LoadBlock(source, n, k, panel, begin, steps, block);
      if (format == WeightFormat::kF32) {
        std::memcpy(out + begin * sizeof(block[0]), block, steps * sizeof(block[0]));
      } else {
        StoreBf16(block, steps, reinterpret_cast<uint32_t*>(out) + begin / 2 * kPanelWidth);
      }
    }
  });
  return packed;
}

}  // namespace blockserve
