#include "gateway/http/openai_answer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/strip.h"
#include "gateway/context_length.h"
#include "gateway/http/json_text.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

using Json = nlohmann::json;

TEST(JsonText, EscapesWhatJsonAsksFor) {
  std::string text;
  for (int c = 0; c < 128; ++c) text += static_cast<char>(c);
  text += "é日🙂";
  std::string out;
  AppendJsonString(out, text);
  EXPECT_EQ(Json::parse(out).get<std::string>(), text);
  EXPECT_EQ(out.find('\n'), std::string::npos) << "a line of an event must not break";
}

TEST(JsonText, FloatsReadBackAsTheSameBits) {
  for (const float value : {-0.1f, -1e-30f, -123.456f, 0.0f, std::numeric_limits<float>::min(),
                            std::nextafter(-2.5f, 0.0f)}) {
    std::string out;
    AppendJsonFloat(out, value);
    EXPECT_EQ(Json::parse(out).get<float>(), value) << out;
  }
  std::string out;
  AppendJsonFloat(out, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(out, "null");
}

TEST(OpenAiError, HasOpenAisFormAndTheRightStatus) {
  const HttpResponse bad = OpenAiError(absl::InvalidArgumentError("stop.max_tokens: too many"));
  EXPECT_EQ(bad.status, 400);
  const Json error = Json::parse(bad.body)["error"];
  EXPECT_EQ(error["message"], "max_tokens: too many");
  EXPECT_EQ(error["type"], "invalid_request_error");
  EXPECT_EQ(error["param"], "max_tokens");
  EXPECT_TRUE(error["code"].is_null());

  const HttpResponse full = OpenAiError(NoRoomYet("full"));
  EXPECT_EQ(full.status, 429);
  ASSERT_EQ(full.headers.size(), 1u);
  EXPECT_EQ(full.headers[0].first, "Retry-After");
  EXPECT_TRUE(OpenAiError(absl::ResourceExhaustedError("never")).headers.empty());
  const HttpResponse long_text = OpenAiError(ContextLengthExceeded("continuation: too long", 8));
  EXPECT_EQ(Json::parse(long_text.body)["error"]["code"], "context_length_exceeded");
  EXPECT_EQ(Json::parse(long_text.body)["error"]["param"], "prompt");
  EXPECT_EQ(OpenAiError(absl::UnavailableError("gone")).status, 503);
  EXPECT_EQ(OpenAiError(absl::UnavailableError("gone")).headers[0].first, "Retry-After");
  EXPECT_EQ(OpenAiError(absl::DeadlineExceededError("late")).status, 504);
  const HttpResponse broken = OpenAiError(absl::InternalError("workers died"));
  EXPECT_EQ(broken.status, 500);
  ASSERT_EQ(broken.headers.size(), 1u);
  EXPECT_EQ(broken.headers[0], std::make_pair(std::string("X-Should-Retry"), std::string("false")));
  EXPECT_EQ(OpenAiError(absl::UnauthenticatedError("who")).status, 401);
  const HttpResponse lost = OpenAiError(absl::NotFoundError("model: there is no \"x\""));
  EXPECT_EQ(lost.status, 404);
  EXPECT_EQ(Json::parse(lost.body)["error"]["code"], "model_not_found");
}

Json DataOf(const std::string& event) {
  const size_t data = event.find("data: ");
  EXPECT_NE(data, std::string::npos);
  EXPECT_EQ(event.substr(event.size() - 2), "\n\n");
  return Json::parse(event.substr(data + 6));
}

TEST(OpenAiEvents, WriteOneEventPerChoiceWithItsIdIfItHasOne) {
  const OpenAiEvents events({false, "cmpl-1", 17, "m\"x", "f32"}, /*usage_field=*/true);
  const int32_t ids[] = {5, 6};
  OpenAiChoice choice;
  choice.index = 3;
  choice.text = "a\nb";
  choice.token_ids = ids;
  choice.worker = "w";
  std::string out;
  events.AppendChoice(out, "r:2a:4", choice, nullptr);
  EXPECT_EQ(out.substr(0, out.find('\n')), "id: r:2a:4");
  const Json data = DataOf(out);
  EXPECT_EQ(data["object"], "text_completion");
  EXPECT_EQ(data["model"], "m\"x");
  EXPECT_TRUE(data["usage"].is_null());
  EXPECT_EQ(data["choices"][0]["index"], 3);
  EXPECT_EQ(data["choices"][0]["text"], "a\nb");
  EXPECT_EQ(data["choices"][0]["token_ids"], Json({5, 6}));
  EXPECT_EQ(data["choices"][0]["worker"], "w");
  EXPECT_TRUE(data["choices"][0]["finish_reason"].is_null());
  std::string without;
  events.AppendChoice(without, "", choice, nullptr);
  EXPECT_EQ("id: r:2a:4\n" + without, out);
}

TEST(OpenAiEvents, ChatNamesTheRoleInTheFirstEventAlone) {
  const OpenAiEvents events({true, "chatcmpl-1", 17, "m", "f32"}, /*usage_field=*/false);
  v1::Finished finished;
  finished.set_reason(v1::FINISH_REASON_STOP);
  finished.set_stop_string("END");
  OpenAiChoice choice;
  choice.text = "a";
  choice.first = true;
  std::string out;
  events.AppendChoice(out, "r", choice, nullptr);
  EXPECT_EQ(DataOf(out)["choices"][0]["delta"], Json({{"role", "assistant"}, {"content", "a"}}));
  EXPECT_FALSE(DataOf(out).contains("usage"));
  choice.first = false;
  choice.finished = &finished;
  out.clear();
  const OpenAiUsage usage{7, 2, 4};
  events.AppendChoice(out, "r", choice, &usage);
  const Json data = DataOf(out);
  EXPECT_EQ(data["choices"][0]["delta"], Json({{"content", "a"}}));
  EXPECT_EQ(data["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(data["choices"][0]["stop_reason"], "END");
  EXPECT_EQ(data["usage"]["total_tokens"], 9);
  EXPECT_EQ(data["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
}

TEST(OpenAiLogprobs, WithoutATokenizerTokensAreNumbers) {
  OpenAiLogprobs logprobs(nullptr, /*chat=*/false);
  logprobs.Add(7, {});
  v1::TokenLogprobs scored;
  scored.set_logprob(-1.5f);
  v1::TopLogprob& best = *scored.add_top();
  best.set_token(9);
  best.set_logprob(-0.5f);
  logprobs.Add(8, scored);
  const Json json = Json::parse(logprobs.Take());
  EXPECT_EQ(json["tokens"], Json({"token_id:7", "token_id:8"}));
  EXPECT_EQ(json["token_logprobs"], Json({nullptr, -1.5}));
  EXPECT_EQ(json["top_logprobs"], Json({nullptr, {{"token_id:9", -0.5}, {"token_id:8", -1.5}}}));
  EXPECT_EQ(Json::parse(logprobs.Take())["tokens"], Json::array()) << "taken once";
}

TEST(OpenAiLogprobs, ChatHasBytesAndAlternatives) {
  OpenAiLogprobs logprobs(nullptr, /*chat=*/true);
  v1::TokenLogprobs scored;
  scored.set_logprob(-1.5f);
  logprobs.Add(8, scored);
  const Json json = Json::parse(logprobs.Take());
  EXPECT_EQ(json["content"][0]["token"], "token_id:8");
  EXPECT_EQ(json["content"][0]["logprob"], -1.5);
  EXPECT_EQ(json["content"][0]["top_logprobs"], Json::array());
}

TEST(CountCharacters, CountsCodePoints) { EXPECT_EQ(CountCharacters("aé日🙂"), 4); }

}  // namespace
}  // namespace blockserve
