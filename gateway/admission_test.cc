// The queue: places, priorities, shares.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gateway/admission_fixture.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

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

TEST_F(AdmissionTest, AKindThatWasIdleHasNoCredit) {
  options_.max_starting = 1;
  Make();
  Fill();
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(SubmitLong("a", 200, absl::Minutes(10)).ok());
  for (int i = 0; i < 20; ++i) Next();
  const uint64_t first_text = next_id_;
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(SubmitText("a", 50).ok());
  int texts = 0;
  for (int i = 0; i < 10; ++i) texts += Next().value() >= first_text ? 1 : 0;
  EXPECT_EQ(texts, 5) << "of as much work each";
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

}  // namespace
}  // namespace blockserve
