#include "gateway/gathering_sink.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

// Writes down what it is told, a line each.
class RecordingSink final : public GenerationSink {
 public:
  void OnStarted(v1::Started) override { lines.push_back("started"); }
  void OnOutput(v1::Output output, OutputDetail detail) override {
    std::vector<float> logprobs;
    for (const v1::TokenLogprobs& one : output.logprobs()) logprobs.push_back(one.logprob());
    lines.push_back(absl::StrCat(output.choice(), "@", output.position(), " [",
                                 absl::StrJoin(output.tokens(), ","), "] ", output.text(), " ends ",
                                 absl::StrJoin(detail.text_ends, ","), " by ", output.worker()));
    if (!logprobs.empty()) lines.back() += absl::StrCat(" lp ", absl::StrJoin(logprobs, ","));
    if (detail.ends_choice) lines.back() += " last";
  }
  void OnFinished(v1::Finished finished) override {
    lines.push_back(absl::StrCat("finished ", finished.choice()));
  }
  void OnDone(absl::Status status, v1::Usage) override {
    lines.push_back(absl::StrCat("done ", status.ok() ? "ok" : status.message()));
  }
  bool WantsMore() const override { return wants_more; }

  std::vector<std::string> lines;
  bool wants_more = true;
};

class GatheringTest : public testing::Test {
 protected:
  void Start(int32_t tokens, int32_t choices = 1) { sink = Gathering(recorder, tokens, choices); }
  // A block of so many tokens of one letter each.
  void Block(uint32_t choice, int32_t tokens, const std::string& worker, bool last = false) {
    int64_t& position = positions[choice];
    v1::Output output;
    output.set_choice(choice);
    output.set_position(position);
    OutputDetail detail;
    for (int32_t i = 0; i < tokens; ++i, ++position) {
      output.add_tokens(static_cast<int32_t>(position));
      output.mutable_text()->push_back(static_cast<char>('a' + position));
      output.add_logprobs()->set_logprob(static_cast<float>(-position));
      detail.text_ends.push_back(i + 1);
    }
    detail.ends_choice = last;
    output.set_worker(worker);
    sink->OnOutput(std::move(output), std::move(detail));
  }
  std::vector<std::string> Told() { return std::exchange(recorder->lines, {}); }
  using Lines = std::vector<std::string>;

  const std::shared_ptr<RecordingSink> recorder = std::make_shared<RecordingSink>();
  std::shared_ptr<GenerationSink> sink;
  int64_t positions[2] = {0, 0};
};

TEST_F(GatheringTest, TheFirstBlockIsToldAtOnceAndLaterOnesTogether) {
  Start(6);
  sink->OnStarted({});
  Block(0, 2, "w1");
  EXPECT_EQ(Told(), (Lines{"started", "0@0 [0,1] ab ends 1,2 by w1 lp 0,-1"}));
  Block(0, 4, "w1");
  EXPECT_EQ(Told(), Lines{});
  Block(0, 3, "w2");
  EXPECT_EQ(Told(), Lines{"0@2 [2,3,4,5,6,7,8] cdefghi ends 1,2,3,4,5,6,7 by w2 lp "
                          "-2,-3,-4,-5,-6,-7,-8"});
  Block(0, 4, "w1");
  Block(0, 1, "w1", /*last=*/true);
  EXPECT_EQ(Told(),
            Lines{"0@9 [9,10,11,12,13] jklmn ends 1,2,3,4,5 by w1 lp -9,-10,-11,-12,-13 last"});
  sink->OnFinished({});
  sink->OnDone(absl::OkStatus(), {});
  EXPECT_EQ(Told(), (Lines{"finished 0", "done ok"}));
}

TEST_F(GatheringTest, ChoicesAreGatheredEachByItself) {
  Start(4, 2);
  Block(0, 2, "w");
  Block(1, 2, "w");
  Told();
  Block(0, 2, "w");
  Block(1, 2, "w");
  EXPECT_EQ(Told(), Lines{});
  Block(1, 2, "w");
  EXPECT_EQ(Told(), Lines{"1@2 [2,3,4,5] cdef ends 1,2,3,4 by w lp -2,-3,-4,-5"});
}

TEST_F(GatheringTest, WhatWasWrittenBeforeAnErrorIsTold) {
  Start(100);
  Block(0, 2, "w");
  Told();
  Block(0, 2, "w");
  Block(0, 2, "w");
  sink->OnDone(absl::DeadlineExceededError("late"), {});
  EXPECT_EQ(Told(), (Lines{"0@2 [2,3,4,5] cdef ends 1,2,3,4 by w lp -2,-3,-4,-5", "done late"}));
}

TEST_F(GatheringTest, TheClientThatDoesNotReadIsAskedItself) {
  Start(100);
  EXPECT_TRUE(sink->WantsMore());
  recorder->wants_more = false;
  EXPECT_FALSE(sink->WantsMore());
}

TEST_F(GatheringTest, OfOneTokenNothingIsGathered) {
  Start(1);
  EXPECT_EQ(sink, recorder);
}

}  // namespace
}  // namespace blockserve
