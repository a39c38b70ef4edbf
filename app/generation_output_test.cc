#include "app/generation_output.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using nlohmann::ordered_json;
using ::testing::ElementsAre;

v1::GenerateResponse Output(uint32_t choice, std::initializer_list<int32_t> tokens,
                            const std::string& text) {
  v1::GenerateResponse event;
  event.mutable_output()->set_choice(choice);
  for (const int32_t id : tokens) {
    event.mutable_output()->add_tokens(id);
    event.mutable_output()->add_logprobs()->set_logprob(-0.5f * static_cast<float>(id));
  }
  event.mutable_output()->set_text(text);
  return event;
}

v1::GenerateResponse Finished(uint32_t choice, v1::FinishReason reason, const std::string& text) {
  v1::GenerateResponse event;
  event.mutable_finished()->set_choice(choice);
  event.mutable_finished()->set_reason(reason);
  event.mutable_finished()->set_text(text);
  return event;
}

TEST(GenerationOutput, JoinsTheEventsOfEveryChoice) {
  GenerationOutput output(/*has_tokenizer=*/true);
  v1::GenerateResponse started;
  started.mutable_started()->set_seed(18446744073709551615u);
  output.Add(started);
  output.Add(Output(1, {5}, "x"));
  output.Add(Output(0, {1, 2}, "He"));
  output.Add(Output(0, {3}, "l"));
  output.Add(Finished(0, v1::FINISH_REASON_LENGTH, "lo"));
  v1::GenerateResponse stopped = Finished(1, v1::FINISH_REASON_STOP, "");
  stopped.mutable_finished()->set_stop_string("END");
  output.Add(stopped);
  v1::GenerateResponse usage;
  usage.mutable_usage()->set_prompt_tokens(4);
  usage.mutable_usage()->set_completion_tokens(4);
  output.Add(usage);

  EXPECT_EQ(output.completion_tokens(), 4);
  EXPECT_THAT(output.Texts(), ElementsAre("Hello", "x"));
  const ordered_json json = output.Json();
  const ordered_json first = json["choices"][0];
  EXPECT_EQ(first["text"], "Hello");
  EXPECT_EQ(first["tokens"], ordered_json({1, 2, 3}));
  EXPECT_EQ(first["logprobs"], ordered_json({-0.5, -1.0, -1.5}));
  EXPECT_EQ(first["finish_reason"], "length");
  EXPECT_FALSE(first.contains("top_logprobs"));
  EXPECT_EQ(json["choices"][1]["finish_reason"], "stop");
  EXPECT_EQ(json["choices"][1]["stop_string"], "END");
  EXPECT_EQ(json["usage"]["prompt_tokens"], 4);
  EXPECT_EQ(json["usage"]["completion_tokens"], 4);
  EXPECT_EQ(json["seed"].dump(), "18446744073709551615");
}

TEST(GenerationOutput, HasNullForTextWithoutATokenizer) {
  GenerationOutput output(/*has_tokenizer=*/false);
  output.Add(Output(0, {7, 8}, ""));
  output.Add(Finished(0, v1::FINISH_REASON_LENGTH, ""));
  EXPECT_TRUE(output.Json()["choices"][0]["text"].is_null());
  EXPECT_THAT(output.Texts(), ElementsAre("7 8"));
  EXPECT_EQ(VisibleText(Output(0, {7, 8}, ""), false), "7 8 ");
  EXPECT_EQ(VisibleText(Output(0, {7, 8}, "ab"), true), "ab");
}

TEST(GenerationOutput, TellsTheBestIdsWhereTheyWereAskedFor) {
  v1::GenerateResponse event = Output(0, {7}, "");
  v1::TopLogprob* top = event.mutable_output()->mutable_logprobs(0)->add_top();
  top->set_token(9);
  top->set_logprob(-0.25f);
  GenerationOutput output(false);
  output.Add(event);
  EXPECT_EQ(output.Json()["choices"][0]["top_logprobs"].dump(),
            R"([[{"token":9,"logprob":-0.25}]])");
}

TEST(Logprobs, AreNullWhereATokenHasNoScore) {
  v1::ScoreResponse response;
  response.add_logprobs();
  response.add_logprobs()->set_logprob(-2);
  EXPECT_EQ(LogprobsJson(response.logprobs()).dump(), "[null,-2.0]");
}

}  // namespace
}  // namespace blockserve
