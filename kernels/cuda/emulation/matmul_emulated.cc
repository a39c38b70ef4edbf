// MatmulMode::kPinned and kFastest as plain loops: what stands in for cuBLASLt where kernels run
// emulated. It shows that products are called with the right operands, and that a pinned plan
// depends on its shape alone; nothing about cuBLASLt's own algorithms.
#include <limits>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "kernels/cuda/emulation/emulator.h"
#include "kernels/cuda/matmul_libraries.h"
#include "kernels/cuda/matmul_pinning.h"

namespace blockserve::cuda {
namespace {

using Bf16Bits = uint16_t;
float ToFloat(float x) { return x; }
float ToFloat(Bf16Bits x) { return FloatFromBf16(x); }

float Read(ElementType type, const void* data, int64_t i) {
  if (type == ElementType::kF32) return static_cast<const float*>(data)[i];
  return FloatFromBf16(static_cast<const uint16_t*>(data)[i]);
}

void Write(ElementType type, void* data, int64_t i, float value) {
  if (type == ElementType::kF32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<Bf16Bits*>(data)[i] = Bf16FromFloat(value);
  }
}

// Algorithms of which each has its own bits: a sum is that of so many chains.
enum class Algorithm { kFourChains = 4, kEightChains = 8, kSixteenChains = 16 };

bool Runs(Algorithm algorithm, int64_t rows) {
  return algorithm != Algorithm::kFourChains || rows > kMatmulRowTile;
}

// Best first, and by the number of rows, as cuBLASLt's are.
std::vector<Algorithm> Propose(int64_t rows) {
  if (rows <= kMatmulRowTile) return {Algorithm::kEightChains, Algorithm::kSixteenChains};
  return {Algorithm::kFourChains, Algorithm::kSixteenChains, Algorithm::kEightChains};
}

class EmulatedPlan final : public MatmulPlan {
 public:
  // No algorithm: the best one for each number of rows.
  EmulatedPlan(const MatmulShape& shape, int64_t max_rows, std::optional<Algorithm> pinned)
      : MatmulPlan(shape, pinned.has_value() ? MatmulMode::kPinned : MatmulMode::kFastest, max_rows,
                   kMaxPinnedRows),
        pinned_(pinned) {}

  std::string description() const override {
    return pinned_.has_value() ? absl::StrCat(static_cast<int>(*pinned_), " chains") : "fastest";
  }

 private:
  absl::Status RunPiece(const void* x, const void* w, const void* bias, void* y, int64_t rows,
                        const Stream& stream) const override {
    for (const void* p : {x, w, static_cast<const void*>(y), bias}) {
      if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
        return absl::InvalidArgumentError("a product's operand is not at a multiple of 16 bytes");
      }
    }
    const Algorithm algorithm = pinned_.value_or(Propose(PadRows(rows)).front());
    return emulation::Enqueue(stream.get(), [shape = shape(), x, w, bias, y, rows, algorithm] {
      if (shape.type == ElementType::kF32) {
        RunRows(shape, algorithm, static_cast<const float*>(x), static_cast<const float*>(w), bias,
                y, rows);
      } else {
        RunRows(shape, algorithm, static_cast<const Bf16Bits*>(x), static_cast<const Bf16Bits*>(w),
                bias, y, rows);
      }
    });
  }

  template <typename T>
  static void RunRows(const MatmulShape& shape, Algorithm algorithm, const T* x, const T* w,
                      const void* bias, void* y, int64_t rows) {
    const auto dot = algorithm == Algorithm::kFourChains    ? Dot<4>
                     : algorithm == Algorithm::kEightChains ? Dot<8>
                                                            : Dot<16>;
    std::vector<float> row(shape.k);
    std::vector<float> widened;
    const float* wide = Widened(w, shape.n * shape.k, widened);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < shape.k; ++i) row[i] = ToFloat(x[r * shape.k + i]);
      for (int64_t o = 0; o < shape.n; ++o) {
        const int64_t at = r * shape.n + o;
        float sum = dot(row.data(), wide + o * shape.k, shape.k);
        if (shape.bias) sum += Read(shape.output, bias, o);
        if (shape.accumulate) sum += Read(shape.output, y, at);
        Write(shape.output, y, at, sum);
      }
    }
    // The rows of padding: read by the device, and anything afterwards.
    volatile T last = x[PadRows(rows) * shape.k - 1];
    static_cast<void>(last);
    for (int64_t at = rows * shape.n; at < PadRows(rows) * shape.n; ++at) {
      Write(shape.output, y, at, std::numeric_limits<float>::quiet_NaN());
    }
  }

  static const float* Widened(const float* w, int64_t, std::vector<float>&) { return w; }
  static const float* Widened(const Bf16Bits* w, int64_t count, std::vector<float>& widened) {
    widened.resize(count);
    for (int64_t i = 0; i < count; ++i) widened[i] = ToFloat(w[i]);
    return widened.data();
  }

  // Several sums, as tensor cores have: vectorised by the compiler.
  template <int kChains>
  static float Dot(const float* a, const float* b, int64_t k) {
    float sums[kChains] = {};
    for (int64_t i = 0; i < k; i += kChains) {
      for (int64_t j = 0; j < kChains; ++j) sums[j] += a[i + j] * b[i + j];
    }
    for (int half = kChains / 2; half >= 1; half /= 2) {
      for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
    }
    return sums[0];
  }

  std::optional<Algorithm> pinned_;
};

class EmulatedLibrary final : public MatmulLibrary {
 public:
  explicit EmulatedLibrary(MatmulMode mode) : MatmulLibrary(mode) {}
  std::string name() const override { return "emulated cuBLASLt"; }

 private:
  absl::StatusOr<std::unique_ptr<const MatmulPlan>> MakePlan(const MatmulShape& shape,
                                                             int64_t max_rows) const override {
    std::optional<Algorithm> pinned;
    if (mode() == MatmulMode::kPinned) {
      const absl::StatusOr<PinnedChoice<Algorithm>> chosen = ChoosePinned<Algorithm>(
          [](int64_t rows) { return absl::StatusOr<std::vector<Algorithm>>(Propose(rows)); }, Runs);
      if (!chosen.ok()) return chosen.status();
      pinned = chosen->algorithm;
    }
    return std::make_unique<const EmulatedPlan>(shape, max_rows, pinned);
  }
};

}  // namespace

absl::StatusOr<std::shared_ptr<const MatmulLibrary>> LoadCublasLt(MatmulMode mode) {
  return std::make_shared<const EmulatedLibrary>(mode);
}

}  // namespace blockserve::cuda
