#include "block_service/last_row.h"

#include <memory>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// The results of a step of two rows of two values.
std::shared_ptr<float[]> Results(float first) {
  const auto results = std::make_shared<float[]>(4);
  for (int i = 0; i < 4; ++i) results[static_cast<size_t>(i)] = first + static_cast<float>(i);
  return results;
}

TEST(LastRow, IsNotKnownBeforeItIsKept) { EXPECT_THAT(LastRow().values(), IsEmpty()); }

TEST(LastRow, LiesInTheResultsOfItsStepAsLongAsTheyAreKept) {
  RecentSteps recent(2);
  LastRow row;
  const std::shared_ptr<float[]> results = Results(1);
  recent.Add(results);
  recent.Keep({results.get() + 2, 2}, row);
  recent.Add(Results(10));
  EXPECT_EQ(row.values().data(), results.get() + 2);
}

TEST(LastRow, IsCopiedWhenTheResultsOfItsStepAreGivenUp) {
  RecentSteps recent(2);
  LastRow row, other;
  std::shared_ptr<float[]> results = Results(1);
  const std::weak_ptr<float[]> watch = results;
  recent.Add(results);
  recent.Keep({results.get(), 2}, row);
  recent.Keep({results.get() + 2, 2}, other);
  results.reset();
  recent.Add(Results(10));
  EXPECT_FALSE(watch.expired());
  recent.Add(Results(20));
  EXPECT_TRUE(watch.expired());
  for (int i = 0; i < 5; ++i) recent.Add(Results(30));
  EXPECT_THAT(row.values(), ElementsAre(1, 2));
  EXPECT_THAT(other.values(), ElementsAre(3, 4));
}

TEST(LastRow, IsThatOfTheLastStepThatWasKept) {
  RecentSteps recent(2);
  LastRow row;
  for (int step = 0; step < 6; ++step) {
    const std::shared_ptr<float[]> results = Results(static_cast<float>(10 * step));
    recent.Add(results);
    if (step % 3 != 0) continue;
    recent.Keep({results.get(), 2}, row);
  }
  EXPECT_THAT(row.values(), ElementsAre(30, 31));
}

TEST(LastRow, OneThatIsGoneIsNotCopied) {
  RecentSteps recent(1);
  auto gone = std::make_unique<LastRow>();
  LastRow stays, cleared, assigned;
  const std::shared_ptr<float[]> results = Results(1);
  recent.Add(results);
  for (LastRow* row : {gone.get(), &stays, &cleared, &assigned}) {
    recent.Keep({results.get(), 2}, *row);
  }
  gone.reset();
  cleared.Clear();
  assigned.Assign(std::vector<float>{7, 8});
  recent.Add(Results(10));
  EXPECT_THAT(stays.values(), ElementsAre(1, 2));
  EXPECT_THAT(cleared.values(), IsEmpty());
  EXPECT_THAT(assigned.values(), ElementsAre(7, 8));
}

}  // namespace
}  // namespace blockserve
