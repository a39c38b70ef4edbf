// What a key may have, and what operators may say of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "gateway/admission_fixture.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

TEST_F(AdmissionTest, LimitsRequestsInFlightByKey) {
  options_.limits["small"].max_requests = 2;
  Make();
  ASSERT_TRUE(Submit("small").ok());
  ASSERT_TRUE(admission_->TakeNext(now_).has_value());
  ASSERT_TRUE(Submit("small").ok());
  const absl::Status refused = Submit("small");
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("key 'small': 2 requests are in flight"));
  EXPECT_TRUE(RetryAfter(refused).has_value());
  EXPECT_TRUE(IsOfKeyLimit(refused));
  EXPECT_TRUE(Submit("other").ok()) << "each key has its own";
  admission_->Finished(1, /*whole=*/true, now_);
  EXPECT_TRUE(Submit("small").ok());
}

TEST_F(AdmissionTest, LimitsThatComeWithTheKeyWinAndMayChangeWhileItRuns) {
  options_.limits["small"].max_requests = 5;
  int32_t most = 1;
  options_.limits_of = [&](const std::string& key, KeyLimits& limits) {
    if (key == "small" && most > 0) limits.max_requests = most;
  };
  Make();
  ASSERT_TRUE(Submit("small").ok());
  EXPECT_EQ(Submit("small").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Submit("other").ok());
  most = 2;
  EXPECT_TRUE(Submit("small").ok());
  EXPECT_EQ(Submit("small").code(), absl::StatusCode::kResourceExhausted);
  most = 0;  // the key itself says nothing any more
  for (int i = 2; i < 5; ++i) EXPECT_TRUE(Submit("small").ok()) << i;
  EXPECT_EQ(Submit("small").code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(AdmissionTest, LimitsTokensInFlightByKey) {
  options_.default_limits.max_tokens = 1000;
  Make();
  ASSERT_TRUE(Submit("a", 2, 600).ok());
  const absl::Status later = Submit("a", 2, 600);
  EXPECT_TRUE(RetryAfter(later).has_value()) << later;
  EXPECT_TRUE(IsOfKeyLimit(later));
  const absl::Status never = Submit("a", 2, 1001);
  EXPECT_EQ(never.code(), absl::StatusCode::kInvalidArgument) << never;
  EXPECT_TRUE(Submit("a", 2, 400).ok());
  admission_->Finished(1, /*whole=*/true, now_);
  EXPECT_TRUE(Submit("a", 2, 600).ok());
}

TEST_F(AdmissionTest, NamesTheFieldThatTakesTooManyTokens) {
  options_.default_limits.max_tokens = 1000;
  Make();
  const auto refusal = [this](AdmissionRequest request) {
    return std::string(admission_->Submit(1, request, now_).message());
  };
  AdmissionRequest request{"a", 2, /*tokens=*/1100, /*choices=*/2, now_ + absl::Minutes(1)};
  request.length = 100;
  EXPECT_THAT(refusal(request), testing::StartsWith("stop.max_tokens: "));
  request.length = 10;
  EXPECT_THAT(refusal(request), testing::StartsWith("prompt: "));
  request.scores = true;
  EXPECT_THAT(refusal(request), testing::StartsWith("continuation: "));
}

TEST_F(AdmissionTest, LimitsTheRateByKeyAndTellsWhenTheNextIsDue) {
  options_.limits["a"].requests_per_second = 2;
  options_.limits["a"].burst = 3;
  Make();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Submit("a").ok()) << i;
  const absl::Status refused = Submit("a");
  EXPECT_THAT(std::string(refused.message()), HasSubstr("more than 2 requests in a second"));
  EXPECT_TRUE(IsOfKeyLimit(refused));
  // What is over does not give the rate back.
  for (uint64_t id = 1; id <= 3; ++id) admission_->Finished(id, /*whole=*/true, now_);
  EXPECT_FALSE(Submit("a").ok());
  now_ += absl::Milliseconds(500);
  EXPECT_TRUE(Submit("a").ok());
  EXPECT_FALSE(Submit("a").ok());
  now_ += absl::Hours(1);
  int accepted = 0;
  for (int i = 0; i < 10; ++i) accepted += Submit("a").ok() ? 1 : 0;
  EXPECT_EQ(accepted, 3) << "no more than the burst is saved up";
}

TEST_F(AdmissionTest, TakesOfTheRateWhatIsNotSubmitted) {
  options_.limits["a"].requests_per_second = 2;
  options_.limits["a"].burst = 3;
  Make();
  EXPECT_TRUE(admission_->CheckRate("a", now_).ok());
  for (int i = 0; i < 3; ++i) admission_->Charge("a", now_);
  const absl::Status refused = admission_->CheckRate("a", now_);
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_TRUE(RetryAfter(refused).has_value());
  EXPECT_FALSE(Submit("a").ok());
  // What came beside one another, beyond the rate, is waited for.
  for (int i = 0; i < 5; ++i) admission_->Charge("a", now_);
  EXPECT_EQ(RetryAfter(admission_->CheckRate("a", now_)), absl::Seconds(3));
  now_ += absl::Seconds(3);
  EXPECT_TRUE(admission_->CheckRate("a", now_).ok());
  EXPECT_TRUE(admission_->CheckRate("a", now_).ok()) << "to ask takes nothing";
  EXPECT_TRUE(Submit("a").ok());
  EXPECT_FALSE(Submit("a").ok());
  for (int i = 0; i < 100; ++i) admission_->Charge("b", now_);
  EXPECT_TRUE(admission_->CheckRate("b", now_).ok()) << "it has no limit";
}

TEST_F(AdmissionTest, ACallOfSeveralPromptsCountsOnceForTheRateAndMustFitInFlight) {
  options_.limits["a"].requests_per_second = 1;
  options_.limits["a"].max_requests = 3;
  Make();
  const auto submit = [this](uint64_t id, int32_t prompts, bool first) {
    AdmissionRequest request{"a", 2, 10, 1, now_ + absl::Minutes(1)};
    request.prompts_of_call = prompts;
    request.first_of_call = first;
    return admission_->Submit(id, request, now_);
  };
  const absl::Status never = submit(100, 4, true);
  EXPECT_EQ(never.code(), absl::StatusCode::kInvalidArgument) << never;
  EXPECT_THAT(std::string(never.message()), testing::StartsWith("prompts_of_call: 4 requests"));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(submit(101 + i, 3, i == 0).ok()) << i;
  for (int i = 0; i < 3; ++i) admission_->Finished(101 + i, /*whole=*/true, now_);
  EXPECT_EQ(submit(110, 1, true).code(), absl::StatusCode::kResourceExhausted);
}

TEST(AdmissionOptionsTest, NamesWhatIsWrong) {
  AdmissionOptions options;
  options.max_starting = 0;
  EXPECT_THAT(std::string(options.Validate().message()), HasSubstr("--max-starting-requests"));
  options = {};
  options.limits["a"].weight = 0;
  EXPECT_THAT(std::string(options.Validate().message()), HasSubstr("key 'a': weight"));
  options = {};
  options.limits[""].requests_per_second = -1;
  EXPECT_THAT(std::string(options.Validate().message()),
              HasSubstr("requests without a key: requests_per_second"));
}

}  // namespace
}  // namespace blockserve
