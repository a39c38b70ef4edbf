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
  // Ends the oldest of those that were taken, and takes the next.
  std::optional<uint64_t> Next() {
    admission_->Finished(fillers_.front(), /*whole=*/true, now_);
    fillers_.erase(fillers_.begin());
    const std::optional<uint64_t> next = admission_->TakeNext(now_);
    if (next.has_value()) fillers_.push_back(*next);
    return next;
  }

  // As Submit, of a request that may write so many tokens.
  absl::Status SubmitLong(const std::string& key, int64_t length, absl::Duration time,
                          uint32_t priority = 2) {
    lengths_[next_id_] = length;
    return admission_->Submit(next_id_++, {key, priority, length, 1, now_ + time, length}, now_);
  }
  // What there is room for runs, and writes a token every `token`, to its length.
  void Serve(absl::Duration time, absl::Duration token) {
    for (const absl::Time end = now_ + time; now_ < end;) {
      while (const auto id = admission_->TakeNext(now_)) written_[*id] = 0;
      now_ += token;
      for (auto request = written_.begin(); request != written_.end();) {
        auto& [id, written] = *request;
        admission_->Started(id);
        admission_->Wrote(id, 1, now_);
        if (++written == lengths_[id]) {
          admission_->Finished(id, /*whole=*/true, now_);
          request = written_.erase(request);
        } else {
          ++request;
        }
      }
    }
  }

  // As SubmitLong, of a text of so many blocks of 4 tokens.
  absl::Status SubmitText(const std::string& key, int32_t blocks,
                          absl::Duration time = absl::Minutes(10), uint32_t priority = 2) {
    AdmissionRequest request{key, priority, blocks * 4, blocks, now_ + time, 4};
    request.scores = true;
    return admission_->Submit(next_id_++, request, now_);
  }
  // All that there is room for.
  std::vector<uint64_t> TakeAll() {
    std::vector<uint64_t> taken;
    while (const auto id = admission_->TakeNext(now_)) {
      admission_->Started(*id);
      taken.push_back(*id);
    }
    return taken;
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  std::map<uint64_t, int64_t> lengths_, written_;  // of those of SubmitLong
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
  admission_->Started(1);
  EXPECT_EQ(admission_->TakeNext(now_), 3u);
}

TEST_F(AdmissionTest, ChoicesOfRunningRequestsAreBounded) {
  options_.live.most = 3;
  Make();
  ASSERT_TRUE(Submit().ok());
  EXPECT_TRUE(admission_->TakeNext(now_).has_value());
  ASSERT_TRUE(admission_->Submit(50, {"", 2, 10, 3, now_ + absl::Minutes(1)}, now_).ok());
  EXPECT_EQ(admission_->TakeNext(now_), std::nullopt);
  admission_->Finished(1, /*whole=*/true, now_);
  EXPECT_EQ(admission_->TakeNext(now_), 50u);
  const absl::Status too_many =
      admission_->Submit(51, {"", 2, 10, 4, now_ + absl::Minutes(1)}, now_);
  EXPECT_EQ(too_many.code(), absl::StatusCode::kInvalidArgument) << "it would never fit";
  EXPECT_THAT(std::string(too_many.message()), testing::StartsWith("n: is 4; at most 3"));
}

// It would start when all others have ended, and whoever waits behind it, too.
TEST_F(AdmissionTest, ARequestOfManyChoicesDoesNotLetTheGatewayRunEmpty) {
  Make();
  admission_->SetCapacity({.best_rows = 64, .waiting_rows = 1000});  // others': 64 choices
  for (int i = 0; i < 49; ++i) ASSERT_TRUE(Submit("streams").ok());
  ASSERT_EQ(TakeAll().size(), 49u);
  ASSERT_TRUE(admission_->Submit(100, {"batch", 3, 6400, 64, now_ + absl::Minutes(10)}, now_).ok());
  EXPECT_EQ(admission_->TakeNext(now_), std::nullopt) << "not a quarter of the room is free";
  admission_->Finished(1, /*whole=*/true, now_);
  EXPECT_EQ(admission_->TakeNext(now_), 100u);
  EXPECT_EQ(admission_->running_choices(), 48 + 64);
  // What goes beyond the limit is to end before another one starts.
  ASSERT_TRUE(Submit("interactive", 1).ok());
  for (uint64_t id = 2; id <= 49; ++id) {
    ASSERT_EQ(admission_->TakeNext(now_), std::nullopt);
    admission_->Finished(id, /*whole=*/true, now_);
  }
  ASSERT_EQ(admission_->running_choices(), 64);
  EXPECT_EQ(admission_->TakeNext(now_), std::nullopt);
  admission_->Finished(100, /*whole=*/true, now_);
  EXPECT_TRUE(admission_->TakeNext(now_).has_value());
}

TEST_F(AdmissionTest, TheWaitCountsChoicesAndNotRequests) {
  options_.live = {.most = 16, .batches = 0};
  for (const int32_t queued_choices : {1, 16}) {
    Make();
    const auto submit = [&](int32_t choices) {
      const absl::Time deadline = now_ + absl::Minutes(10);
      return admission_->Submit(next_id_++, {"a", 2, 100, choices, deadline, 100}, now_);
    };
    for (int i = 0; i < 4; ++i) ASSERT_TRUE(submit(4).ok());
    const std::vector<uint64_t> running = TakeAll();
    ASSERT_EQ(running.size(), 4u);
    for (int step = 0; step < 10; ++step) {
      now_ += absl::Milliseconds(10);
      for (const uint64_t id : running) admission_->Wrote(id, 4, now_);
    }
    // They began together, and end together.
    EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 0.9, 0.05);
    if (queued_choices == 1) {
      for (int i = 0; i < 8; ++i) ASSERT_TRUE(submit(1).ok());
      EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 0.9, 0.05)
          << "nine of the sixteen that end are enough for all";
    } else {
      ASSERT_TRUE(submit(16).ok());
      EXPECT_NEAR(absl::ToDoubleSeconds(admission_->ExpectedWait({"a"}, now_)), 1.9, 0.1)
          << "that one takes all there is";
    }
  }
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
  EXPECT_FALSE(IsOfKeyLimit(refusal));
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
  EXPECT_THAT(std::string(never.message()), testing::StartsWith("prompt: is 4 requests"));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(submit(101 + i, 3, i == 0).ok()) << i;
  for (int i = 0; i < 3; ++i) admission_->Finished(101 + i, /*whole=*/true, now_);
  EXPECT_EQ(submit(110, 1, true).code(), absl::StatusCode::kResourceExhausted);
}

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

TEST_F(AdmissionTest, StartsNoMoreChoicesThanTheWorkersCanUse) {
  options_.live = {.most = 1000, .batches = 2};
  Make();
  admission_->SetCapacity({.best_rows = 50, .waiting_rows = 0});
  ASSERT_TRUE(SubmitLong("", 1, absl::Minutes(1)).ok());
  Serve(absl::Milliseconds(1), absl::Milliseconds(1));  // one has ended: the pace is known
  for (uint64_t id = 1; id <= 20; ++id) {
    ASSERT_TRUE(admission_->Submit(id, {"", 2, 10, 8, now_ + absl::Minutes(1)}, now_).ok());
  }
  int started = 0;
  while (const auto id = admission_->TakeNext(now_)) {
    admission_->Started(*id);
    ++started;
  }
  EXPECT_EQ(started, 12) << "8 choices each, of 100";
  EXPECT_EQ(admission_->running_choices(), 96);
  // Others keep the workers busy: nothing more until only a share runs.
  admission_->SetCapacity({.best_rows = 50, .waiting_rows = 51});
  for (uint64_t id = 1; id <= 4; ++id) {
    admission_->Finished(id, /*whole=*/true, now_);
    EXPECT_EQ(admission_->TakeNext(now_), std::nullopt) << id;
  }
  admission_->Finished(5, /*whole=*/true, now_);
  EXPECT_TRUE(admission_->TakeNext(now_).has_value()) << "56 of 64 run";
  // A worker has come.
  admission_->SetCapacity({.best_rows = 100, .waiting_rows = 0});
  for (started = 0; admission_->TakeNext(now_).has_value();) ++started;
  EXPECT_EQ(started, 7) << "all that waited";
}

TEST_F(AdmissionTest, TextsCountAsSeveralChoicesAndLeaveRoomForGenerations) {
  Make();
  admission_->SetCapacity({.best_rows = 64, .waiting_rows = 0});
  ASSERT_TRUE(SubmitLong("", 1, absl::Minutes(1)).ok());
  Serve(absl::Milliseconds(1), absl::Milliseconds(1));  // the pace is known: 192 choices
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(SubmitText("a", 500).ok());
  const std::vector<uint64_t> texts = TakeAll();
  EXPECT_EQ(texts.size(), 5u) << "of an eighth of the room each, in two thirds of it";
  EXPECT_EQ(admission_->running_choices(), 5 * 24);
  ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(1)).ok());
  EXPECT_EQ(TakeAll().size(), 1u) << "texts that wait for one another keep no generation waiting";
  ASSERT_TRUE(SubmitLong("b", 100, absl::Minutes(1), /*priority=*/3).ok());
  EXPECT_EQ(TakeAll().size(), 1u) << "nor one of lower priority";
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(SubmitLong("a", 100, absl::Minutes(1)).ok());
  EXPECT_EQ(TakeAll().size(), 70u);
  // Where there is room again, those that waited go on: short ones count for what they are.
  for (const uint64_t id : texts) admission_->Finished(id, /*whole=*/true, now_);
  EXPECT_GT(TakeAll().size(), 5u);
  EXPECT_LE(admission_->running_choices(), 192);
}

TEST_F(AdmissionTest, TextsAndGenerationsOfAKeyTakeTurnsByTheirWork) {
  options_.max_starting = 1;
  Make();
  Fill();
  std::map<uint64_t, bool> is_text;
  for (int i = 0; i < 5; ++i) {
    is_text[next_id_] = true;
    ASSERT_TRUE(SubmitText("a", 250).ok());  // 1000 tokens
  }
  for (int i = 0; i < 25; ++i) {
    is_text[next_id_] = false;
    ASSERT_TRUE(SubmitLong("a", 200, absl::Minutes(10)).ok());
  }
  std::string order;
  for (int i = 0; i < 19; ++i) order += is_text.at(Next().value()) ? 't' : 'g';
  EXPECT_EQ(order, "gtgggggtgggggtggggg") << "five of 200 tokens for one of 1000";
}

TEST_F(AdmissionTest, ManyTextsInTheQueueRefuseNoGeneration) {
  options_.max_queued = 200;
  Make();
  admission_->SetCapacity({.best_rows = 64, .waiting_rows = 0});
  int accepted = 0;
  while (SubmitText("a", 500).ok()) ++accepted;
  EXPECT_GE(accepted, 100);
  TakeAll();
  AdmissionRequest generation{"a", 2, 100, 1, now_ + absl::Seconds(5), 100};
  EXPECT_EQ(admission_->ExpectedWait(generation, now_), absl::ZeroDuration());
  // Texts take long; a generation is not judged by that.
  for (int i = 0; i < 100; ++i) {
    now_ += absl::Milliseconds(200);
    for (uint64_t id = 1; id <= 8; ++id) admission_->Wrote(id, 4, now_);
  }
  EXPECT_FALSE(SubmitText("a", 500, absl::Seconds(5)).ok());
  EXPECT_TRUE(SubmitLong("a", 100, absl::Seconds(5)).ok());
  EXPECT_EQ(admission_->TakeNext(now_), next_id_ - 1);
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

TEST_F(AdmissionTest, ForgetsWhateverIsOver) {
  options_.default_limits.max_requests = 1000;
  options_.max_starting = 4;
  Make();
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 100; ++i) Submit(absl::StrCat("k", i % 7), 1 + i % 3).IgnoreError();
    for (int i = 0; i < 5; ++i) admission_->TakeNext(now_);
    for (uint64_t id = 1; id < next_id_; ++id) admission_->Finished(id, /*whole=*/true, now_);
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
