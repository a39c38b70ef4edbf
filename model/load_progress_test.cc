#include "model/load_progress.h"

#include "gtest/gtest.h"

namespace blockserve {
namespace {

TEST(LoadProgress, TellsNowAndThenHowMuchIsPacked) {
  const LoadProgress::TimePoint start;
  LoadProgress progress("the token decoder", 4'000'000'000, start);
  EXPECT_EQ(progress.Add(1'000'000'000, start + std::chrono::seconds(1)), "");
  EXPECT_EQ(progress.Add(1'000'000'000, start + std::chrono::seconds(2)),
            "loading the token decoder: 50 % of 4.0 GB");
  EXPECT_EQ(progress.Add(1'000'000'000, start + std::chrono::seconds(3)), "");
  EXPECT_EQ(progress.Add(1'000'000'000, start + std::chrono::seconds(4)),
            "loading the token decoder: 100 % of 4.0 GB");
}

TEST(LoadProgress, TotalIsThatOfTheTiersTensors) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint =
      Checkpoint::Open("tests/golden/concat_l4");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  int64_t all = 0;
  for (const RequiredTensor& tensor : RequiredTensors((*checkpoint)->config())) {
    all += static_cast<int64_t>((*checkpoint)->Find(tensor.name)->data.size());
  }
  const int64_t block = StoredBytes(**checkpoint, CheckpointPart::kBlock);
  const int64_t token = StoredBytes(**checkpoint, CheckpointPart::kToken);
  EXPECT_GT(block, 0);
  EXPECT_GT(token, 0);
  EXPECT_EQ(block + token, all);
}

}  // namespace
}  // namespace blockserve
