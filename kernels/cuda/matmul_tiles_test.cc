#include "kernels/cuda/matmul_tiles.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/device_test_util.h"
#include "kernels/cuda/row_kernels.h"
#include "kernels/reference.h"

namespace blockserve::cuda {
namespace {

struct Product {
  int64_t rows;
  int64_t n;
  int64_t k;
  ElementType output = ElementType::kF32;
  bool bias = false;
  bool gelu = false;
  bool accumulate = false;
};

class MatmulTiles : public DeviceTest {
 protected:
  // y [rows + 1, n] by the tile, from `before`: one row more than is asked for.
  std::vector<float> Run(const Product& p, int32_t tile, const std::vector<float>& x,
                         const std::vector<float>& w, const std::vector<float>& bias,
                         const std::vector<float>& before) const {
    const DeviceBuffer device_x = UploadAs(ElementType::kBf16, x);
    const DeviceBuffer device_w = UploadAs(ElementType::kBf16, w);
    const DeviceBuffer device_bias = UploadAs(p.output, bias);
    const DeviceBuffer y = UploadAs(p.output, before);
    TiledMatmulArgs args;
    args.rows = p.rows;
    args.n = p.n;
    args.k = p.k;
    args.x = device_x.data();
    args.w = device_w.data();
    args.bias = p.bias ? device_bias.data() : nullptr;
    args.output = p.output;
    args.y = y.data();
    args.gelu = p.gelu;
    args.accumulate = p.accumulate;
    const absl::Status status = TiledMatmul(args, tile, stream());
    EXPECT_TRUE(status.ok()) << status;
    return DownloadAs(p.output, y);
  }
};

// Sizes within one tile of every kind and beyond it, and such as no tile and no slice divides.
const Product kProducts[] = {
    {1, 16, 16},
    {5, 48, 112, ElementType::kBf16, true},
    {17, 144, 80, ElementType::kF32, true, false, true},
    {66, 32, 48, ElementType::kBf16, true, true},
    {131, 144, 160, ElementType::kF32, true, true},
#ifndef BLOCKSERVE_CUDA_EMULATED
    {1024, 768, 3072, ElementType::kF32, true, false, true},
    {1000, 3072, 768, ElementType::kBf16, true, true},
    {70, 50304, 768},
#endif
};

// Every row of a small product is compared with the reference, of a large one as many as the host
// computes in half a second: a device is not lent for that.
int64_t RowsFromOneToTheNext(const Product& p) {
  constexpr int64_t kProductsOfTheReference = int64_t{1} << 27;
  return p.rows * p.n * p.k / kProductsOfTheReference | 1;  // odd: rows of every place in a tile
}

TEST_F(MatmulTiles, HaveTheSameBitsAsOneAnotherAndStayWithinTheErrorBound) {
  std::mt19937 random(21);
  for (const Product& p : kProducts) {
    SCOPED_TRACE(absl::StrCat(p.rows, " x ", p.k, " -> ", p.n));
    std::vector<float> x = Normal(random, p.rows * p.k);
    std::vector<float> w = Normal(random, p.n * p.k);
    std::vector<float> bias = Normal(random, p.n);
    std::vector<float> before = Normal(random, (p.rows + 1) * p.n);
    for (std::vector<float>* values : {&x, &w}) {
      for (float& value : *values) value = RoundToBf16(value);
    }
    if (p.output == ElementType::kBf16) {
      for (std::vector<float>* values : {&bias, &before}) {
        for (float& value : *values) value = RoundToBf16(value);
      }
    }
    const std::vector<float> first = Run(p, 0, x, w, bias, before);
    for (int32_t tile = 1; tile < kNumMatmulTiles; ++tile) {
      EXPECT_TRUE(SameBits(Run(p, tile, x, w, bias, before), first))
          << kMatmulTiles[tile].rows << " x " << kMatmulTiles[tile].columns;
    }
    if (!p.bias) bias.assign(p.n, 0.0f);
    for (int64_t row = 0; row < p.rows; row += RowsFromOneToTheNext(p)) {
      const std::vector<float> of_x = Rows(x, p.k, row, 1);
      const std::vector<double> expected = reference::Matmul(of_x, w, bias, 1, p.n, p.k);
      const std::vector<double> bound = reference::MatmulErrorBound(of_x, w, bias, 1, p.n, p.k);
      for (int64_t o = 0; o < p.n; ++o) {
        const int64_t i = row * p.n + o;
        double value = expected[o];
        if (p.gelu) value = value / 2 * (1 + std::erf(value / std::sqrt(2.0)));
        if (p.accumulate) value += before[i];
        const double rounding = p.output == ElementType::kBf16 ? 0x1p-8 * std::abs(value) : 0;
        // GELU's slope is below 1.13; its polynomials are within some units in the last place of
        // what they multiply, and for bfloat16 within what GeluForBf16 says.
        double margin = p.gelu ? 0.13 * bound[o] + 8 * kEpsilon * std::abs(expected[o]) : 0;
        if (p.gelu && p.output == ElementType::kBf16) margin += 0x1p-13 * std::abs(value) + 0x1p-23;
        ASSERT_NEAR(first[i], value, bound[o] + margin + rounding + 2 * kEpsilon * std::abs(value))
            << "row " << row << ", column " << o;
      }
    }
    // Rows beyond are left alone.
    EXPECT_TRUE(SameBits(absl::MakeConstSpan(first).subspan(p.rows * p.n),
                         absl::MakeConstSpan(before).subspan(p.rows * p.n)));
  }
}

// A value that is not finite stays in its own row and column.
TEST_F(MatmulTiles, KeepWhatIsNotFiniteInItsRow) {
  std::mt19937 random(22);
  const Product p{20, 48, 48};
  std::vector<float> x = Normal(random, p.rows * p.k);
  const std::vector<float> w = Normal(random, p.n * p.k);
  const std::vector<float> before((p.rows + 1) * p.n);
  const std::vector<float> bias(p.n);
  const std::vector<float> clean = Run(p, 0, x, w, bias, before);
  x[3 * p.k + 47] = std::numeric_limits<float>::infinity();
  x[7 * p.k] = std::numeric_limits<float>::quiet_NaN();
  for (int32_t tile = 0; tile < kNumMatmulTiles; ++tile) {
    const std::vector<float> y = Run(p, tile, x, w, bias, before);
    for (int64_t i = 0; i < p.rows * p.n; ++i) {
      const int64_t row = i / p.n;
      if (row == 3 || row == 7) {
        EXPECT_FALSE(std::isfinite(y[i]));
      } else {
        EXPECT_EQ(y[i], clean[i]);
      }
    }
  }
}

TEST_F(MatmulTiles, RefuseATileThatIsNone) {
  TiledMatmulArgs args;
  EXPECT_TRUE(TiledMatmul(args, 0, stream()).ok());  // no rows
  args.rows = 1;
  args.n = args.k = 16;
  for (const int32_t tile : {-1, kNumMatmulTiles}) {
    EXPECT_EQ(TiledMatmul(args, tile, stream()).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(ChooseMatmulTile, GrowsWithTheWork) {
  const auto rows_of = [](int64_t rows, int64_t n) {
    return kMatmulTiles[ChooseMatmulTile(rows, n, 132)].rows;
  };
  // Most of a larger tile would be empty, and most of the device idle.
  for (const int64_t n : {768, 2304, 3072}) EXPECT_EQ(rows_of(1, n), 16) << n;
  for (const int64_t n : {768, 2304, 3072, 50304}) {
    EXPECT_EQ(rows_of(16384, n), 128) << n;
    EXPECT_LE(rows_of(64, n), rows_of(1024, n)) << n;
  }
  // A few large tiles would leave most of the device idle.
  EXPECT_LT(rows_of(1024, 768), 128);
}

}  // namespace
}  // namespace blockserve::cuda
