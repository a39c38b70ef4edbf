#include "common/finite.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace blockserve {
namespace {

TEST(AllFinite, FindsEveryKindOfNumberThatIsNone) {
  EXPECT_TRUE(AllFinite({}));
  std::vector<float> values(37, 1.0f);
  values[3] = std::numeric_limits<float>::max();
  values[4] = std::numeric_limits<float>::lowest();
  values[5] = std::numeric_limits<float>::denorm_min();
  values[6] = -0.0f;
  EXPECT_TRUE(AllFinite(values));
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const float bad : {infinity, -infinity, nan, -nan}) {
    for (size_t i = 0; i < values.size(); ++i) {
      std::vector<float> broken = values;
      broken[i] = bad;
      EXPECT_FALSE(AllFinite(broken)) << bad << " at " << i;
    }
  }
}

}  // namespace
}  // namespace blockserve
