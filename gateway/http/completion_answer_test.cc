#include "gateway/http/completion_answer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "gateway/call_tiers.h"

namespace blockserve {
namespace {

using Json = nlohmann::json;

// Data of the events; the last of a whole stream is null, for [DONE].
std::vector<Json> Events(absl::string_view stream) {
  std::vector<Json> events;
  for (const absl::string_view line : absl::StrSplit(stream, '\n')) {
    absl::string_view data = line;
    if (!absl::ConsumePrefix(&data, "data: ")) continue;
    events.push_back(data == "[DONE]" ? Json() : Json::parse(data));
  }
  return events;
}

std::string LastId(absl::string_view stream) {
  std::string id;
  for (const absl::string_view line : absl::StrSplit(stream, '\n')) {
    absl::string_view value = line;
    if (absl::ConsumePrefix(&value, "id: ")) id = std::string(value);
  }
  return id;
}

std::string TextOf(const std::vector<Json>& events, size_t choice) {
  std::string text;
  for (const Json& event : events) {
    if (event.is_null()) continue;
    for (const Json& one : event["choices"]) {
      if (one["index"] == choice) text += one["text"].get<std::string>();
    }
  }
  return text;
}

class CompletionAnswerTest : public testing::Test {
 protected:
  CompletionAnswerTest() {
    job_.request_id = "r";
    job_.seed = 9;
    job_.head.id = "cmpl-r";
    job_.wanted.stream = true;
    job_.wanted.return_token_ids = true;
    AddPrompt({1, 2, 3});
  }
  void AddPrompt(std::vector<int32_t> ids) {
    HttpPromptJob& prompt = job_.prompts.emplace_back();
    prompt.ids = std::move(ids);
    prompt.generation.emplace();
  }
  CompletionAnswer& Answer() {
    if (!answer_.has_value()) {
      answer_.emplace(nullptr, job_);
      answer_->Bind("m", "b", "t");
    }
    return *answer_;
  }
  // A block of the tokens 10, 11, …, of one letter each: "a", "b", …
  void AddBlock(size_t prompt, uint32_t choice, int32_t from, int32_t to, bool last = false) {
    CompletionAnswer::Block block;
    block.output.set_choice(choice);
    for (int32_t i = from; i < to; ++i) {
      block.output.add_tokens(10 + i);
      block.output.mutable_text()->push_back(static_cast<char>('a' + i));
      block.detail.text_ends.push_back(i - from + 1);
    }
    block.detail.ends_choice = last;
    Answer().AddBlock(prompt, std::move(block));
  }
  absl::Status Finish(size_t prompt, uint32_t choice, const std::string& text) {
    v1::Finished finished;
    finished.set_choice(choice);
    finished.set_reason(v1::FINISH_REASON_STOP);
    finished.set_text(text);
    return Answer().Finish(prompt, std::move(finished));
  }

  HttpCompletionJob job_;
  std::optional<CompletionAnswer> answer_;
};

TEST_F(CompletionAnswerTest, AStreamHasAnEventForEachToken) {
  job_.wanted.include_usage = true;
  job_.wanted.include_event_id = true;
  AddBlock(0, 0, 0, 3);
  const std::string first = Answer().TakeEvents();
  EXPECT_EQ(Events(first).size(), 3u);
  EXPECT_EQ(Events(first)[1]["choices"][0]["token_ids"], Json::array({11}));
  EXPECT_EQ(LastId(first), "r:9:" + HashOfTiers("m", "b", "t") + ":3");
  EXPECT_EQ(Answer().TakeEvents(), "") << "each is taken once";
  AddBlock(0, 0, 3, 5, /*last=*/true);
  EXPECT_EQ(Answer().TakeEvents(), "") << "its last event is not known before its end";
  ASSERT_TRUE(Finish(0, 0, "!").ok());
  v1::Usage usage;
  usage.set_completion_tokens(5);
  Answer().AddUsage(0, usage);
  const std::vector<Json> rest = Events(Answer().TakeLastEvents());
  ASSERT_EQ(rest.size(), 4u);
  EXPECT_EQ(rest[0]["choices"][0]["finish_reason"], nullptr);
  EXPECT_EQ(rest[1]["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(rest[1]["choices"][0]["text"], "e!");
  EXPECT_EQ(rest[2]["usage"]["completion_tokens"], 5);
  EXPECT_EQ(rest[2]["usage"]["prompt_tokens"], 3);
  EXPECT_TRUE(rest[3].is_null());
}

TEST_F(CompletionAnswerTest, OrOneForEachBlockOnRequest) {
  job_.wanted.per_block = true;
  AddBlock(0, 0, 0, 3);
  const std::vector<Json> events = Events(Answer().TakeEvents());
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0]["choices"][0]["text"], "abc");
}

TEST_F(CompletionAnswerTest, AWholeAnswerHasTheTextOfTheStream) {
  AddPrompt({4});
  job_.wanted.stream = false;
  job_.wanted.request.set_n(2);
  for (size_t prompt = 0; prompt < 2; ++prompt) {
    for (uint32_t choice = 0; choice < 2; ++choice) {
      const int32_t more = static_cast<int32_t>(2 * prompt + choice);
      AddBlock(prompt, choice, 0, 2);
      AddBlock(prompt, choice, 2, 3 + more, /*last=*/true);
      ASSERT_TRUE(Finish(prompt, choice, "!").ok());
    }
  }
  const Json answer = Json::parse(Answer().TakeWhole());
  ASSERT_EQ(answer["choices"].size(), 4u);
  EXPECT_EQ(answer["choices"][0]["text"], "abc!");
  EXPECT_EQ(answer["choices"][3]["text"], "abcdef!");
  EXPECT_EQ(answer["choices"][3]["token_ids"], Json::array({10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(answer["choices"][3]["prompt_token_ids"], Json::array({4}));
  EXPECT_EQ(answer["system_fingerprint"], "b/t");
}

TEST_F(CompletionAnswerTest, OfAStreamThatGoesOnWhatTheClientHasIsLeftOut) {
  for (int64_t had = 0; had <= 6; ++had) {
    for (const bool per_block : {false, true}) {
      answer_.reset();
      job_.wanted.per_block = per_block;
      job_.resume = HttpEventId{"r", 9, HashOfTiers("m", "b", "t"), "", {had}};
      AddBlock(0, 0, 0, 3);
      AddBlock(0, 0, 3, 6, /*last=*/true);
      ASSERT_TRUE(Finish(0, 0, "").ok());
      const std::vector<Json> events = Events(Answer().TakeEvents());
      EXPECT_EQ(TextOf(events, 0), std::string("abcdef").substr(static_cast<size_t>(had)))
          << had << " per block " << per_block;
    }
  }
}

TEST_F(CompletionAnswerTest, ALongerStreamIsNotGoneOnWith) {
  job_.resume = HttpEventId{"r", 9, HashOfTiers("m", "b", "t"), "", {7}};
  AddBlock(0, 0, 0, 6, /*last=*/true);
  EXPECT_EQ(Finish(0, 0, "").message(), "Last-Event-ID: is beyond the end of choice 0");
}

TEST_F(CompletionAnswerTest, AnEchoStandsBeforeTheFirstToken) {
  job_.wanted.echo = true;
  job_.prompts[0].text = "echo ";
  for (const bool stream : {true, false}) {
    answer_.reset();
    job_.wanted.stream = stream;
    AddBlock(0, 0, 0, 2, /*last=*/true);
    ASSERT_TRUE(Finish(0, 0, "").ok());
    EXPECT_EQ(stream ? TextOf(Events(Answer().TakeEvents()), 0)
                     : Json::parse(Answer().TakeWhole())["choices"][0]["text"].get<std::string>(),
              "echo ab");
    answer_.reset();
    Answer().EchoAlone(0);
    EXPECT_EQ(stream ? TextOf(Events(Answer().TakeEvents()), 0)
                     : Json::parse(Answer().TakeWhole())["choices"][0]["text"].get<std::string>(),
              "echo ");
  }
}

}  // namespace
}  // namespace blockserve
