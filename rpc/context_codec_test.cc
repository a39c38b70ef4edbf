#include "rpc/context_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace blockserve {
namespace {

std::vector<float> RoundTrip(const std::vector<float>& values, v1::ContextType type) {
  std::string bytes;
  AppendContexts(values, type, bytes);
  EXPECT_EQ(bytes.size(), values.size() * ContextValueBytes(type));
  std::vector<float> back(values.size());
  EXPECT_TRUE(DecodeContexts(bytes, type, absl::MakeSpan(back)).ok());
  return back;
}

TEST(ContextCodec, Float32KeepsEveryBit) {
  const std::vector<float> values = {
      0.0f, -0.0f, 1.0f, 3.1415927f, 1e-42f, -3.4e38f, std::numeric_limits<float>::infinity()};
  const std::vector<float> back = RoundTrip(values, v1::CONTEXT_TYPE_FLOAT32);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(values[i])) << i;
  }
}

TEST(ContextCodec, Bfloat16KeepsValuesThatAreBfloat16) {
  for (uint32_t upper = 0; upper < 0x10000u; ++upper) {
    const float value = std::bit_cast<float>(upper << 16);
    if (std::isnan(value)) continue;
    const std::vector<float> back = RoundTrip({value}, v1::CONTEXT_TYPE_BFLOAT16);
    ASSERT_EQ(std::bit_cast<uint32_t>(back[0]), upper << 16);
  }
}

TEST(ContextCodec, Bfloat16RoundsToNearestWithTiesToEven) {
  const auto rounded = [](uint32_t bits) {
    return std::bit_cast<uint32_t>(
        RoundTrip({std::bit_cast<float>(bits)}, v1::CONTEXT_TYPE_BFLOAT16)[0]);
  };
  EXPECT_EQ(rounded(0x3f808000u), 0x3f800000u);  // tie: the even one below
  EXPECT_EQ(rounded(0x3f818000u), 0x3f820000u);  // tie: the even one above
  EXPECT_EQ(rounded(0x3f808001u), 0x3f810000u);
  EXPECT_EQ(rounded(0x3f807fffu), 0x3f800000u);
  EXPECT_EQ(rounded(0x7f7fffffu), 0x7f800000u);  // beyond the largest: infinity
}

TEST(ContextCodec, Bfloat16KeepsNaN) {
  const std::vector<float> back =
      RoundTrip({std::bit_cast<float>(0x7f800001u), std::numeric_limits<float>::quiet_NaN()},
                v1::CONTEXT_TYPE_BFLOAT16);
  EXPECT_TRUE(std::isnan(back[0]));
  EXPECT_TRUE(std::isnan(back[1]));
}

// They are coded in groups, of which the last one may be short.
TEST(ContextCodec, KeepsEveryValueOfARowOfAnyLength) {
  for (const v1::ContextType type : {v1::CONTEXT_TYPE_FLOAT32, v1::CONTEXT_TYPE_BFLOAT16}) {
    for (const size_t size : {0, 1, 63, 64, 65, 128, 200}) {
      std::vector<float> values(size);
      for (size_t i = 0; i < size; ++i) values[i] = static_cast<float>(i) - 100.0f;
      EXPECT_EQ(RoundTrip(values, type), values) << size;
    }
  }
}

TEST(ContextCodec, AppendsBehindWhatIsThere) {
  std::string bytes = "ab";
  AppendContexts({1.0f}, v1::CONTEXT_TYPE_BFLOAT16, bytes);
  EXPECT_EQ(bytes, std::string("ab\x80\x3f", 4));
}

TEST(ContextCodec, RefusesWrongSizesAndUnknownTypes) {
  std::vector<float> two(2);
  for (const size_t size : {size_t{0}, size_t{4}, size_t{7}, size_t{9}}) {
    const absl::Status status =
        DecodeContexts(std::string(size, 'x'), v1::CONTEXT_TYPE_FLOAT32, absl::MakeSpan(two));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << size;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("contexts"));
  }
  EXPECT_FALSE(
      DecodeContexts(std::string(8, 'x'), v1::CONTEXT_TYPE_BFLOAT16, absl::MakeSpan(two)).ok());
  const absl::Status status =
      DecodeContexts("", static_cast<v1::ContextType>(17), absl::MakeSpan(two));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("context_type is 17"));
}

}  // namespace
}  // namespace blockserve
