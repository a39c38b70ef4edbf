#include "gateway/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AdmissionTest : public ::testing::Test {
 protected:
  void Make() { admission_ = std::make_unique<Admission>(options_); }
  // Returns what Submit said; the request's id is next_id_ - 1 afterwards.
  absl::Status Submit(const std::string& key = "", uint32_t priority = 2, int64_t tokens = 100,
                      absl::Duration time = absl::Minutes(10)) {
    keys_[next_id_] = key;
    return admission_->Submit(next_id_++, {key, priority, tokens, /*choices=*/1, now_ + time},
                              now_);
  }
  // Fills the places between queue and first block, so that what follows waits.
  void Fill() {
    for (int i = 0; i < options_.max_starting; ++i) {
      ASSERT_TRUE(Submit("filler").ok());
      ASSERT_TRUE(admission_->TakeNext(now_).has_value());
      fillers_.push_back(next_id_ - 1);
    }
  }
  // Starts the oldest of those that are starting, and takes the next.
  std::optional<uint64_t> Next() {
    admission_->Started(fillers_.front(), now_);
    fillers_.erase(fillers_.begin());
    const std::optional<uint64_t> next = admission_->TakeNext(now_);
    if (next.has_value()) fillers_.push_back(*next);
    return next;
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  AdmissionOptions options_;
  std::unique_ptr<Admission> admission_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, std::string> keys_;
  std::vector<uint64_t> fillers_;
};

TEST_F(AdmissionTest, StartsRequestsAtOnceWhileThereIsRoom) {
  options_.max_starting = 2;
  Make();
  ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(admission_->TakeNext(now_), 1u);
  ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(admission_->TakeNext(now_), 2u);
  ASSERT_TRUE(Submit().ok());
  EXPECT_EQ(admission_->TakeNext(now_), std::nullopt) << "two are starting";
  EXPECT_EQ(admission_->queued(), 1);
  admission_->Started(1, now_);
  EXPECT_EQ(admission_->TakeNext(now_), 3u);
}

TEST_F(AdmissionTest, ChoicesOfRunningRequestsAreBounded) {
  options_.live.most = 3;
  Make();
  ASSERT_TRUE(Submit().ok());
  EXPECT_TRUE(admission_->TakeNext(now_).has_value());
  ASSERT_TRUE(admission_->Submit(50, {"", 2, 10, 3, now_ + absl::Minutes(1)}, now_).ok());
  EXPECT_EQ(admission_->TakeNext(now_), std::nullopt);
  admission_->Finished(1, now_);
  EXPECT_EQ(admission_->TakeNext(now_), 50u);
  const absl::Status too_many =
      admission_->Submit(51, {"", 2, 10, 4, now_ + absl::Minutes(1)}, now_);
  EXPECT_EQ(too_many.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfter(too_many), std::nullopt) << "it would never fit";
}

TEST_F(AdmissionTest, RefusesAtOnceWhenTheQueueIsFullAndTellsWhenToComeAgain) {
  options_.max_starting = 1;
  options_.max_queued = 4;
  Make();
  Fill();
  int accepted = 0;
  absl::Status refusal;
  for (int i = 0; i < 100; ++i) {
    const absl::Status status = Submit(absl::StrCat("key", i));
    if (status.ok()) {
      ++accepted;
    } else {
      refusal = status;
    }
  }
  EXPECT_EQ(accepted, 4);
  EXPECT_EQ(admission_->queued(), 4);
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(RetryAfter(refusal).has_value());
  EXPECT_GE(*RetryAfter(refusal), absl::Seconds(1));
}

TEST_F(AdmissionTest, OneKeyCannotFillTheQueueAlone) {
  options_.max_starting = 1;
  options_.max_queued = 100;
  Make();
  Fill();
  int greedy = 0;
  for (int i = 0; i < 1000; ++i) greedy += Submit("greedy").ok() ? 1 : 0;
  EXPECT_EQ(greedy, 50);
  int batch = 0;
  for (int i = 0; i < 1000; ++i) batch += Submit("other", /*priority=*/3).ok() ? 1 : 0;
  EXPECT_GE(batch, 10);
  EXPECT_TRUE(Submit("third").ok());
  EXPECT_TRUE(Submit("greedy", /*priority=*/1).ok()) << "what is urgent finds a place";
}

TEST_F(AdmissionTest, HigherPrioritiesGoFirst) {
  options_.max_starting = 1;
  Make();
  Fill();
  ASSERT_TRUE(Submit("a", 3).ok());  // 2
  ASSERT_TRUE(Submit("a", 2).ok());  // 3
  ASSERT_TRUE(Submit("a", 1).ok());  // 4
  EXPECT_EQ(Next(), 4u);
  EXPECT_EQ(Next(), 3u);
  EXPECT_EQ(Next(), 2u);
}

TEST_F(AdmissionTest, NoPriorityStarves) {
  options_.max_starting = 1;
  Make();
  Fill();
  ASSERT_TRUE(Submit("a", 3).ok());
  const uint64_t batch = next_id_ - 1;
  ASSERT_TRUE(Submit("a", 2).ok());
  const uint64_t normal = next_id_ - 1;
  int normal_after = -1, batch_after = -1;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(Submit("a", 1).ok());  // there is always something urgent
    const std::optional<uint64_t> next = Next();
    if (next == normal) normal_after = i;
    if (next == batch) batch_after = i;
  }
  EXPECT_GE(normal_after, 1);
  EXPECT_LE(normal_after, 10);
  EXPECT_GT(batch_after, normal_after);
  EXPECT_LE(batch_after, 40);
}

TEST_F(AdmissionTest, KeysGetEqualSharesOfTheWorkWhateverTheySubmit) {
  options_.max_starting = 1;
  options_.max_queued = 1000;
  Make();
  Fill();
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(Submit("many", 2, /*tokens=*/100).ok());
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Submit("few", 2, /*tokens=*/400).ok());
  std::map<std::string, int> taken;
  for (int i = 0; i < 50; ++i) ++taken[keys_[*Next()]];
  // Four small ones for each large one.
  EXPECT_NEAR(taken["many"], 40, 2);
  EXPECT_NEAR(taken["few"], 10, 2);
}

TEST_F(AdmissionTest, WeightsSetTheShares) {
  options_.max_starting = 1;
  options_.max_queued = 1000;
  options_.limits["heavy"].weight = 3;
  Make();
  Fill();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(Submit("heavy").ok());
    ASSERT_TRUE(Submit("light").ok());
  }
  std::map<std::string, int> taken;
  for (int i = 0; i < 80; ++i) ++taken[keys_[*Next()]];
  EXPECT_NEAR(taken["heavy"], 60, 3);
}

// Who was idle does not come back with all the work that it did not ask for.
TEST_F(AdmissionTest, AKeyThatWasIdleHasNoCredit) {
  options_.max_starting = 1;
  options_.max_queued = 1000;
  Make();
  Fill();
  for (int i = 0; i < 150; ++i) ASSERT_TRUE(Submit("busy").ok());
  for (int i = 0; i < 50; ++i) Next();
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(Submit("late").ok());
  std::map<std::string, int> taken;
  for (int i = 0; i < 40; ++i) ++taken[keys_[*Next()]];
  EXPECT_NEAR(taken["late"], 20, 2);
}

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
  EXPECT_TRUE(Submit("other").ok()) << "each key has its own";
  admission_->Finished(1, now_);
  EXPECT_TRUE(Submit("small").ok());
}

TEST_F(AdmissionTest, LimitsThatComeWithTheKeyWinAndMayChangeWhileItRuns) {
  options_.limits["small"].max_requests = 5;
  int32_t most = 1;
  options_.limits_of = [&](const std::string& key) -> std::optional<KeyLimits> {
    if (key != "small") return std::nullopt;
    KeyLimits own;
    own.max_requests = most;
    return own;
  };
  Make();
  ASSERT_TRUE(Submit("small").ok());
  EXPECT_EQ(Submit("small").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Submit("other").ok());
  most = 2;
  EXPECT_TRUE(Submit("small").ok());
  EXPECT_EQ(Submit("small").code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(AdmissionTest, LimitsTokensInFlightByKey) {
  options_.default_limits.max_tokens = 1000;
  Make();
  ASSERT_TRUE(Submit("a", 2, 600).ok());
  const absl::Status later = Submit("a", 2, 600);
  EXPECT_TRUE(RetryAfter(later).has_value()) << later;
  const absl::Status never = Submit("a", 2, 1001);
  EXPECT_EQ(never.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(RetryAfter(never).has_value()) << never;
  EXPECT_TRUE(Submit("a", 2, 400).ok());
  admission_->Finished(1, now_);
  EXPECT_TRUE(Submit("a", 2, 600).ok());
}

TEST_F(AdmissionTest, LimitsTheRateByKeyAndTellsWhenTheNextIsDue) {
  options_.limits["a"].requests_per_second = 2;
  options_.limits["a"].burst = 3;
  Make();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Submit("a").ok()) << i;
  const absl::Status refused = Submit("a");
  EXPECT_THAT(std::string(refused.message()), HasSubstr("more than 2 requests in a second"));
  // What is over does not give the rate back.
  for (uint64_t id = 1; id <= 3; ++id) admission_->Finished(id, now_);
  EXPECT_FALSE(Submit("a").ok());
  now_ += absl::Milliseconds(500);
  EXPECT_TRUE(Submit("a").ok());
  EXPECT_FALSE(Submit("a").ok());
  now_ += absl::Hours(1);
  int accepted = 0;
  for (int i = 0; i < 10; ++i) accepted += Submit("a").ok() ? 1 : 0;
  EXPECT_EQ(accepted, 3) << "no more than the burst is saved up";
}

TEST_F(AdmissionTest, RefusesWhatCouldNotEndInTimeAtThePaceOfLate) {
  options_.max_starting = 1;
  options_.max_queued = 1000;
  Make();
  Fill();
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(Submit("a").ok());
  for (int i = 0; i < 40; ++i) {  // one at a time, ten in a second
    now_ += absl::Milliseconds(100);
    const uint64_t ends = fillers_.front();
    ASSERT_TRUE(Next().has_value());
    admission_->Finished(ends, now_);
  }
  // 160 are ahead: 16 s.
  EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait("a", 2, now_)), 16, 1.5);
  const absl::Status refused = Submit("a", 2, 100, absl::Seconds(10));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NEAR(absl::ToDoubleSeconds(*RetryAfter(refused)), 16, 1.5);
  EXPECT_TRUE(Submit("a", 2, 100, absl::Seconds(30)).ok());
  EXPECT_TRUE(Submit("b", 2, 100, absl::Seconds(5)).ok()) << "another key has its turn sooner";
  EXPECT_TRUE(Submit("a", 1, 100, absl::Seconds(5)).ok()) << "and so has what is urgent";
}

TEST_F(AdmissionTest, RefusesWhatIsTooLongForItsTime) {
  options_.max_starting = 1;
  Make();
  Fill();
  ASSERT_TRUE(Submit("a").ok());
  now_ += absl::Seconds(2);
  ASSERT_TRUE(Next().has_value());
  admission_->Finished(1, now_);  // one token took 2 s
  ASSERT_TRUE(Submit("b").ok());
  const auto submit = [&](int64_t length) {
    return admission_->Submit(100 + static_cast<uint64_t>(length),
                              {"c", 2, length, 1, now_ + absl::Seconds(30), length}, now_);
  };
  EXPECT_TRUE(submit(10).ok());
  EXPECT_EQ(submit(12).code(), absl::StatusCode::kResourceExhausted) << "2 s to wait, 30 to run";
}

TEST_F(AdmissionTest, StartsNoMoreChoicesThanTheWorkersCanUse) {
  options_.live = {.most = 1000, .batches = 2};
  Make();
  admission_->SetCapacity({.best_rows = 50, .waiting_rows = 0});
  for (uint64_t id = 1; id <= 20; ++id) {
    ASSERT_TRUE(admission_->Submit(id, {"", 2, 10, 8, now_ + absl::Minutes(1)}, now_).ok());
  }
  int started = 0;
  while (const auto id = admission_->TakeNext(now_)) {
    admission_->Started(*id, now_);
    ++started;
  }
  EXPECT_EQ(started, 12) << "8 choices each, of 100";
  EXPECT_EQ(admission_->running_choices(), 96);
  // Others keep the workers busy: nothing more until only a share runs.
  admission_->SetCapacity({.best_rows = 50, .waiting_rows = 51});
  for (uint64_t id = 1; id <= 4; ++id) {
    admission_->Finished(id, now_);
    EXPECT_EQ(admission_->TakeNext(now_), std::nullopt) << id;
  }
  admission_->Finished(5, now_);
  EXPECT_TRUE(admission_->TakeNext(now_).has_value()) << "56 of 64 run";
  // A worker has come.
  admission_->SetCapacity({.best_rows = 100, .waiting_rows = 0});
  for (started = 0; admission_->TakeNext(now_).has_value();) ++started;
  EXPECT_EQ(started, 7) << "all that waited";
}

TEST_F(AdmissionTest, ThePaceOfIdleTimesIsNoPace) {
  options_.max_starting = 1;
  Make();
  for (uint64_t id = 1; id <= 50; ++id) {  // one a minute, all served at once
    ASSERT_TRUE(Submit("a").ok());
    ASSERT_EQ(admission_->TakeNext(now_), id);
    admission_->Started(id, now_);
    admission_->Finished(id, now_);
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
  options_.max_starting = 1;
  Make();
  Fill();
  admission_->Started(1, now_);
  now_ += absl::Seconds(4);
  admission_->Finished(1, now_);  // requests take 4 s
  fillers_.clear();
  Fill();
  ASSERT_TRUE(Submit("a", 2, 100, absl::Seconds(11)).ok());
  const uint64_t waits = next_id_ - 1;
  now_ += absl::Seconds(5.5);
  EXPECT_THAT(admission_->TakeHopeless(now_), ElementsAre());
  now_ += absl::Seconds(1);
  EXPECT_THAT(admission_->TakeHopeless(now_), ElementsAre(waits)) << "4.5 s are left, of 5 to take";
}

TEST_F(AdmissionTest, ForgetsWhateverIsOver) {
  options_.default_limits.max_requests = 1000;
  options_.max_starting = 4;
  Make();
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 100; ++i) Submit(absl::StrCat("k", i % 7), 1 + i % 3).IgnoreError();
    for (int i = 0; i < 5; ++i) admission_->TakeNext(now_);
    for (uint64_t id = 1; id < next_id_; ++id) admission_->Finished(id, now_);
    EXPECT_EQ(admission_->queued(), 0);
    EXPECT_EQ(admission_->running(), 0);
    EXPECT_EQ(admission_->starting(), 0);
    EXPECT_EQ(admission_->TakeNext(now_), std::nullopt);
  }
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
