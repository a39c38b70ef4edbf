// MatmulMode::kOwn.
#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/matmul_libraries.h"
#include "kernels/cuda/matmul_tiles.h"

namespace blockserve::cuda {
namespace {

// What a multiprocessor of an H200 does in a clock, as published or measured by others. It decides
// which tile is taken, and no bit of a result.
constexpr double kMultiplyAdds = 1024;  // of bfloat16, by the instructions that tiles use
constexpr double kBytesAlone = 60;      // from the L2 cache, where few read
constexpr double kBytesTogether = 24;   // the same where all do
constexpr double kClocksOfAStep = 2.1;  // for each element of k: a product waits for the last

// Clocks for each element of k.
double Clocks(const MatmulTile& tile, int64_t rows, int64_t n, int32_t multiprocessors) {
  const auto tiles_over = [](int64_t count, int32_t size) { return (count + size - 1) / size; };
  const auto blocks =
      static_cast<double>(tiles_over(rows, tile.rows) * tiles_over(n, tile.columns));
  const double turns = std::max(blocks / multiprocessors, 1.0);
  // Of a last tile's empty rows and columns nothing is read.
  const auto bytes = static_cast<double>(
      2 * (std::min<int64_t>(tile.rows, rows) + std::min<int64_t>(tile.columns, n)));
  return std::max({turns * tile.rows * tile.columns / kMultiplyAdds, turns * bytes / kBytesAlone,
                   blocks * bytes / (kBytesTogether * multiprocessors), kClocksOfAStep});
}

class OwnPlan final : public MatmulPlan {
 public:
  OwnPlan(const MatmulShape& shape, int64_t max_rows, int32_t multiprocessors)
      : MatmulPlan(shape, MatmulMode::kOwn, max_rows, PadRows(max_rows)),
        multiprocessors_(multiprocessors) {}

  std::string description() const override {
    const MatmulTile& tile =
        kMatmulTiles[ChooseMatmulTile(max_rows(), shape().n, multiprocessors_)];
    return absl::StrCat("own, tiles of ", tile.rows, " x ", tile.columns, " for ", max_rows(),
                        " rows");
  }

 private:
  absl::Status RunPiece(const void* x, const void* w, const void* bias, void* y, int64_t rows,
                        const Stream& stream) const override {
    TiledMatmulArgs args;
    args.rows = rows;
    args.n = shape().n;
    args.k = shape().k;
    args.x = x;
    args.w = w;
    args.bias = bias;
    args.output = shape().output;
    args.y = y;
    args.gelu = shape().gelu;
    args.accumulate = shape().accumulate;
    return TiledMatmul(args, ChooseMatmulTile(rows, args.n, multiprocessors_), stream.get());
  }

  const int32_t multiprocessors_;
};

class OwnLibrary final : public MatmulLibrary {
 public:
  explicit OwnLibrary(int32_t multiprocessors)
      : MatmulLibrary(MatmulMode::kOwn), multiprocessors_(multiprocessors) {}
  std::string name() const override { return "own kernels"; }

 private:
  absl::StatusOr<std::unique_ptr<const MatmulPlan>> MakePlan(const MatmulShape& shape,
                                                             int64_t max_rows) const override {
    if (shape.type != ElementType::kBf16) {
      return absl::InvalidArgumentError("own products are of bfloat16 alone");
    }
    return std::make_unique<const OwnPlan>(shape, max_rows, multiprocessors_);
  }

  const int32_t multiprocessors_;
};

}  // namespace

int32_t ChooseMatmulTile(int64_t rows, int64_t n, int32_t multiprocessors) {
  int32_t best = 0;
  for (int32_t i = 1; i < kNumMatmulTiles; ++i) {
    // Of equals the larger: it reads less.
    if (Clocks(kMatmulTiles[i], rows, n, multiprocessors) <=
        Clocks(kMatmulTiles[best], rows, n, multiprocessors)) {
      best = i;
    }
  }
  return best;
}

absl::StatusOr<std::shared_ptr<const MatmulLibrary>> LoadOwnMatmul() {
  const absl::StatusOr<int32_t> multiprocessors = CountMultiprocessors();
  if (!multiprocessors.ok()) return multiprocessors.status();
  return std::make_shared<const OwnLibrary>(*multiprocessors);
}

}  // namespace blockserve::cuda
