// Deadlines against the pace of late.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "gateway/admission_fixture.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(AdmissionTest, RefusesWhatCouldNotEndInTimeAtThePaceOfLate) {
  options_.live = {.most = 10, .batches = 0};
  options_.max_queued = 1000;
  Make();
  for (int i = 0; i < 250; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  Serve(absl::Seconds(5.5), absl::Milliseconds(10));  // ten at a time, a second each
  ASSERT_EQ(admission_->queued(), 190);
  EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 20, 1.5);
  const absl::Status refused = SubmitLong("a", 100, absl::Seconds(10));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("the deadline would pass before"));
  EXPECT_NEAR(absl::ToDoubleSeconds(*RetryAfter(refused)), 20, 1.5);
  EXPECT_TRUE(SubmitLong("a", 100, absl::Seconds(60)).ok());
  EXPECT_TRUE(SubmitLong("b", 100, absl::Seconds(5)).ok()) << "another key has its turn sooner";
  EXPECT_TRUE(SubmitLong("a", 100, absl::Seconds(5), 1).ok()) << "and so has what is urgent";
  EXPECT_FALSE(SubmitLong("b", 1000, absl::Seconds(10)).ok()) << "too long for its time";
}

TEST_F(AdmissionTest, TheWaitIsUntilARunningRequestEnds) {
  options_.live = {.most = 10, .batches = 0};
  Make();
  for (int i = 0; i < 11; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  // They began together, and end together.
  Serve(absl::Milliseconds(200), absl::Milliseconds(10));
  EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 0.8, 0.05);
  EXPECT_FALSE(SubmitLong("a", 100, absl::Seconds(2)).ok());
  Serve(absl::Milliseconds(700), absl::Milliseconds(10));
  EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 0.1, 0.05);
  EXPECT_TRUE(SubmitLong("a", 100, absl::Seconds(2)).ok());
  // While nobody writes, nobody gets nearer to his end.
  now_ += absl::Seconds(5);
  EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 5.1, 0.1);
}

TEST_F(AdmissionTest, APlaceIsWaitedForByOneAlone) {
  options_.live = {.most = 10, .batches = 0};
  Make();
  for (int i = 0; i < 15; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  Serve(absl::Milliseconds(950), absl::Milliseconds(10));
  EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 0.05, 0.01);
  // Of the ten that were about to end five do, and those that waited take their places.
  for (uint64_t id = 1; id <= 5; ++id) admission_->Finished(id, /*whole=*/true, now_);
  for (uint64_t id = 11; id <= 15; ++id) EXPECT_EQ(admission_->TakeNext(now_), id);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(SubmitLong("a", 100, absl::Seconds(2.5)).ok()) << i;
  EXPECT_FALSE(SubmitLong("a", 100, absl::Seconds(2.5)).ok()) << "the other five are taken";
}

// What runs and cannot end makes the others slower, until nothing ends in time any more.
TEST_F(AdmissionTest, NoMoreRunThanCanEndBeforeTheirDeadline) {
  options_.live = {.most = 1000, .batches = 0};
  options_.max_starting = 1000;
  Make();
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  Serve(absl::Seconds(1), absl::Milliseconds(20));  // 2 s each while 20 run
  EXPECT_FALSE(SubmitLong("a", 100, absl::Seconds(2)).ok()) << "there is room, but no time";
  EXPECT_TRUE(SubmitLong("a", 50, absl::Seconds(2)).ok()) << "it is shorter";
  int admitted = 0;
  while (SubmitLong("a", 100, absl::Seconds(4)).ok()) {
    ASSERT_TRUE(admission_->TakeNext(now_).has_value());
    ++admitted;
  }
  EXPECT_NEAR(admitted, 12, 2) << "with 32 one takes 3.2 s, and a quarter more for safety";
  EXPECT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok()) << "who has time may";
}

TEST_F(AdmissionTest, ClientsThatDoNotReadSayNothingOfThePace) {
  options_.live = {.most = 10, .batches = 0};
  Make();
  for (int i = 0; i < 11; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  Serve(absl::Milliseconds(500), absl::Milliseconds(10));
  admission_->Held(1);
  now_ += absl::Minutes(1);
  admission_->Wrote(1, 4, now_);
  admission_->Held(2);
  admission_->Finished(2, /*whole=*/false, now_);
  EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 0.5, 0.1);
}

// Else all that comes when a tier is there again would be refused.
TEST_F(AdmissionTest, WhoFindsNobodyToServeItSaysNothingOfThePace) {
  options_.live = {.most = 1000, .batches = 0};
  Make();
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  Serve(absl::Milliseconds(200), absl::Milliseconds(10));
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  while (admission_->TakeNext(now_).has_value()) continue;
  now_ += absl::Seconds(10);
  for (uint64_t id = 1; id <= 60; ++id) admission_->Failed(id, now_);
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE(SubmitLong("a", 100, absl::Seconds(20)).ok()) << i;
    ASSERT_TRUE(admission_->TakeNext(now_).has_value()) << i;
  }
}

TEST_F(AdmissionTest, AFewRunWhateverThePace) {
  Make();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  Serve(absl::Seconds(10), absl::Seconds(1));
  EXPECT_TRUE(SubmitLong("a", 100, absl::Seconds(5)).ok()) << "it may be faster by now";
}

TEST_F(AdmissionTest, UntilSomethingIsWrittenOnlyAFewStart) {
  Make();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  Serve(absl::Milliseconds(10), absl::Milliseconds(10));
  EXPECT_EQ(admission_->running_choices(), LiveLimit::kLeast);
  Serve(absl::Milliseconds(20), absl::Milliseconds(10));
  EXPECT_EQ(admission_->running_choices(), 100);
}

TEST_F(AdmissionTest, WhoseTimeHasBecomeTooShortIsGivenUpWhenItsTurnComes) {
  options_.live = {.most = 10, .batches = 0};
  Make();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(10)).ok());
  Serve(absl::Milliseconds(500), absl::Milliseconds(10));
  ASSERT_TRUE(SubmitLong("a", 100, absl::Seconds(8)).ok());
  const uint64_t waits = next_id_ - 1;
  ASSERT_TRUE(SubmitLong("a", 10, absl::Seconds(8)).ok());
  Serve(absl::Seconds(3), absl::Milliseconds(100));  // everything has become ten times slower
  EXPECT_THAT(admission_->TakeHopeless(now_), ElementsAre());
  admission_->Finished(1, /*whole=*/false, now_);
  EXPECT_EQ(admission_->TakeNext(now_), waits + 1) << "it is short";
  EXPECT_THAT(admission_->TakeHopeless(now_), ElementsAre(waits)) << "of 5 s left it needs 10";
  EXPECT_EQ(admission_->queued(), 0);
}

TEST_F(AdmissionTest, ThePaceOfIdleTimesIsNoPace) {
  options_.max_starting = 1;
  Make();
  for (uint64_t id = 1; id <= 50; ++id) {  // one a minute, all served at once
    ASSERT_TRUE(Submit("a").ok());
    ASSERT_EQ(admission_->TakeNext(now_), id);
    admission_->Started(id);
    admission_->Finished(id, /*whole=*/true, now_);
    now_ += absl::Minutes(1);
  }
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(Submit("a", 2, 100, absl::Seconds(5)).ok());
    admission_->TakeNext(now_);
  }
}

TEST_F(AdmissionTest, DeadlinesHoldInTheQueueToo) {
  options_.max_starting = 1;
  Make();
  Fill();
  ASSERT_TRUE(Submit("a", 2, 100, absl::Seconds(2)).ok());
  ASSERT_TRUE(Submit("a", 2, 100, absl::Seconds(60)).ok());
  now_ += absl::Milliseconds(1700);
  EXPECT_THAT(admission_->TakeHopeless(now_), ElementsAre());
  now_ += absl::Milliseconds(100);
  EXPECT_THAT(admission_->TakeHopeless(now_), ElementsAre(2u)) << "200 ms before its end";
  EXPECT_EQ(admission_->queued(), 1);
  EXPECT_EQ(Next(), 3u);
  EXPECT_EQ(Submit("a", 2, 100, absl::ZeroDuration()).code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(AdmissionTest, ARequestThatCannotRunToItsEndAnyMoreIsGivenUpEarly) {
  options_.live = {.most = 10, .batches = 0};
  Make();
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(SubmitLong("a", 1000, absl::Minutes(10)).ok());
  Serve(absl::Seconds(38), absl::Milliseconds(40));  // 40 s each
  ASSERT_TRUE(SubmitLong("a", 90, absl::Seconds(10)).ok());
  const uint64_t waits = next_id_ - 1;
  now_ += absl::Seconds(4.5);
  EXPECT_THAT(admission_->TakeHopeless(now_), ElementsAre());
  now_ += absl::Seconds(1);
  EXPECT_THAT(admission_->TakeHopeless(now_), ElementsAre(waits))
      << "4.5 s are left, of 4.5 to take";
}

}  // namespace
}  // namespace blockserve
