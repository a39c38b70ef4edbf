// Scores over simulated tiers, and the plan of one.
#include "gateway/scoring_run.h"

#include <gtest/gtest.h>

#include "gateway/core_fixture.h"

namespace blockserve {
namespace {

class ScoringTest : public CoreFixture {
 protected:
  std::shared_ptr<RecordingScoreSink> Score(ScoringRequest request) {
    request.request_id = "score";
    request.deadline = loop_.Now() + absl::Minutes(1);
    auto sink = std::make_shared<RecordingScoreSink>();
    core_->Score(std::move(request), sink);
    loop_.RunUntil([&] { return sink->done > 0; });
    return sink;
  }
};

TEST_F(ScoringTest, AContinuationsScoresAreThoseOfGeneratingIt) {
  MakeCore(1, 2);
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    for (const int32_t prompt : {1, 2, 3, 4, 5, 17}) {
      GenerationRequest request = Request(prompt, 11, static_cast<uint64_t>(prompt));
      request.alignment = alignment;
      request.logprobs = 0;
      const Stream stream = Generate(request);
      ASSERT_TRUE(RunUntilDone({stream}));
      ScoringRequest scoring;
      scoring.alignment = alignment;
      scoring.tokens = request.prompt;
      scoring.first_scored = prompt;
      const std::vector<int32_t>& output = stream.sink->tokens.at(0);
      scoring.tokens.insert(scoring.tokens.end(), output.begin(), output.end());
      const auto sink = Score(scoring);
      ASSERT_EQ(sink->done, 1);
      ASSERT_TRUE(sink->response.ok()) << sink->response.status();
      ASSERT_EQ(sink->response->tokens_size(), 11);
      ASSERT_EQ(sink->response->logprobs_size(), 11);
      for (int i = 0; i < 11; ++i) {
        EXPECT_EQ(sink->response->logprobs(i).logprob(),
                  stream.sink->logprobs.at(0)[static_cast<size_t>(i)])
            << AlignmentName(alignment) << " prompt " << prompt << " token " << i;
      }
    }
  }
  ExpectNothingLeft();
}

TEST_F(ScoringTest, WhatHasNoScore) {
  MakeCore(1, 1);
  const auto unscored = [&](Alignment alignment, size_t length) {
    ScoringRequest scoring;
    scoring.alignment = alignment;
    scoring.tokens.assign(length, 5);
    const auto sink = Score(scoring);
    EXPECT_TRUE(sink->response.ok()) << sink->response.status();
    int without = 0;
    for (int i = 0; i < sink->response->logprobs_size(); ++i) {
      if (sink->response->logprobs(i).has_logprob()) continue;
      EXPECT_EQ(i, without);
      ++without;
    }
    return without;
  };
  EXPECT_EQ(unscored(Alignment::kStart, 1), 1);
  EXPECT_EQ(unscored(Alignment::kStart, 9), 1);
  EXPECT_EQ(unscored(Alignment::kNone, 9), 4);
  EXPECT_EQ(unscored(Alignment::kNone, 4), 4);
  EXPECT_EQ(unscored(Alignment::kNone, 2), 2);
}

TEST_F(ScoringTest, TextsHaveTwoBatchesByThemselvesAndOneBesideGenerations) {
  MakeCore(1, 2);
  for (const auto& worker : workers_) {
    worker->max_rows = 8;
    worker->service_time = absl::Milliseconds(10);
  }
  Connect();
  ScoringRequest scoring;
  scoring.alignment = Alignment::kStart;
  for (int32_t i = 0; i < 2000; ++i) scoring.tokens.push_back(i % kSimulatedVocab);
  scoring.deadline = loop_.Now() + absl::Minutes(1);
  auto sink = std::make_shared<RecordingScoreSink>();
  core_->Score(scoring, sink);
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().under_way(), 2 * 16);
  const Stream stream = Generate(Request(5, 2000, 1));
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().under_way(), 16);
  std::vector<std::shared_ptr<RecordingScoreSink>> others;
  for (int i = 0; i < 20; ++i) {
    others.push_back(std::make_shared<RecordingScoreSink>());
    core_->Score(scoring, others.back());
  }
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_GE(core_->scoring_rows().under_way(), 20) << "each of them has one";
  EXPECT_LE(core_->scoring_rows().under_way(), 16 + 20);
  core_->Cancel(stream.id, ClientHasGone());
  loop_.RunUntil([&] { return sink->done > 0 && others.back()->done > 0; });
  EXPECT_TRUE(others.back()->response.ok()) << others.back()->response.status();
  loop_.Advance(absl::Seconds(10));
  EXPECT_EQ(core_->scoring_rows().sources(), 0);
  EXPECT_EQ(core_->scoring_rows().under_way(), 0);
  ASSERT_TRUE(sink->response.ok()) << sink->response.status();
  EXPECT_FALSE(sink->response->logprobs(0).has_logprob());
  for (int i = 1; i < 2000; ++i) ASSERT_TRUE(sink->response->logprobs(i).has_logprob()) << i;
  ExpectNothingLeft();
}

TEST_F(ScoringTest, ATextThatIsGivenUpLeavesItsRowsToOthers) {
  MakeCore(1, 1);
  workers_[0]->max_rows = 4;
  Connect();
  workers_[0]->Freeze();
  std::vector<GenerationId> texts;
  const auto sink = std::make_shared<RecordingScoreSink>();
  for (int i = 0; i < 3; ++i) {
    ScoringRequest scoring;
    scoring.tokens.assign(200, i);
    scoring.deadline = loop_.Now() + absl::Minutes(1);
    texts.push_back(core_->Score(scoring, sink));
  }
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().sources(), 3);
  core_->Cancel(texts[0], ClientHasGone());
  core_->Cancel(texts[1], ClientHasGone());
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().sources(), 1);
  EXPECT_EQ(core_->scoring_rows().under_way(), 8) << "all are its own";
  core_->Cancel(texts[2], ClientHasGone());
  loop_.Advance(absl::Milliseconds(50));
  EXPECT_EQ(core_->scoring_rows().under_way(), 0);
  EXPECT_EQ(sink->done, 0);
  workers_[0]->Thaw();
  ExpectNothingLeft();
}

TEST(PlanScore, LaysTheTextOutAsGeneratingDoes) {
  ModelConfig config;
  config.block_length = 4;
  config.pad_token_id = 9;
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 6, 7};
  const ScorePlan end = PlanScore(config, Alignment::kEnd, tokens, 3);
  EXPECT_EQ(end.padded, (std::vector<int32_t>{9, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(end.first_block, 1);
  EXPECT_EQ(end.end_block, 2);
  const ScorePlan start = PlanScore(config, Alignment::kStart, tokens, 3);
  EXPECT_EQ(start.num_pads, 3);
  EXPECT_EQ(start.first_block, 1);
  EXPECT_EQ(start.end_block, 3);
  const ScorePlan none = PlanScore(config, Alignment::kNone, tokens, 0);
  EXPECT_EQ(none.num_pads, 0);
  EXPECT_EQ(none.first_block, 1);
  EXPECT_EQ(none.end_block, 2);
  const ScorePlan single = PlanScore(config, Alignment::kNone, {1, 2}, 0);
  EXPECT_EQ(single.first_block, single.end_block);
}

}  // namespace
}  // namespace blockserve
