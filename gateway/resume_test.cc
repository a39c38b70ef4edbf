// A stream that broke, wherever it broke, goes on through another core with exactly what was left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "gateway/core_fixture.h"
#include "gateway/text_output.h"
#include "gateway/tokenizer_for_test.h"

namespace blockserve {
namespace {

using ::testing::HasSubstr;

class ResumeTest : public CoreFixture {
 protected:
  // The undisturbed stream.
  Stream Whole(const GenerationRequest& request) {
    Stream whole = Generate(request);
    EXPECT_TRUE(RunUntilDone({whole}));
    EXPECT_TRUE(whole.sink->status.ok()) << whole.sink->status;
    return whole;
  }

  // The request of a client that received `cuts[i]` tokens of choice i, and its end where
  // `ends[i]`.
  static GenerationRequest Rest(const Stream& whole, const std::vector<size_t>& cuts,
                                const std::vector<bool>& ends = {}) {
    GenerationRequest request = whole.request;
    ResumeState& resume = request.resume.emplace();
    resume.model_id = whole.sink->first.model_id();
    resume.block_numeric_id = whole.sink->first.block_numeric_id();
    resume.token_numeric_id = whole.sink->first.token_numeric_id();
    for (size_t i = 0; i < cuts.size(); ++i) {
      const std::vector<int32_t>& tokens = whole.sink->tokens[static_cast<uint32_t>(i)];
      ResumeState::Choice& choice = resume.choices.emplace_back();
      choice.tokens.assign(tokens.begin(), tokens.begin() + static_cast<int64_t>(cuts[i]));
      choice.finished = i < ends.size() && ends[i];
    }
    return request;
  }
  Stream Resume(const GenerationRequest& request) {
    Stream stream{request, std::make_shared<RecordingSink>(), 0};
    for (size_t i = 0; i < request.resume->choices.size(); ++i) {
      stream.sink->received_before[static_cast<uint32_t>(i)] =
          static_cast<int64_t>(request.resume->choices[i].tokens.size());
    }
    stream.id = core_->Generate(request, stream.sink);
    return stream;
  }

  // What the client had and what it got make the undisturbed stream, with nothing twice.
  void ExpectTheRest(const Stream& whole, const Stream& rest) {
    ASSERT_EQ(rest.sink->done, 1);
    ASSERT_TRUE(rest.sink->status.ok()) << rest.sink->status;
    EXPECT_EQ(rest.sink->first.seed(), whole.sink->first.seed());
    EXPECT_EQ(rest.sink->first.alignment(), whole.sink->first.alignment());
    EXPECT_EQ(rest.sink->usage.prompt_tokens(), whole.sink->usage.prompt_tokens());
    EXPECT_EQ(rest.sink->usage.completion_tokens(), whole.sink->usage.completion_tokens());
    for (uint32_t i = 0; i < static_cast<uint32_t>(whole.request.n); ++i) {
      const ResumeState::Choice& had = rest.request.resume->choices[i];
      std::vector<int32_t> tokens = had.tokens;
      const std::vector<int32_t>& got = rest.sink->tokens[i];
      tokens.insert(tokens.end(), got.begin(), got.end());
      EXPECT_EQ(tokens, whole.sink->tokens[i]) << "choice " << i << " cut at " << had.tokens.size();
      if (whole.request.logprobs.has_value()) {
        const std::vector<float>& all = whole.sink->logprobs[i];
        EXPECT_EQ(
            rest.sink->logprobs[i],
            std::vector<float>(all.begin() + static_cast<int64_t>(had.tokens.size()), all.end()));
      }
      if (had.finished) {
        EXPECT_FALSE(rest.sink->finished.contains(i));
        EXPECT_TRUE(got.empty());
        continue;
      }
      ASSERT_TRUE(rest.sink->finished.contains(i));
      const v1::Finished& end = whole.sink->finished[i];
      EXPECT_EQ(rest.sink->finished[i].reason(), end.reason());
      EXPECT_EQ(rest.sink->finished[i].has_stop_token(), end.has_stop_token());
      EXPECT_EQ(rest.sink->finished[i].stop_token(), end.stop_token());
      EXPECT_EQ(rest.sink->finished[i].stop_string(), end.stop_string());
      // The text that came with the tokens which the client has.
      TextOutput before(tokenizer_, whole.request.stop_strings, whole.request.min_tokens);
      const std::string had_text =
          before.Append(had.tokens, had.tokens.size() == tokens.size() && end.has_stop_token())
              .text;
      EXPECT_EQ(had_text + rest.sink->text[i], whole.sink->text[i])
          << "choice " << i << " cut at " << had.tokens.size();
    }
  }

  // Cuts a stream of one choice at every token.
  void CutEverywhere(const GenerationRequest& request, const std::string& stop_string = {}) {
    const Stream whole = Whole(request);
    EXPECT_EQ(whole.sink->finished[0].stop_string(), stop_string);
    std::vector<Stream> rests;
    for (size_t cut = 0; cut <= whole.sink->tokens[0].size(); ++cut) {
      rests.push_back(Resume(Rest(whole, {cut})));
    }
    ASSERT_TRUE(RunUntilDone(rests));
    for (const Stream& rest : rests) ExpectTheRest(whole, rest);
    ExpectNothingLeft();
  }
};

TEST_F(ResumeTest, GoesOnFromEveryTokenWithEveryAlignment) {
  MakeCore(2, 2);
  uint64_t seed = 1;
  for (const Alignment alignment : {Alignment::kEnd, Alignment::kStart, Alignment::kNone}) {
    for (const int32_t prompt : {1, 4, 7}) {
      GenerationRequest request = Request(prompt, 13, ++seed);
      request.alignment = alignment;
      request.logprobs = 0;
      CutEverywhere(request);
    }
  }
}

TEST_F(ResumeTest, ChoicesOfARequestThatHasBegunAreNotRefusedForAFullQueue) {
  options_.tier.max_queued = 2;
  MakeCore(1, 1);
  GenerationRequest request = Request(8, 40, 4);
  request.n = 8;
  const Stream whole = Whole(request);
  // Of room for two of them at a time.
  blocks_[0]->pages = 6;
  blocks_[0]->Break();
  blocks_[0]->Mend();
  const Stream rest = Resume(Rest(whole, {20, 21, 22, 23, 24, 25, 26, 27}));
  ASSERT_TRUE(RunUntilDone({rest}));
  ExpectTheRest(whole, rest);
  ExpectNothingLeft();
}

TEST_F(ResumeTest, TwoChoicesCutAtEveryPairOfTokens) {
  MakeCore(1, 1);
  GenerationRequest request = Request(6, 9, 3);
  request.alignment = Alignment::kStart;
  request.n = 2;
  request.logprobs = 0;
  // They end apart.
  request.stop_ids = {Expected(request, 1)[5]};
  const Stream whole = Whole(request);
  ASSERT_EQ(whole.sink->tokens[0].size(), 9u);
  ASSERT_EQ(whole.sink->tokens[1].size(), 6u);
  std::vector<Stream> rests;
  for (size_t first = 0; first <= 9; ++first) {
    for (size_t second = 0; second <= 6; ++second) {
      rests.push_back(Resume(Rest(whole, {first, second})));
      if (first == 9) rests.push_back(Resume(Rest(whole, {first, second}, {true, false})));
      if (second == 6) rests.push_back(Resume(Rest(whole, {first, second}, {false, true})));
    }
  }
  rests.push_back(Resume(Rest(whole, {9, 6}, {true, true})));
  ASSERT_TRUE(RunUntilDone(rests));
  for (const Stream& rest : rests) ExpectTheRest(whole, rest);
  ExpectNothingLeft();
}

TEST_F(ResumeTest, ChoicesWithoutABlockOfTheirOwnStillShareThePrompt) {
  MakeCore(1, 1);
  GenerationRequest request = Request(8, 20, 4);
  request.n = 4;
  const Stream whole = Whole(request);
  const int opens = blocks_[0]->opens;
  const int forks = blocks_[0]->forks;
  const Stream rest = Resume(Rest(whole, {9, 0, 3, 17}));
  ASSERT_TRUE(RunUntilDone({rest}));
  ExpectTheRest(whole, rest);
  EXPECT_EQ(blocks_[0]->opens - opens, 3);
  EXPECT_EQ(blocks_[0]->forks - forks, 1);
}

TEST_F(ResumeTest, TextHeldBackForAStopStringOrHalfACharacterIsMadeAgain) {
  // Ids below 997 of this one are single bytes, halves of characters among them, and short pieces.
  tokenizer_ = TokenizerForTest();
  MakeCore(1, 1);
  for (uint64_t seed = 20; seed < 40; ++seed) {
    GenerationRequest request = Request(5, 24, seed);
    const Stream plain = Whole(request);
    const std::string& text = plain.sink->text[0];
    ASSERT_GT(text.size(), 12u);
    // A string over a token's border, which ends the choice, and one that only begins.
    const auto character = [&](size_t at) {
      while ((static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
      return at;
    };
    const size_t from = character(text.size() / 2);
    const size_t to = character(from + 9 < text.size() ? from + 9 : text.size() - 1);
    request.stop_strings = {text.substr(from, to - from),
                            text.substr(character(2), character(9) - character(2)) + "never"};
    request.min_tokens = static_cast<int32_t>(seed % 3);
    CutEverywhere(request, request.stop_strings[0]);
  }
}

TEST_F(ResumeTest, StopTokensAndMinTokensCountFromTheBeginning) {
  MakeCore(1, 1);
  GenerationRequest request = Request(6, 20, 7);
  request.stop_ids = {Expected(request, 0)[2]};
  request.min_tokens = 7;
  CutEverywhere(request);
  request = Request(6, 20, 8);
  request.stop_ids = {Expected(request, 0)[10]};
  CutEverywhere(request);
}

// The simulated workers do not apply penalties: what they are told of the tokens before is
// compared.
TEST_F(ResumeTest, PenaltiesCountTheTokensReceivedBefore) {
  MakeCore(1, 1);
  using Counts = std::map<std::pair<uint32_t, int64_t>, std::vector<int32_t>>;
  Counts counts;  // by choice and position of the block's first token
  workers_[0]->verdict = [&](const v1::TokenRowRequest& row) {
    counts[{row.choice(), row.position() - row.forced_size()}].assign(row.counts().begin(),
                                                                      row.counts().end());
    return absl::OkStatus();
  };
  GenerationRequest request = Request(7, 21, 9);
  request.alignment = Alignment::kStart;
  request.n = 2;
  request.sampling.set_repetition_penalty(1.2f);
  request.sampling.set_frequency_penalty(0.5f);
  const Stream whole = Whole(request);
  const Counts undisturbed = std::exchange(counts, {});
  for (size_t cut = 0; cut < 21; ++cut) {
    const Stream rest = Resume(Rest(whole, {cut, 20 - cut}));
    ASSERT_TRUE(RunUntilDone({rest}));
    ExpectTheRest(whole, rest);
    for (const auto& [where, what] : std::exchange(counts, {})) {
      EXPECT_EQ(what, undisturbed.at(where)) << "cut at " << cut;
    }
  }
}

TEST_F(ResumeTest, GoesOnThroughLostWorkersToo) {
  MakeCore(2, 2);
  GenerationRequest request = Request(9, 60, 10);
  request.n = 2;
  const Stream whole = Whole(request);
  const Stream rest = Resume(Rest(whole, {13, 30}));
  ASSERT_TRUE(loop_.RunUntil([&] { return rest.sink->tokens[0].size() > 8; }));
  blocks_[0]->Kill();
  workers_[0]->Kill();
  ASSERT_TRUE(RunUntilDone({rest}));
  ExpectTheRest(whole, rest);
}

TEST_F(ResumeTest, OtherNumericIdsAreRefusedAtOnce) {
  MakeCore(1, 1);
  const Stream whole = Whole(Request(5, 12, 11));
  loop_.Advance(options_.tier.tier_wait);
  GenerationRequest request = Rest(whole, {5});
  request.resume->token_numeric_id = "sim-2";
  const Stream rest = Resume(request);
  loop_.Advance(absl::Milliseconds(1));
  ASSERT_EQ(rest.sink->done, 1);
  EXPECT_EQ(rest.sink->started, 0);
  EXPECT_EQ(rest.sink->status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(rest.sink->status.message()), HasSubstr("sim-2 (token)"));
  request = Rest(whole, {5});
  request.resume->model_id = "another";
  const Stream other = Resume(request);
  loop_.Advance(absl::Milliseconds(1));
  EXPECT_EQ(other.sink->status.code(), absl::StatusCode::kFailedPrecondition);
  ExpectNothingLeft();
}

TEST_F(ResumeTest, TheSmallerGroupIsFoundByItsNumericId) {
  MakeCore(3, 1);
  blocks_[2]->numeric_id = "sim-0";
  Stream whole = Whole(Request(5, 30, 12));
  ASSERT_EQ(whole.sink->first.block_numeric_id(), "sim-1");
  GenerationRequest request = Rest(whole, {5});
  request.resume->block_numeric_id = "sim-0";
  const Stream rest = Resume(request);
  ASSERT_TRUE(RunUntilDone({rest}));
  ExpectTheRest(whole, rest);
  EXPECT_EQ(rest.sink->first.block_numeric_id(), "sim-0");
  EXPECT_EQ(blocks_[2]->opens, 1);
}

TEST_F(ResumeTest, WorkersThatWereLostJustNowAreWaitedFor) {
  MakeCore(2, 1);
  blocks_[1]->numeric_id = "sim-2";
  const Stream whole = Whole(Request(5, 30, 13));
  loop_.Advance(absl::Minutes(1));
  blocks_[0]->Kill();
  loop_.Advance(absl::Milliseconds(10));
  const Stream rest = Resume(Rest(whole, {5}));
  loop_.Advance(absl::Seconds(3));
  EXPECT_EQ(rest.sink->done, 0);
  blocks_[0]->Restart();
  ASSERT_TRUE(RunUntilDone({rest}));
  ExpectTheRest(whole, rest);

  blocks_[0]->Kill();
  const Stream given_up = Resume(Rest(whole, {5}));
  ASSERT_TRUE(RunUntilDone({given_up}));
  EXPECT_EQ(given_up.sink->status.code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace blockserve
