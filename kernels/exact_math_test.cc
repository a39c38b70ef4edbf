#include "kernels/exact_math.h"

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "common/bf16.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(ExactMath, LogAndExpAreWithinTwoUnitsInTheLastPlace) {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> exponents(-300, 300);
  for (int i = 0; i < 20000; ++i) {
    const double x = exponents(random);
    const double e = std::exp(x);
    EXPECT_NEAR(ExactExp(x) / e, 1.0, 2 * 0x1p-52) << x;
    EXPECT_NEAR(ExactLog(e), std::log(e), 2 * 0x1p-52 * std::abs(std::log(e))) << e;
  }
  EXPECT_EQ(ExactLog(1.0), 0.0);
  EXPECT_EQ(ExactExp(0.0), 1.0);
}

TEST(ExactMath, SineAndCosineOfLargeAngles) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> angles(-1e6, 1e6);
  for (int i = 0; i < 20000; ++i) {
    const double x = angles(random) / (i % 2 == 0 ? 1 : 1e5);
    double sine;
    double cosine;
    ExactSinCos(x, &sine, &cosine);
    EXPECT_NEAR(sine, std::sin(x), 1e-15) << x;
    EXPECT_NEAR(cosine, std::cos(x), 1e-15) << x;
  }
}

// Bits that any machine must give: rotary tables and log-probabilities are built on them.
TEST(ExactMath, BitsAreTheSameEverywhere) {
  double sine;
  double cosine;
  ExactSinCos(1234.5, &sine, &cosine);
  EXPECT_EQ(sine, 0x1.29c531dfd031bp-3) << std::hexfloat << sine;
  EXPECT_EQ(cosine, -0x1.fa8f2ceb78372p-1) << std::hexfloat << cosine;
  EXPECT_EQ(ExactLog(10.0), 0x1.26bb1bbb55516p+1) << std::hexfloat << ExactLog(10.0);
  EXPECT_EQ(ExactExp(-2.25), 0x1.afb718e8457f7p-4) << std::hexfloat << ExactExp(-2.25);
}

TEST(Bf16, RoundsToNearestEven) {
  EXPECT_EQ(Bf16FromFloat(1.0f), 0x3f80);
  EXPECT_EQ(Bf16FromFloat(1.0f + 0x1p-8f), 0x3f80);            // tie, to even
  EXPECT_EQ(Bf16FromFloat(1.0f + 0x1p-7f + 0x1p-8f), 0x3f82);  // tie, to even
  EXPECT_EQ(Bf16FromFloat(1.0f + 0x1p-8f + 0x1p-20f), 0x3f81);
  EXPECT_EQ(Bf16FromFloat(-INFINITY), 0xff80);
  EXPECT_TRUE(std::isnan(FloatFromBf16(Bf16FromFloat(std::nanf("1")))));
  for (uint32_t bits = 0; bits < 0x7f80; ++bits) {
    EXPECT_EQ(Bf16FromFloat(FloatFromBf16(static_cast<uint16_t>(bits))), bits);
  }
}

TEST(Bf16, ManyAreConvertedAsEachIs) {
  std::vector<float> values(37);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = std::bit_cast<float>(static_cast<uint32_t>(i * 2654435761u));
  }
  values[3] = std::numeric_limits<float>::quiet_NaN();
  values[36] = -std::numeric_limits<float>::infinity();
  for (const size_t count : {size_t{37}, size_t{16}, size_t{5}}) {
    std::vector<uint16_t> rounded(count + 1, 7);
    Bf16FromFloats(values.data(), static_cast<int64_t>(count), rounded.data());
    std::vector<float> back(count + 1, 7.0f);
    FloatsFromBf16(rounded.data(), static_cast<int64_t>(count), back.data());
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(rounded[i], Bf16FromFloat(values[i])) << i;
      EXPECT_EQ(std::bit_cast<uint32_t>(back[i]),
                std::bit_cast<uint32_t>(FloatFromBf16(rounded[i])));
    }
    EXPECT_EQ(rounded[count], 7);
    EXPECT_EQ(back[count], 7.0f);
  }
}

TEST(F16, ReadsNormalsSubnormalsAndInfinities) {
  EXPECT_EQ(FloatFromF16(0x3c00), 1.0f);
  EXPECT_EQ(FloatFromF16(0xc000), -2.0f);
  EXPECT_EQ(FloatFromF16(0x7bff), 65504.0f);
  EXPECT_EQ(FloatFromF16(0x0001), 0x1p-24f);
  EXPECT_EQ(FloatFromF16(0x83ff), -1023 * 0x1p-24f);
  EXPECT_EQ(FloatFromF16(0x7c00), INFINITY);
  EXPECT_TRUE(std::isnan(FloatFromF16(0x7e00)));
}

}  // namespace
}  // namespace blockserve
