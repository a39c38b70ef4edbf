#include "kernels/cuda/row_kernels.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cuda/device_test_util.h"
#include "kernels/reference.h"

namespace blockserve::cuda {
namespace {

using RowKernels = DeviceTypeTest;

constexpr float kUntouched = -7.0f;

TEST_P(RowKernels, LayerNormMatchesTheReferenceAndSharesItsStatistics) {
  std::mt19937 random(1);
  for (const int64_t width : {1, 5, 16, 48, 100, 129, 768, 1023, 1026, 2050}) {
    SCOPED_TRACE(absl::StrCat("width ", width));
    const int64_t rows = 5;
    const int64_t stride = PadElements(width);
    std::vector<float> x = Normal(random, rows * stride, 3.0f);
    for (float& value : x) value += 5.0f;
    const std::vector<float> weight = Normal(random, width);
    const std::vector<float> bias = Normal(random, width);
    const DeviceBuffer device_x = Upload(x);
    const DeviceBuffer device_weight = Upload(weight);
    const DeviceBuffer device_bias = Upload(bias);
    const std::vector<float> untouched(rows * stride, kUntouched);
    const DeviceBuffer first = UploadAs(type(), untouched);
    const DeviceBuffer second = UploadAs(type(), untouched);
    LayerNormArgs args;
    args.rows = rows;
    args.width = width;
    args.epsilon = 1e-5f;
    args.x = device_x.as<float>();
    args.x_stride = stride;
    args.type = type();
    args.outputs[0] = {device_weight.as<float>(), device_bias.as<float>(), first.data(), stride};
    args.outputs[1] = {device_bias.as<float>(), device_weight.as<float>(), second.data(), stride};
    ASSERT_TRUE(LayerNorm(args, stream()).ok());
    const std::vector<float> actual[2] = {DownloadAs(type(), first), DownloadAs(type(), second)};
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = absl::MakeConstSpan(x).subspan(r * stride, width);
      const std::vector<double> expected[2] = {reference::LayerNorm(row, weight, bias, 1e-5f),
                                               reference::LayerNorm(row, bias, weight, 1e-5f)};
      for (int64_t i = 0; i < width; ++i) {
        // Values of magnitude 10 lose a few units when the mean is taken off.
        const double tolerance =
            64 * kEpsilon * (1 + std::abs(expected[0][i]) + std::abs(expected[1][i]));
        for (int o = 0; o < 2; ++o) {
          EXPECT_NEAR(actual[o][r * stride + i], expected[o][i],
                      tolerance + StorageError(expected[o][i]));
        }
      }
      for (int64_t i = width; i < stride; ++i) {
        EXPECT_EQ(actual[0][r * stride + i], kUntouched) << "padding";
      }
    }

    // The last row by itself, and in place where the types allow it.
    const DeviceBuffer alone = UploadAs(type(), std::vector<float>(stride, kUntouched));
    args.rows = 1;
    args.x = device_x.as<float>() + (rows - 1) * stride;
    args.outputs[0].y = alone.data();
    args.outputs[1].y = nullptr;
    ASSERT_TRUE(LayerNorm(args, stream()).ok());
    EXPECT_TRUE(SameBits(DownloadAs(type(), alone), Rows(actual[0], stride, rows - 1, 1)));
    if (bf16()) continue;
    args.rows = rows;
    args.x = device_x.as<float>();
    args.outputs[0].y = device_x.data();
    ASSERT_TRUE(LayerNorm(args, stream()).ok());
    const std::vector<float> in_place = Download<float>(device_x);
    for (int64_t r = 0; r < rows; ++r) {
      EXPECT_TRUE(SameBits(absl::MakeConstSpan(in_place).subspan(r * stride, width),
                           absl::MakeConstSpan(actual[0]).subspan(r * stride, width)));
    }
  }
}

TEST_P(RowKernels, GeluIsTheExactOneWithinUnits) {
  std::vector<float> x;
  for (float value = -7.0f; value < 7.0f; value += 0.01171875f) x.push_back(Stored(value));
  x.resize(x.size() / 8 * 8);
  const DeviceBuffer y = UploadAs(type(), x);
  ASSERT_TRUE(Gelu(type(), y.data(), static_cast<int64_t>(x.size()), stream()).ok());
  const std::vector<float> actual = DownloadAs(type(), y);
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = reference::Gelu(x[i]);
    // 1 + erf loses what erf has beyond the units of 1; for bfloat16 GeluForBf16 is enough.
    const double error =
        bf16() ? 0x1p-13 * std::abs(expected) + 0x1p-23 : 4 * kEpsilon * std::abs(x[i]) + 1e-38;
    EXPECT_NEAR(actual[i], expected, error + StorageError(expected)) << x[i];
  }
}

using Float32Kernels = DeviceTest;

TEST_F(Float32Kernels, GeluHasTheBitsOfTheCpuKernels) {
  std::vector<float> x;
  for (float value = -9.0f; value < 9.0f; value += 0.00317f) x.push_back(value);
  x.resize(x.size() / 16 * 16);
  const DeviceBuffer y = Upload(x);
  ASSERT_TRUE(Gelu(ElementType::kF32, y.data(), static_cast<int64_t>(x.size()), stream()).ok());
  std::vector<float> expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) expected[i] = x[i] * 0.70710678118654752f;
  const CpuKernels& kernels = GetCpuKernels(SupportedKernelTargets().front());
  kernels.erf_in_place(expected.data(), static_cast<int64_t>(expected.size()));
  for (size_t i = 0; i < x.size(); ++i) expected[i] = x[i] * 0.5f * (1.0f + expected[i]);
  EXPECT_TRUE(SameBits(Download<float>(y), expected));
}

TEST_P(RowKernels, BlocksAreEmbeddedEndToEndOrAdded) {
  std::mt19937 random(2);
  const int64_t vocab = 11;
  const int64_t width = 6;
  const int64_t table_stride = 8;
  const int32_t length = 3;
  const int64_t rows = 4;
  const std::vector<float> table = Stored(Normal(random, vocab * table_stride));
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < rows * length; ++i) {
    tokens.push_back(static_cast<int32_t>(i * 7 % vocab));
  }
  const DeviceBuffer device_table = UploadAs(type(), table);
  const DeviceBuffer device_tokens = Upload(tokens);
  for (const BlockEmbedding kind : {BlockEmbedding::kConcat, BlockEmbedding::kSum}) {
    for (const ElementType y_type : {ElementType::kF32, ElementType::kBf16}) {
      const int64_t stride = 32;
      const DeviceBuffer y = UploadAs(y_type, std::vector<float>(rows * stride, kUntouched));
      EmbedBlocksArgs args;
      args.kind = kind;
      args.rows = rows;
      args.block_length = length;
      args.tokens = device_tokens.as<int32_t>();
      args.type = type();
      args.table = device_table.data();
      args.table_stride = table_stride;
      args.width = width;
      args.y_type = y_type;
      args.y = y.data();
      args.y_stride = stride;
      ASSERT_TRUE(EmbedBlocks(args, stream()).ok());
      const std::vector<float> actual = DownloadAs(y_type, y);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < stride; ++i) {
          float expected = 0.0f;
          if (kind == BlockEmbedding::kConcat && i < width * length) {
            expected = table[tokens[r * length + i / width] * table_stride + i % width];
          } else if (kind == BlockEmbedding::kSum && i < width) {
            for (int32_t j = 0; j < length; ++j) {
              expected += table[tokens[r * length + j] * table_stride + i];
            }
          }
          if (y_type == ElementType::kBf16) expected = RoundToBf16(expected);
          EXPECT_EQ(actual[r * stride + i], expected) << "row " << r << ", " << i;
        }
      }
    }
  }
}

TEST_P(RowKernels, TokensAreEmbeddedAndAddedToVectors) {
  std::mt19937 random(3);
  const int64_t width = 21;
  const int64_t stride = 32;
  const int64_t rows = 5;
  const int64_t length = 4;
  const std::vector<float> table = Stored(Normal(random, 9 * width));
  const std::vector<float> vectors = Normal(random, rows * 2 * stride);
  const std::vector<int32_t> tokens = {1, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 3, 0, 0, 0};
  const DeviceBuffer device_table = UploadAs(type(), table);
  const DeviceBuffer device_vectors = Upload(vectors);
  const DeviceBuffer device_tokens = Upload(tokens);
  for (const bool with_vectors : {false, true}) {
    for (const int32_t token : {-1, 0, 4}) {  // 0: from the array
      const DeviceBuffer x = Upload(std::vector<float>(rows * stride, kUntouched));
      EmbedTokensArgs args;
      args.rows = rows;
      args.width = width;
      // The second of two vectors of each row.
      args.vectors = with_vectors ? device_vectors.as<float>() + stride : nullptr;
      args.vectors_stride = 2 * stride;
      args.tokens = token == 0 ? device_tokens.as<int32_t>() : nullptr;
      args.tokens_stride = length;
      args.token = token;
      args.type = type();
      args.table = device_table.data();
      args.table_stride = width;
      args.x = x.as<float>();
      args.x_stride = stride;
      ASSERT_TRUE(EmbedTokens(args, stream()).ok());
      const std::vector<float> actual = Download<float>(x);
      for (int64_t r = 0; r < rows; ++r) {
        const int32_t id = token == 0 ? tokens[r * length] : token;
        for (int64_t i = 0; i < stride; ++i) {
          float expected = 0.0f;
          if (i < width) {
            if (with_vectors) expected = vectors[(2 * r + 1) * stride + i];
            if (id >= 0) expected += table[id * width + i];
          }
          EXPECT_EQ(actual[r * stride + i], expected) << "row " << r << ", " << i;
        }
      }
    }
  }
}

TEST_P(RowKernels, RowsAreGatheredByIndex) {
  std::mt19937 random(4);
  const int64_t width = 24;
  const std::vector<float> from = Stored(Normal(random, 6 * width));
  const std::vector<int32_t> indices = {5, 0, -1, 3};
  const DeviceBuffer device_from = UploadAs(type(), from);
  const DeviceBuffer device_indices = Upload(indices);
  const DeviceBuffer to = UploadAs(type(), std::vector<float>(indices.size() * width, kUntouched));
  GatherRowsArgs args;
  args.rows = static_cast<int64_t>(indices.size());
  args.indices = device_indices.as<int32_t>();
  args.from = device_from.data();
  args.from_stride_bytes = width * ElementBytes(type());
  args.to = to.data();
  args.to_stride_bytes = args.from_stride_bytes;
  args.row_bytes = args.from_stride_bytes;
  ASSERT_TRUE(GatherRows(args, stream()).ok());
  const std::vector<float> actual = DownloadAs(type(), to);
  for (size_t r = 0; r < indices.size(); ++r) {
    const std::vector<float> expected =
        indices[r] < 0 ? std::vector<float>(width, kUntouched) : Rows(from, width, indices[r], 1);
    EXPECT_EQ(Rows(actual, width, static_cast<int64_t>(r), 1), expected);
  }
}

TEST_P(RowKernels, NoRowsIsNoWorkAndBadArgumentsAreRefused) {
  LayerNormArgs args;
  args.width = 16;
  args.x_stride = 16;
  EXPECT_TRUE(LayerNorm(args, stream()).ok());
  args.x_stride = 18;
  EXPECT_EQ(LayerNorm(args, stream()).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(Gelu(type(), nullptr, 0, stream()).ok());
  EXPECT_EQ(Gelu(type(), nullptr, 12, stream()).code(), absl::StatusCode::kInvalidArgument);
}

BLOCKSERVE_OVER_ELEMENT_TYPES(RowKernels);

}  // namespace
}  // namespace blockserve::cuda
