#include "gateway/http/completion_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gateway/tokenizer_for_test.h"
#include "gateway/validate.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kFormat[] = R"({"roles":{"user":{"before":"U: ","after":"\n"}},"answer":"A:",
                               "stop":["\nU:"]})";

class CompletionJobTest : public testing::Test {
 protected:
  CompletionJobTest() : config_(LoadModelConfig("tests/golden/concat_l4").value()) {
    config_.vocab_size = 50304;
    model_.set_name("tiny");
    model_.set_model_id("id");
  }

  absl::StatusOr<HttpCompletionJob> Make(std::string body, bool chat = false) {
    const RequestValidator validator(config_, TokenizerForTest(),
                                     {"tiny", /*allow_beyond_positions=*/true});
    request_.body = std::move(body);
    return MakeCompletionJob(
        {validator, chat_format_, check_priority_, default_priority_, model_, now_}, request_, chat,
        "key");
  }
  HttpCompletionJob Made(std::string body, bool chat = false) {
    absl::StatusOr<HttpCompletionJob> job = Make(body, chat);
    EXPECT_TRUE(job.ok()) << job.status() << " of " << body;
    return job.ok() ? *std::move(job) : HttpCompletionJob();
  }
  std::string Refusal(std::string body, bool chat = false) {
    absl::StatusOr<HttpCompletionJob> job = Make(body, chat);
    EXPECT_FALSE(job.ok()) << body;
    return std::string(job.status().message());
  }
  void SetHeader(absl::string_view name, const std::string& value) {
    request_.fields.set({name.data(), name.size()}, value);
  }

  ModelConfig config_;
  absl::StatusOr<ChatFormat> chat_format_ = ChatFormat::Parse(kFormat, "f");
  std::function<absl::Status(absl::string_view, uint32_t)> check_priority_;
  std::function<uint32_t(absl::string_view)> default_priority_;
  v1::GetModelResponse model_;
  const absl::Time now_ = absl::FromUnixSeconds(1'000'000);
  HttpRequest request_;
};

TEST_F(CompletionJobTest, EachPromptIsARequestOfItsOwn) {
  SetHeader("X-Request-Id", "r");
  for (const bool seeded : {false, true}) {
    const HttpCompletionJob job =
        Made(absl::StrCat(R"({"prompt":[[1],[2]],"max_tokens":5)", seeded ? R"(,"seed":7})" : "}"));
    ASSERT_EQ(job.prompts.size(), 2u);
    const GenerationRequest& first = *job.prompts[0].generation;
    const GenerationRequest& second = *job.prompts[1].generation;
    EXPECT_EQ(first.request_id, "r-0");
    EXPECT_EQ(second.request_id, "r-1");
    EXPECT_THAT(second.prompt, ElementsAre(2));
    EXPECT_EQ(first.seed, job.seed);
    // Prompts that are alike get answers that differ, unless the client wants to get the same.
    EXPECT_EQ(second.seed, seeded ? 7 : job.seed + 1);
    EXPECT_EQ(first.max_tokens, 5);
    EXPECT_EQ(first.key, "key");
    EXPECT_EQ(first.origin.prompts_of_call, 2);
    EXPECT_TRUE(first.origin.first_of_call);
    EXPECT_FALSE(second.origin.first_of_call);
    EXPECT_EQ(first.origin.tiers, second.origin.tiers);
    EXPECT_EQ(job.head.id, "cmpl-r");
  }
  EXPECT_EQ(Made(R"({"prompt":"a"})").prompts[0].generation->request_id, "r");
}

TEST_F(CompletionJobTest, TheTimeLimitIsTheHeadersOrTenMinutes) {
  const auto left = [this] {
    return Made(R"({"prompt":"a"})").prompts[0].generation->deadline - now_;
  };
  EXPECT_EQ(left(), absl::Minutes(10));
  SetHeader("X-Request-Timeout", "0.25");
  EXPECT_EQ(left(), absl::Milliseconds(250));
  SetHeader("X-Request-Timeout", "86400");
  EXPECT_EQ(left(), absl::Hours(24));
  for (const char* bad : {"0", "-1", "86401", "nan", "inf", "soon", "1 s"}) {
    SetHeader("X-Request-Timeout", bad);
    EXPECT_THAT(Refusal(R"({"prompt":"a"})"), StartsWith("X-Request-Timeout: ")) << bad;
  }
}

TEST_F(CompletionJobTest, ARequestIdHasRoomForTheNumberOfAPrompt) {
  SetHeader("X-Request-Id", std::string(120, 'x'));
  EXPECT_EQ(Made(R"({"prompt":["a","b"]})").prompts[1].generation->request_id.size(), 122u);
  SetHeader("X-Request-Id", std::string(121, 'x'));
  EXPECT_THAT(Refusal(R"({"prompt":"a"})"), StartsWith("X-Request-Id: "));
}

TEST_F(CompletionJobTest, PrioritiesAreThoseOfTheKey) {
  default_priority_ = [](absl::string_view) { return uint32_t{v1::PRIORITY_BATCH}; };
  check_priority_ = [](absl::string_view name, uint32_t priority) {
    EXPECT_EQ(name, "key");
    return priority == v1::PRIORITY_HIGH ? absl::PermissionDeniedError("priority: no")
                                         : absl::OkStatus();
  };
  EXPECT_EQ(Made(R"({"prompt":"a"})").prompts[0].generation->priority, v1::PRIORITY_BATCH);
  EXPECT_EQ(Made(R"({"prompt":"a","priority":"normal"})").prompts[0].generation->priority,
            v1::PRIORITY_NORMAL);
  EXPECT_EQ(Refusal(R"({"prompt":"a","priority":"high"})"), "priority: no");
  EXPECT_EQ(Refusal(R"({"prompt":"a b","priority":"high","echo":true,"logprobs":0,
                        "max_tokens":0})"),
            "priority: no");
}

TEST_F(CompletionJobTest, APromptIsCutToItsLastTokens) {
  const auto prompt = [this](const std::string& rest) {
    return Made(absl::StrCat(R"({"prompt":[1,2,3,4,5],)", rest, "}")).prompts[0].ids;
  };
  EXPECT_THAT(prompt(R"("truncate_prompt_tokens":2)"), ElementsAre(4, 5));
  EXPECT_THAT(prompt(R"("truncate_prompt_tokens":5)"), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(prompt(R"("truncate_prompt_tokens":-1)"), ElementsAre(1, 2, 3, 4, 5));
  model_.set_max_tokens(20);
  EXPECT_THAT(prompt(R"("truncate_prompt_tokens":-1)"), ElementsAre(2, 3, 4, 5)) << "16 follow";
  EXPECT_THAT(prompt(R"("truncate_prompt_tokens":-1,"max_tokens":19)"), ElementsAre(5));
  EXPECT_THAT(Refusal(R"({"prompt":[1],"truncate_prompt_tokens":-1,"n_predict":20})"),
              StartsWith("n_predict: leaves no room for a prompt: this model's maximum context "
                         "length is 20 tokens"));
  const std::vector<int32_t> text = Made(R"({"prompt":"one two three"})").prompts[0].ids;
  ASSERT_EQ(text.size(), 3u);
  const HttpCompletionJob cut =
      Made(R"({"prompt":"one two three","truncate_prompt_tokens":2,"echo":true})");
  EXPECT_THAT(cut.prompts[0].ids, ElementsAre(text[1], text[2]));
  EXPECT_EQ(cut.prompts[0].text, " two three") << "what was cut off is not echoed";
}

TEST_F(CompletionJobTest, AChatHasTheTextOfItsFormatAndEndsWhereThatSays) {
  const HttpCompletionJob job =
      Made(R"({"messages":[{"role":"user","content":"hi"}],"stop":"!"})", /*chat=*/true);
  ASSERT_EQ(job.prompts.size(), 1u);
  const GenerationRequest& request = *job.prompts[0].generation;
  EXPECT_EQ(TokenizerForTest()->Decode(request.prompt, false).value(), "U: hi\nA:");
  EXPECT_THAT(request.stop_strings, ElementsAre("!", "\nU:"));
  EXPECT_EQ(request.alignment, Alignment::kStart);
  EXPECT_THAT(job.head.id, StartsWith("chatcmpl-"));
  EXPECT_EQ(Refusal(R"({"messages":[{"role":"tool","content":"hi"}]})", true),
            "messages[0].role: must be one of user");
  chat_format_ = absl::NotFoundError("messages: none");
  EXPECT_EQ(Refusal(R"({"messages":[{"role":"user","content":"hi"}]})", true), "messages: none");
}

TEST_F(CompletionJobTest, AChatsAnswerIsAsLongAsThereIsRoomFor) {
  const auto most = [this](const std::string& more) {
    return Made(absl::StrCat(R"({"messages":[{"role":"user","content":"hi"}])", more, "}"), true)
        .prompts[0]
        .generation->max_tokens;
  };
  EXPECT_EQ(most(""), 256) << "no limit is known";
  const int32_t prompt =
      static_cast<int32_t>(TokenizerForTest()->Encode("U: hi\nA:").value().size());
  model_.set_max_tokens(prompt + 10);
  EXPECT_EQ(most(""), 10);
  EXPECT_EQ(most(R"(,"max_tokens":300)"), 300) << "checked elsewhere";
  model_.set_max_tokens(prompt);
  EXPECT_EQ(most(""), 1);
  model_.set_max_tokens(prompt + 1000);
  EXPECT_EQ(most(""), 256);
}

TEST_F(CompletionJobTest, AnEchoIsScoredWhereItsLogprobsAreAskedFor) {
  const HttpCompletionJob plain = Made(R"({"prompt":"a b","echo":true})");
  EXPECT_EQ(plain.prompts[0].text, "a b");
  EXPECT_FALSE(plain.prompts[0].scoring.has_value());
  EXPECT_TRUE(plain.prompts[0].generation.has_value());
  const HttpCompletionJob scored =
      Made(R"({"prompt":"a b","echo":true,"logprobs":2,"max_tokens":0,"cache_salt":"s"})");
  ASSERT_TRUE(scored.prompts[0].scoring.has_value());
  EXPECT_FALSE(scored.prompts[0].generation.has_value());
  const ScoringRequest& scoring = *scored.prompts[0].scoring;
  EXPECT_EQ(scoring.tokens, scored.prompts[0].ids);
  EXPECT_EQ(scoring.top_logprobs, 2);
  EXPECT_EQ(scoring.cache_salt, "s");
  EXPECT_EQ(scoring.key, "key");
  EXPECT_TRUE(scoring.origin.first_of_call);
  const HttpCompletionJob both = Made(R"({"prompt":[5,6],"echo":true,"logprobs":0})");
  EXPECT_EQ(both.prompts[0].text, TokenizerForTest()->Decode({5, 6}, false).value());
  EXPECT_TRUE(both.prompts[0].scoring->origin.first_of_call);
  EXPECT_FALSE(both.prompts[0].generation->origin.first_of_call) << "its key's rate counts once";
  // What is not generated is checked all the same.
  EXPECT_THAT(Refusal(R"({"prompt":"a","echo":true,"max_tokens":0,"top_p":2})"),
              StartsWith("top_p: "));
  // The token that stands for an empty prompt is none of its text.
  const HttpCompletionJob empty = Made(R"({"prompt":"","echo":true,"logprobs":0,"max_tokens":0})");
  EXPECT_EQ(empty.prompts[0].text, "");
  EXPECT_FALSE(empty.prompts[0].scoring.has_value());
}

TEST_F(CompletionJobTest, ACharacterThatThePromptBeginsIsTheOutputsToEnd) {
  const std::vector<int32_t> face = TokenizerForTest()->Encode("🙉").value();
  ASSERT_GE(face.size(), 2u);
  const std::string body =
      absl::StrCat(R"({"prompt":[)", TokenizerForTest()->Encode("a").value()[0], ",", face[0],
                   R"(],"echo":true)");
  const HttpCompletionJob job = Made(absl::StrCat(body, "}"));
  EXPECT_EQ(job.prompts[0].text, "a");
  EXPECT_EQ(job.prompts[0].generation->text_before, TokenizerForTest()->TokenBytes(face[0]));
  EXPECT_EQ(Made(absl::StrCat(body, R"(,"max_tokens":0})")).prompts[0].text, "a\uFFFD");
}

TEST_F(CompletionJobTest, AnAnswerThatWouldFillTheMemoryIsRefused) {
  EXPECT_THAT(Refusal(R"({"prompt":"a","n":64,"max_tokens":1000000})"), StartsWith("n: "));
  EXPECT_THAT(Refusal(R"({"prompt":"a","logprobs":20,"max_tokens":200000})"),
              StartsWith("logprobs: "));
  EXPECT_THAT(Refusal(absl::StrCat(R"({"prompt":["a","b","c","d"],"max_tokens":2000000})")),
              StartsWith("prompt: "));
  EXPECT_TRUE(Make(R"({"prompt":["a","b"],"max_tokens":2000000})").ok());
  EXPECT_TRUE(Make(R"({"prompt":"a","n":64,"max_tokens":1000000,"stream":true})").ok())
      << "events leave as they are made";
  EXPECT_FALSE(
      Make(R"({"prompt":"a","n":64,"max_tokens":1000000,"stream":true,"echo":true})").ok());
}

TEST_F(CompletionJobTest, AStreamGoesOnWithTheSeedAndTheNameThatItHad) {
  const std::string body = R"({"prompt":[[1],[2]],"stream":true,"stream_options":)"
                           R"({"include_event_id":true}})";
  const HttpCompletionJob first = Made(body);
  EXPECT_FALSE(first.resume.has_value());
  HttpEventId id{"old", first.seed, "01234567", first.prompts_hash, {3, 4}};
  ASSERT_EQ(id.prompts.size(), HttpEventId::kHashDigits);
  SetHeader("Last-Event-ID", id.ToString());
  const HttpCompletionJob job = Made(body);
  ASSERT_TRUE(job.resume.has_value());
  EXPECT_EQ(job.request_id, "old");
  EXPECT_EQ(job.seed, first.seed);
  EXPECT_EQ(job.prompts[1].generation->seed, first.seed + 1);
  EXPECT_EQ(job.prompts[1].generation->request_id, "old-1");
  EXPECT_EQ(job.prompts[0].generation->origin.tiers->hash, "01234567");
  EXPECT_TRUE(job.prompts[0].generation->origin.tiers->wrote_stream);
  // Asked for in other words, it is another stream.
  for (const char* other : {R"({"prompt":[[1],[2]]})", R"({"prompt":[1],"stream":true})",
                            R"({"prompt":[[1],[2]],"stream":true,"n":2})",
                            R"({"prompt":[[1],[2]],"stream":true,"echo":true,"max_tokens":0})"}) {
    EXPECT_EQ(Refusal(other), "Last-Event-ID: is not of a stream of this request") << other;
  }
  EXPECT_EQ(
      Refusal(absl::StrCat(R"({"prompt":[[1],[2]],"stream":true,"seed":)", first.seed + 1, "}")),
      "Last-Event-ID: is not of a stream of this request");
  const absl::Status changed = Make(R"({"prompt":[[1],[3]],"stream":true})").status();
  EXPECT_EQ(changed.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(changed.message()), StartsWith("Last-Event-ID: "));
  EXPECT_FALSE(Make(R"({"prompt":[[1],[2]],"stream":true,"stop":"x"})").ok());
  id.prompts = "";
  SetHeader("Last-Event-ID", id.ToString());
  EXPECT_TRUE(Make(R"({"prompt":[[1],[3]],"stream":true})").ok()) << "of an older gateway";
  SetHeader("Last-Event-ID", "old");
  EXPECT_THAT(Refusal(body), StartsWith("Last-Event-ID: "));
}

TEST_F(CompletionJobTest, NamesThePromptThatDoesNotFit) {
  EXPECT_THAT(Refusal(R"({"prompt":[[1],[60000]]})"), StartsWith("prompt[1][0]: "));
  EXPECT_THAT(Refusal(R"({"prompt":[60000]})"), StartsWith("prompt[0]: "));
  EXPECT_THAT(Refusal(R"({"prompt":"a","model":"other"})"), HasSubstr("model"));
}

}  // namespace
}  // namespace blockserve
