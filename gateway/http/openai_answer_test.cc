#include "gateway/http/openai_answer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "gateway/context_length.h"
#include "gateway/http/json_text.h"
#include "gateway/retry_after.h"
#include "model/tokenizer.h"

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
  const HttpResponse late = OpenAiError(absl::DeadlineExceededError("late"));
  EXPECT_EQ(late.status, 504);
  EXPECT_EQ(late.headers[0], std::make_pair(std::string("X-Should-Retry"), std::string("false")));
  const HttpResponse broken = OpenAiError(absl::InternalError("workers died"));
  EXPECT_EQ(broken.status, 500);
  ASSERT_EQ(broken.headers.size(), 1u);
  EXPECT_EQ(broken.headers[0], std::make_pair(std::string("X-Should-Retry"), std::string("false")));
  EXPECT_EQ(OpenAiError(absl::UnauthenticatedError("who")).status, 401);
  const HttpResponse lost = OpenAiError(absl::NotFoundError("model: there is no \"x\""));
  EXPECT_EQ(lost.status, 404);
  EXPECT_EQ(Json::parse(lost.body)["error"]["code"], "model_not_found");
}

TEST(OpenAiError, HasTheTypeOfItsStatus) {
  const auto type_of = [](const absl::Status& status) {
    return Json::parse(OpenAiError(status).body)["error"]["type"].get<std::string>();
  };
  EXPECT_EQ(type_of(absl::UnauthenticatedError("x")), "authentication_error");
  EXPECT_EQ(type_of(absl::PermissionDeniedError("x")), "permission_error");
  EXPECT_EQ(type_of(absl::NotFoundError("x")), "not_found_error");
  EXPECT_EQ(type_of(absl::ResourceExhaustedError("x")), "rate_limit_error");
  EXPECT_EQ(type_of(absl::InvalidArgumentError("x")), "invalid_request_error");
  EXPECT_EQ(type_of(absl::InternalError("x")), "server_error");
  const HttpResponse keyless = OpenAiError(absl::UnauthenticatedError("x"));
  EXPECT_EQ(Json::parse(keyless.body)["error"]["code"], "invalid_api_key");
  ASSERT_EQ(keyless.headers.size(), 1u);
  EXPECT_EQ(keyless.headers[0].first, "WWW-Authenticate");
  // A field is of a request: no error of ours names one.
  EXPECT_EQ(Json::parse(OpenAiError(absl::InternalError("n: x")).body)["error"]["param"], nullptr);
  EXPECT_EQ(Json::parse(OpenAiError(400, "\xff").body)["error"]["message"], "bad request");
}

Json DataOf(const std::string& event) {
  const size_t data = event.find("data: ");
  EXPECT_NE(data, std::string::npos);
  EXPECT_EQ(event.substr(event.size() - 2), "\n\n");
  return Json::parse(event.substr(data + 6));
}

TEST(OpenAiErrorEvent, HasTheStatusAsItsCode) {
  const Json error = DataOf(OpenAiErrorEvent(absl::UnavailableError("gone")))["error"];
  EXPECT_EQ(error["code"], 503);
  EXPECT_EQ(error["message"], "gone");
  EXPECT_EQ(error["type"], "server_error");
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

TEST(OpenAiLogprobs, ChatNamesWhatElseWasLikely) {
  OpenAiLogprobs logprobs(nullptr, /*chat=*/true);
  v1::TokenLogprobs scored;
  scored.set_logprob(-1.5f);
  for (const int32_t token : {9, 8}) {
    v1::TopLogprob& top = *scored.add_top();
    top.set_token(token);
    top.set_logprob(token == 9 ? -0.5f : -1.5f);
  }
  logprobs.Add(8, scored);
  logprobs.Add(9, scored);
  const Json content = Json::parse(logprobs.Take())["content"];
  ASSERT_EQ(content.size(), 2u);
  ASSERT_EQ(content[1]["top_logprobs"].size(), 2u);
  EXPECT_EQ(content[1]["token"], "token_id:9");
  EXPECT_EQ(content[1]["top_logprobs"][0]["token"], "token_id:9");
  EXPECT_EQ(content[1]["top_logprobs"][0]["logprob"], -0.5);
  EXPECT_EQ(content[1]["top_logprobs"][1]["token"], "token_id:8");
}

class OpenAiLogprobsOfText : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
        Tokenizer::Load("tests/data/gpt_neox_20b.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = tokenizer->release();
  }
  static void TearDownTestSuite() { delete tokenizer_; }

  static std::vector<int32_t> Encode(absl::string_view text) {
    return tokenizer_->Encode(text).value();
  }
  static Json Offsets(OpenAiLogprobs& logprobs, const std::vector<int32_t>& ids) {
    for (const int32_t id : ids) logprobs.Add(id, {});
    return Json::parse(logprobs.Take())["text_offset"];
  }

  static constexpr int32_t kEndOfText = 0;
  static Tokenizer* tokenizer_;
};

Tokenizer* OpenAiLogprobsOfText::tokenizer_ = nullptr;

TEST_F(OpenAiLogprobsOfText, TokensBeginWhereTheirFirstCharacterDoes) {
  // A character of four bytes is one of several tokens here, all of which begin where it does.
  const std::vector<int32_t> face = Encode("🙉");
  ASSERT_GE(face.size(), 2u);
  std::vector<int32_t> ids = Encode("né");
  const size_t before = ids.size();
  ids.insert(ids.end(), face.begin(), face.end());
  const std::vector<int32_t> after = Encode(" word");
  ids.insert(ids.end(), after.begin(), after.end());
  OpenAiLogprobs logprobs(tokenizer_, /*chat=*/false);
  const Json offsets = Offsets(logprobs, ids);
  ASSERT_EQ(offsets.size(), ids.size());
  EXPECT_EQ(offsets[0], 0);
  for (size_t i = 0; i < face.size(); ++i) EXPECT_EQ(offsets[before + i], 2) << i;
  EXPECT_EQ(offsets[before + face.size()], 3);
  EXPECT_EQ(Offsets(logprobs, {after[0]})[0], 8) << "Take does not begin anew";
}

TEST_F(OpenAiLogprobsOfText, ATokenAfterHalfACharacterBeginsAfterWhatStandsForThat) {
  const std::vector<int32_t> face = Encode("🙉");
  const std::vector<int32_t> word = Encode(" word");
  OpenAiLogprobs logprobs(tokenizer_, /*chat=*/false);
  EXPECT_EQ(Offsets(logprobs, {face[0], word[0], word[0]}), Json({0, 1, 6}));
}

TEST_F(OpenAiLogprobsOfText, SpecialTokensHaveTextInThePromptAlone) {
  const std::vector<int32_t> word = Encode(" word");
  OpenAiLogprobs logprobs(tokenizer_, /*chat=*/false);
  EXPECT_EQ(Offsets(logprobs, {kEndOfText, word[0]}), Json({0, 13}));
  logprobs.BeginOutput(18);
  EXPECT_EQ(Offsets(logprobs, {kEndOfText, word[0], word[0]}), Json({18, 18, 23}));
}

TEST_F(OpenAiLogprobsOfText, TheOutputMayCompleteACharacterOfThePrompt) {
  const std::vector<int32_t> face = Encode("🙉");
  const std::vector<int32_t> word = Encode(" word");
  OpenAiLogprobs logprobs(tokenizer_, /*chat=*/false);
  EXPECT_EQ(Offsets(logprobs, {word[0], face[0]}), Json({0, 5}));
  logprobs.BeginOutput(5);
  std::vector<int32_t> rest(face.begin() + 1, face.end());
  rest.push_back(word[0]);
  EXPECT_EQ(Offsets(logprobs, rest).back(), 6);
}

TEST_F(OpenAiLogprobsOfText, ChatHasTheBytesOfATokenThatIsNoText) {
  const std::vector<int32_t> face = Encode("🙉");
  const absl::string_view bytes = tokenizer_->TokenBytes(face[0]);
  OpenAiLogprobs logprobs(tokenizer_, /*chat=*/true);
  logprobs.Add(face[0], {});
  logprobs.Add(Encode("word")[0], {});
  const Json content = Json::parse(logprobs.Take())["content"];
  ASSERT_EQ(content[0]["bytes"].size(), bytes.size());
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(content[0]["bytes"][i], static_cast<unsigned char>(bytes[i]));
  }
  EXPECT_EQ(content[0]["token"].get<std::string>().substr(0, 10), "bytes:\\xf0");
  EXPECT_EQ(content[1]["token"], "word");
  EXPECT_EQ(content[1]["bytes"], Json({'w', 'o', 'r', 'd'}));
}

TEST_F(OpenAiLogprobsOfText, TokensAreIdsOnRequest) {
  const int32_t word = Encode(" word")[0];
  OpenAiLogprobs logprobs(tokenizer_, /*chat=*/false, /*tokens_as_ids=*/true);
  logprobs.Add(word, {});
  logprobs.Add(word, {});
  const Json json = Json::parse(logprobs.Take());
  EXPECT_EQ(json["tokens"][0], absl::StrCat("token_id:", word));
  EXPECT_EQ(json["text_offset"], Json({0, 5})) << "the text is none of ids";
}

TEST(OpenAiAnswer, OfAStopTokenTellsWhich) {
  v1::Finished token, length;
  token.set_reason(v1::FINISH_REASON_STOP);
  token.set_stop_token(17);
  length.set_reason(v1::FINISH_REASON_LENGTH);
  const int32_t prompt[] = {1, 2};
  OpenAiChoice choices[2];
  choices[0].text = "a";
  choices[0].finished = &token;
  choices[0].prompt_token_ids = prompt;
  choices[1].index = 1;
  choices[1].finished = &length;
  for (const bool chat : {false, true}) {
    const Json answer = Json::parse(OpenAiAnswer({chat, "i", 17, "m", "f"}, choices, {3, 2, 1}));
    EXPECT_EQ(answer["object"], chat ? "chat.completion" : "text_completion");
    ASSERT_EQ(answer["choices"].size(), 2u);
    const Json& first = answer["choices"][0];
    EXPECT_EQ(first["stop_reason"], 17);
    EXPECT_EQ(first["prompt_token_ids"], Json({1, 2}));
    EXPECT_EQ(answer.value("prompt_token_ids", Json()), chat ? Json({1, 2}) : Json());
    EXPECT_EQ(answer["choices"][1]["finish_reason"], "length");
    EXPECT_EQ(answer["choices"][1]["stop_reason"], nullptr);
    EXPECT_EQ(answer["usage"]["total_tokens"], 5);
    if (chat) {
      EXPECT_EQ(first["message"], Json({{"role", "assistant"}, {"content", "a"}}));
    } else {
      EXPECT_EQ(first["text"], "a");
    }
  }
}

TEST(CountCharacters, CountsCodePoints) { EXPECT_EQ(CountCharacters("aé日🙂"), 4); }

}  // namespace
}  // namespace blockserve
