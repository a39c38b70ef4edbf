#include "gateway/stop_string_sink.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace blockserve {
namespace {

// Joins the text that it is told.
class TextSink final : public GenerationSink {
 public:
  void OnStarted(v1::Started) override {}
  void OnOutput(v1::Output output, OutputDetail) override { text += output.text(); }
  void OnFinished(v1::Finished finished) override {
    text += finished.text();
    stop_string = finished.stop_string();
  }
  void OnDone(absl::Status, v1::Usage) override { done = true; }
  bool WantsMore() const override { return wants_more; }

  std::string text;
  std::string stop_string;
  bool done = false;
  bool wants_more = true;
};

class StopStringSinkTest : public testing::Test {
 protected:
  std::shared_ptr<GenerationSink> Wrapped(bool include, std::vector<std::string> strings) {
    GenerationRequest request;
    request.include_stop_string = include;
    request.stop_strings = std::move(strings);
    return WithStopStrings(sink_, request);
  }
  static v1::Output Block(const std::string& text) {
    v1::Output output;
    output.set_text(text);
    return output;
  }

  const std::shared_ptr<TextSink> sink_ = std::make_shared<TextSink>();
};

TEST_F(StopStringSinkTest, TheTextEndsWithTheStringThatEndedIt) {
  const std::shared_ptr<GenerationSink> sink = Wrapped(true, {"END", "."});
  ASSERT_NE(sink, sink_);
  sink->OnOutput(Block("a b"), {});
  v1::Finished finished;
  finished.set_stop_string("END");
  sink->OnFinished(finished);
  sink->OnDone(absl::OkStatus(), {});
  EXPECT_EQ(sink_->text, "a bEND");
  EXPECT_EQ(sink_->stop_string, "END") << "it is told as before";
  EXPECT_TRUE(sink_->done);
}

TEST_F(StopStringSinkTest, WhatIsHeldBackAtAnotherEndStaysAsItIs) {
  const std::shared_ptr<GenerationSink> sink = Wrapped(true, {"END"});
  sink->OnOutput(Block("a b"), {});
  v1::Finished finished;
  finished.set_text("EN");
  finished.set_stop_token(7);
  sink->OnFinished(finished);
  EXPECT_EQ(sink_->text, "a bEN");
  sink_->wants_more = false;
  EXPECT_FALSE(sink->WantsMore());
}

TEST_F(StopStringSinkTest, WhoDoesNotWantItHasNothingInBetween) {
  EXPECT_EQ(Wrapped(false, {"END"}), sink_);
  EXPECT_EQ(Wrapped(true, {}), sink_);
}

}  // namespace
}  // namespace blockserve
