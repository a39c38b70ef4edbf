// kernels/cuda/matmul.h as plain loops: what stands in for cuBLASLt where kernels run emulated. It
// shows that products are called with the right operands, and nothing about cuBLASLt.
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/bf16.h"
#include "kernels/cuda/emulation/emulator.h"
#include "kernels/cuda/matmul.h"

namespace blockserve::cuda {
namespace {

class EmulatedLibrary final : public MatmulLibrary {
 public:
  int64_t version() const override { return 0; }
};

float Read(ElementType type, const void* data, int64_t i) {
  if (type == ElementType::kF32) return static_cast<const float*>(data)[i];
  return FloatFromBf16(static_cast<const uint16_t*>(data)[i]);
}

class EmulatedPlan final : public MatmulPlan {
 public:
  EmulatedPlan(const MatmulShape& shape, int64_t max_rows) : shape_(shape), max_rows_(max_rows) {}

  absl::Status Run(const void* x, const void* w, const void* bias, void* y, int64_t rows,
                   StreamHandle stream) const override {
    if (rows > max_rows_) {
      return absl::InvalidArgumentError(
          absl::StrCat("a product of ", rows, " rows, planned for ", max_rows_));
    }
    if (rows == 0) return absl::OkStatus();
    for (const void* p : {x, w, static_cast<const void*>(y), bias}) {
      if (reinterpret_cast<uintptr_t>(p) % 16 != 0) {
        return absl::InvalidArgumentError("a product's operand is not at a multiple of 16 bytes");
      }
    }
    if ((bias != nullptr) != shape_.bias) {
      return absl::InvalidArgumentError("a product's bias is not as its shape says");
    }
    return emulation::Enqueue(stream, [shape = shape_, x, w, bias, y, rows] {
      for (int64_t r = 0; r < rows; ++r) RunRow(shape, x, w, bias, y, r);
      // The device computes the rows of padding from whatever lies there: they become NaN.
      const int64_t row_bytes = shape.n * ElementBytes(shape.output);
      std::memset(static_cast<char*>(y) + rows * row_bytes, 0xff,
                  (PadRows(rows) - rows) * row_bytes);
    });
  }

  std::string description() const override { return "emulated"; }

 private:
  static void RunRow(const MatmulShape& shape, const void* x, const void* w, const void* bias,
                     void* y, int64_t r) {
    for (int64_t o = 0; o < shape.n; ++o) {
      // Sixteen sums, as tensor cores have several: vectorised by the compiler.
      float sums[16] = {};
      for (int64_t i = 0; i < shape.k; i += 16) {
        for (int64_t j = 0; j < 16; ++j) {
          sums[j] +=
              Read(shape.type, x, r * shape.k + i + j) * Read(shape.type, w, o * shape.k + i + j);
        }
      }
      for (int half = 8; half >= 1; half /= 2) {
        for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
      }
      float sum = sums[0];
      if (shape.bias) sum += Read(shape.output, bias, o);
      const int64_t at = r * shape.n + o;
      if (shape.accumulate) sum += Read(shape.output, y, at);
      if (shape.output == ElementType::kF32) {
        static_cast<float*>(y)[at] = sum;
      } else {
        static_cast<uint16_t*>(y)[at] = Bf16FromFloat(sum);
      }
    }
  }

  MatmulShape shape_;
  int64_t max_rows_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const MatmulLibrary>> MatmulLibrary::Load() {
  return std::make_shared<const EmulatedLibrary>();
}

absl::StatusOr<std::unique_ptr<const MatmulPlan>> MatmulPlan::Create(
    std::shared_ptr<const MatmulLibrary> /*library*/, const MatmulShape& shape, int64_t max_rows,
    MatmulMode /*mode*/) {
  if (absl::Status status = ValidateMatmul(shape, max_rows); !status.ok()) return status;
  return std::make_unique<const EmulatedPlan>(shape, max_rows);
}

}  // namespace blockserve::cuda
