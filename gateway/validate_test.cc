#include "gateway/validate.h"

#include <cmath>
#include <limits>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gateway/context_length.h"
#include "gateway/tokenizer_for_test.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr char kModelId[] = "0123456789abcdef";
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class ValidateTest : public ::testing::Test {
 protected:
  static ModelConfig Config() {
    auto config = LoadModelConfig("tests/golden/concat_l4");
    EXPECT_TRUE(config.ok()) << config.status();
    config->vocab_size = 50304;
    return *config;
  }
  static RequestValidator WithTokenizer() {
    return {Config(), TokenizerForTest(), {"tiny", false}};
  }
  static RequestValidator WithoutTokenizer() { return {Config(), nullptr, {"tiny", false}}; }

  static absl::StatusOr<GenerationRequest> Generation(const v1::GenerateRequest& request) {
    return WithTokenizer().Generation(request, kModelId, absl::InfiniteFuture());
  }
  static absl::StatusOr<ScoringRequest> Scoring(const v1::ScoreRequest& request) {
    return WithTokenizer().Scoring(request, kModelId, absl::InfiniteFuture());
  }
  // The request is refused, and the message begins with the field's name.
  template <class Request>
  static void ExpectInvalid(const absl::StatusOr<Request>& result, const std::string& field) {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << result.status();
    EXPECT_THAT(std::string(result.status().message()), StartsWith(field + ": "));
  }
};

v1::GenerateRequest Prompt(std::initializer_list<int32_t> ids) {
  v1::GenerateRequest request;
  for (int32_t id : ids) request.mutable_tokens()->add_ids(id);
  return request;
}

TEST_F(ValidateTest, FillsInEveryDefault) {
  auto result = Generation(Prompt({1, 2, 3}));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->prompt, ElementsAre(1, 2, 3));
  EXPECT_EQ(result->request_id.size(), 32u);
  EXPECT_EQ(result->max_tokens, 16);
  EXPECT_EQ(result->min_tokens, 0);
  EXPECT_EQ(result->n, 1);
  EXPECT_EQ(result->alignment, Alignment::kEnd);
  EXPECT_EQ(result->priority, static_cast<uint32_t>(v1::PRIORITY_NORMAL));
  EXPECT_EQ(result->cache_salt, "");
  EXPECT_EQ(result->stream_interval, 1);
  EXPECT_FALSE(result->own_prefix_cache);
  EXPECT_EQ(result->logprobs, std::nullopt);
  EXPECT_THAT(result->stop_ids, ElementsAre(0));
  EXPECT_THAT(result->stop_strings, IsEmpty());
  EXPECT_FALSE(result->include_stop_string);
  EXPECT_EQ(result->sampling.temperature(), 1.0f);
  EXPECT_EQ(result->sampling.top_k(), 0);
  EXPECT_EQ(result->sampling.top_p(), 1.0f);
  EXPECT_EQ(result->sampling.min_p(), 0.0f);
  EXPECT_EQ(result->sampling.repetition_penalty(), 1.0f);
  EXPECT_TRUE(result->sampling.has_frequency_penalty());
}

TEST_F(ValidateTest, KeepsWhatIsGiven) {
  v1::GenerateRequest request = Prompt({1});
  request.set_request_id("a b~");
  request.set_model("tiny");
  request.set_seed(0);
  request.set_n(64);
  request.set_alignment(v1::ALIGNMENT_START);
  request.set_logprobs(20);
  request.set_priority(v1::PRIORITY_BATCH);
  request.set_cache_salt(std::string(256, 's'));
  request.set_stream_interval(1024);
  request.mutable_stop()->set_max_tokens(7);
  request.mutable_stop()->set_min_tokens(7);
  request.mutable_stop()->set_ignore_eos(true);
  request.mutable_stop()->add_strings("\n\n");
  request.mutable_stop()->set_include_string(true);
  request.mutable_stop()->add_token_ids(9);
  request.mutable_stop()->add_token_ids(9);
  request.mutable_sampling()->set_temperature(0);
  for (const int32_t token : {3, 1, 2}) {
    auto* bias = request.mutable_sampling()->add_logit_bias();
    bias->set_token(token);
    bias->set_bias(-100);
  }
  auto result = Generation(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->request_id, "a b~");
  EXPECT_EQ(result->seed, 0u);
  EXPECT_EQ(result->n, 64);
  EXPECT_EQ(result->alignment, Alignment::kStart);
  EXPECT_EQ(result->logprobs, 20);
  EXPECT_EQ(result->priority, 3u);
  EXPECT_EQ(result->cache_salt, std::string(256, 's'));
  EXPECT_EQ(result->stream_interval, 1024);
  EXPECT_EQ(result->max_tokens, 7);
  EXPECT_EQ(result->min_tokens, 7);
  EXPECT_THAT(result->stop_ids, ElementsAre(9));
  EXPECT_THAT(result->stop_strings, ElementsAre("\n\n"));
  EXPECT_TRUE(result->include_stop_string);
  EXPECT_EQ(result->sampling.temperature(), 0.0f);
  ASSERT_EQ(result->sampling.logit_bias_size(), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(result->sampling.logit_bias(i).token(), i + 1);
}

TEST_F(ValidateTest, TakesEveryValueAtItsLimit) {
  v1::GenerateRequest request = Prompt({0, 50303});
  request.set_request_id(std::string(128, '~'));
  request.set_cache_salt("s");
  v1::StopConditions& stop = *request.mutable_stop();
  for (int i = 0; i < 16; ++i) stop.add_strings(std::string(256, 'x'));
  for (int i = 0; i < 64; ++i) stop.add_token_ids(50303 - i);
  v1::SamplingParameters& sampling = *request.mutable_sampling();
  sampling.set_top_k(INT32_MAX);
  sampling.set_top_p(1);
  sampling.set_min_p(1);
  sampling.set_presence_penalty(2);
  sampling.set_frequency_penalty(-2);
  for (int i = 0; i < 1024; ++i) {
    v1::LogitBias& bias = *sampling.add_logit_bias();
    bias.set_token(50303 - i);
    bias.set_bias(i % 2 == 0 ? 100 : -100);
  }
  auto result = Generation(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->prompt, ElementsAre(0, 50303));
  EXPECT_EQ(result->stop_strings.size(), 16u);
  EXPECT_EQ(result->stop_ids.size(), 65u) << "and the end of text";
  EXPECT_EQ(result->sampling.top_k(), INT32_MAX);
  EXPECT_EQ(result->sampling.min_p(), 1.0f);
  EXPECT_EQ(result->sampling.presence_penalty(), 2.0f);
  EXPECT_EQ(result->sampling.frequency_penalty(), -2.0f);
  EXPECT_EQ(result->sampling.logit_bias_size(), 1024);
  EXPECT_EQ(result->sampling.logit_bias(1023).token(), 50303);
}

// A request that goes on with a stream of two choices.
v1::GenerateRequest Resumed() {
  v1::GenerateRequest request = Prompt({1, 2, 3});
  request.set_n(2);
  request.mutable_stop()->set_max_tokens(4);
  request.mutable_stop()->add_token_ids(9);
  v1::Started& started = *request.mutable_resume()->mutable_started();
  started.set_request_id("the first");
  started.set_model_id(kModelId);
  started.set_block_numeric_id("f32-b");
  started.set_token_numeric_id("f32-t");
  started.set_seed(77);
  started.set_alignment(v1::ALIGNMENT_START);
  started.set_prompt_tokens(3);
  request.mutable_resume()->add_choices()->add_tokens(5);
  v1::ResumedChoice& over = *request.mutable_resume()->add_choices();
  over.add_tokens(6);
  over.add_tokens(9);
  over.set_finished(true);
  return request;
}

TEST_F(ValidateTest, GoesOnWithAStream) {
  auto result = Generation(Resumed());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->request_id, "the first");
  EXPECT_EQ(result->seed, 77u);
  EXPECT_EQ(result->alignment, Alignment::kStart);
  EXPECT_EQ(result->resume->model_id, kModelId);
  EXPECT_EQ(result->resume->block_numeric_id, "f32-b");
  EXPECT_EQ(result->resume->token_numeric_id, "f32-t");
  EXPECT_THAT(result->resume->choices[0].tokens, ElementsAre(5));
  EXPECT_FALSE(result->resume->choices[0].finished);
  EXPECT_THAT(result->resume->choices[1].tokens, ElementsAre(6, 9));
  EXPECT_TRUE(result->resume->choices[1].finished);
  v1::GenerateRequest same = Resumed();
  same.set_seed(77);
  same.set_alignment(v1::ALIGNMENT_START);
  EXPECT_TRUE(Generation(same).ok());
}

// Half-way through an upgrade to another model, a client that named the model by its id.
TEST_F(ValidateTest, AStreamMayNameTheModelThatBeganIt) {
  v1::GenerateRequest request = Resumed();
  request.mutable_resume()->mutable_started()->set_model_id("older");
  request.set_model("older");
  const auto result = Generation(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->resume->model_id, "older");
  request.set_model("oldest");
  EXPECT_EQ(Generation(request).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ValidateTest, RefusesAResumeThatDoesNotBelongToTheRequest) {
  struct Case {
    const char* field;
    void (*change)(v1::GenerateRequest& request);
  };
  const Case cases[] = {
      {"seed", [](auto& r) { r.set_seed(78); }},
      {"alignment", [](auto& r) { r.set_alignment(v1::ALIGNMENT_END); }},
      {"alignment", [](auto& r) { r.mutable_resume()->mutable_started()->clear_alignment(); }},
      {"alignment",
       [](auto& r) {
         r.mutable_resume()->mutable_started()->set_alignment(static_cast<v1::Alignment>(9));
       }},
      {"model_id", [](auto& r) { r.mutable_resume()->mutable_started()->clear_model_id(); }},
      {"block_numeric_id",
       [](auto& r) { r.mutable_resume()->mutable_started()->clear_block_numeric_id(); }},
      {"token_numeric_id",
       [](auto& r) {
         r.mutable_resume()->mutable_started()->set_token_numeric_id(std::string(257, 'x'));
       }},
      {"prompt_tokens", [](auto& r) { r.mutable_tokens()->add_ids(4); }},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest request = Resumed();
    c.change(request);
    ExpectInvalid(Generation(request), std::string("resume.started.") + c.field);
  }
  const Case choices[] = {
      {"", [](auto& r) { r.mutable_resume()->mutable_choices()->RemoveLast(); }},
      {"", [](auto& r) { r.set_n(1); }},
      {"[0].tokens[0]", [](auto& r) { r.mutable_resume()->mutable_choices(0)->set_tokens(0, -1); }},
      // The table is padded: nobody can have written this id.
      {"[0].tokens[0]",
       [](auto& r) { r.mutable_resume()->mutable_choices(0)->set_tokens(0, 50300); }},
      {"[0].tokens",
       [](auto& r) {
         for (int i = 0; i < 4; ++i) r.mutable_resume()->mutable_choices(0)->add_tokens(5);
       }},
      {"[0].finished", [](auto& r) { r.mutable_resume()->mutable_choices(0)->set_finished(true); }},
      {"[1].tokens", [](auto& r) { r.mutable_resume()->mutable_choices(1)->add_tokens(5); }},
      {"[1].tokens", [](auto& r) { r.mutable_stop()->set_min_tokens(2); }},
      {"[1].tokens",
       [](auto& r) {
         // 6 is "%".
         r.mutable_stop()->add_strings(*TokenizerForTest()->Decode({6}, false));
       }},
  };
  for (const Case& c : choices) {
    v1::GenerateRequest request = Resumed();
    c.change(request);
    ExpectInvalid(Generation(request), std::string("resume.choices") + c.field);
  }
}

TEST_F(ValidateTest, DrawsSeedsAndRequestIds) {
  auto first = Generation(Prompt({1}));
  auto second = Generation(Prompt({1}));
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_NE(first->seed, second->seed);
  EXPECT_NE(first->request_id, second->request_id);
}

TEST_F(ValidateTest, RefusesEveryBadValueNamingItsField) {
  struct Case {
    const char* field;
    void (*change)(v1::GenerateRequest& request);
  };
  const Case cases[] = {
      {"request_id", [](auto& r) { r.set_request_id(std::string(129, 'x')); }},
      {"request_id", [](auto& r) { r.set_request_id("line\nbreak"); }},
      {"request_id", [](auto& r) { r.set_request_id("\xC3\xA4"); }},
      {"priority", [](auto& r) { r.set_priority(static_cast<v1::Priority>(9)); }},
      {"stream_interval", [](auto& r) { r.set_stream_interval(0); }},
      {"stream_interval", [](auto& r) { r.set_stream_interval(1025); }},
      {"cache_salt", [](auto& r) { r.set_cache_salt(""); }},
      {"cache_salt", [](auto& r) { r.set_cache_salt(std::string(257, 's')); }},
      {"alignment", [](auto& r) { r.set_alignment(static_cast<v1::Alignment>(-1)); }},
      {"n", [](auto& r) { r.set_n(0); }},
      {"n", [](auto& r) { r.set_n(65); }},
      {"logprobs", [](auto& r) { r.set_logprobs(-1); }},
      {"logprobs", [](auto& r) { r.set_logprobs(21); }},
      {"prompt.tokens[1]", [](auto& r) { r.mutable_tokens()->add_ids(50304); }},
      {"prompt.tokens[1]", [](auto& r) { r.mutable_tokens()->add_ids(-1); }},
      {"prompt.text", [](auto& r) { r.set_text("\xFF"); }},
      {"prompt", [](auto& r) { r.clear_tokens(); }},
      {"stop.max_tokens", [](auto& r) { r.mutable_stop()->set_max_tokens(0); }},
      {"stop.max_tokens", [](auto& r) { r.mutable_stop()->set_max_tokens(-5); }},
      {"stop.min_tokens", [](auto& r) { r.mutable_stop()->set_min_tokens(-1); }},
      {"stop.min_tokens", [](auto& r) { r.mutable_stop()->set_min_tokens(17); }},
      {"stop.strings",
       [](auto& r) {
         for (int i = 0; i < 17; ++i) r.mutable_stop()->add_strings("x");
       }},
      {"stop.strings[0]", [](auto& r) { r.mutable_stop()->add_strings(""); }},
      {"stop.strings[0]", [](auto& r) { r.mutable_stop()->add_strings(std::string(257, 'x')); }},
      {"stop.strings[0]", [](auto& r) { r.mutable_stop()->add_strings("\xE2\x82"); }},
      {"stop.token_ids",
       [](auto& r) {
         for (int i = 0; i < 65; ++i) r.mutable_stop()->add_token_ids(i);
       }},
      {"stop.token_ids[0]", [](auto& r) { r.mutable_stop()->add_token_ids(50304); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(-0.1f); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(kNan); }},
      {"sampling.temperature", [](auto& r) { r.mutable_sampling()->set_temperature(kInfinity); }},
      {"sampling.top_k", [](auto& r) { r.mutable_sampling()->set_top_k(-1); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(0); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(1.01f); }},
      {"sampling.top_p", [](auto& r) { r.mutable_sampling()->set_top_p(kNan); }},
      {"sampling.min_p", [](auto& r) { r.mutable_sampling()->set_min_p(-0.1f); }},
      {"sampling.min_p", [](auto& r) { r.mutable_sampling()->set_min_p(kNan); }},
      {"sampling.repetition_penalty",
       [](auto& r) { r.mutable_sampling()->set_repetition_penalty(0); }},
      {"sampling.repetition_penalty",
       [](auto& r) { r.mutable_sampling()->set_repetition_penalty(kInfinity); }},
      {"sampling.presence_penalty",
       [](auto& r) { r.mutable_sampling()->set_presence_penalty(2.5f); }},
      {"sampling.frequency_penalty",
       [](auto& r) { r.mutable_sampling()->set_frequency_penalty(kNan); }},
      {"sampling.logit_bias",
       [](auto& r) {
         for (int i = 0; i < 1025; ++i) r.mutable_sampling()->add_logit_bias()->set_token(i);
       }},
      {"sampling.logit_bias[0].token",
       [](auto& r) { r.mutable_sampling()->add_logit_bias()->set_token(50304); }},
      {"sampling.logit_bias[1].token",
       [](auto& r) {
         r.mutable_sampling()->add_logit_bias()->set_token(4);
         r.mutable_sampling()->add_logit_bias()->set_token(4);
       }},
      {"sampling.logit_bias[0].bias",
       [](auto& r) { r.mutable_sampling()->add_logit_bias()->set_bias(100.5f); }},
      {"sampling.logit_bias[0].bias",
       [](auto& r) { r.mutable_sampling()->add_logit_bias()->set_bias(kNan); }},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest request = Prompt({1});
    c.change(request);
    SCOPED_TRACE(request.ShortDebugString());
    ExpectInvalid(Generation(request), c.field);
  }
}

TEST_F(ValidateTest, TakesAnEmptyPromptForTheBeginningOfText) {
  v1::GenerateRequest empty_text;
  empty_text.set_text("");
  v1::GenerateRequest empty_tokens;
  empty_tokens.mutable_tokens();
  for (const v1::GenerateRequest& request : {empty_text, empty_tokens}) {
    auto result = Generation(request);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->prompt, ElementsAre(0));
  }
}

TEST_F(ValidateTest, EncodesText) {
  v1::GenerateRequest request;
  request.set_text("Hello world");
  auto result = Generation(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->prompt, ElementsAre(12092, 1533));
}

TEST_F(ValidateTest, ATextThatCannotFitWhateverItsTokensAreIsToldAsTooLong) {
  std::string text;
  for (int i = 0; i < 300'000; ++i) text += "the";
  const auto expect_too_long = [&](const absl::Status& status, absl::string_view field) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(IsContextLengthExceeded(status));
    EXPECT_THAT(std::string(status.message()), StartsWith(absl::StrCat(field, ": 900000 bytes")));
    EXPECT_THAT(std::string(status.message()), HasSubstr("model's maximum context length is "));
  };
  v1::GenerateRequest generate;
  generate.set_text(text);
  expect_too_long(Generation(generate).status(), "prompt.text");
  v1::ScoreRequest score;
  score.set_context_text(text);
  score.set_continuation_text("a");
  expect_too_long(Scoring(score).status(), "context_text");
  score.set_context_text("a");
  score.set_continuation_text(text);
  expect_too_long(Scoring(score).status(), "continuation_text");
  // Where positions are not limited, and where nothing is done but to tokenize, nothing is too
  // long.
  const RequestValidator beyond(Config(), TokenizerForTest(), {"tiny", true});
  EXPECT_TRUE(beyond.Generation(generate, kModelId, absl::InfiniteFuture()).ok());
  v1::TokenizeRequest tokenize;
  tokenize.set_text(text);
  EXPECT_TRUE(WithTokenizer().Tokenize(tokenize, kModelId).ok());
}

TEST_F(ValidateTest, ShowsAValueJustBeyondABoundAsSuch) {
  v1::GenerateRequest request = Prompt({1});
  request.mutable_sampling()->set_top_p(std::nextafter(1.0f, 2.0f));
  EXPECT_THAT(std::string(Generation(request).status().message()), HasSubstr("not 1.0000001"));
}

TEST_F(ValidateTest, BoundsTheTextOfIds) {
  constexpr int32_t kSpaces = 19979;
  const int bytes = static_cast<int>(TokenizerForTest()->TokenBytes(kSpaces).size());
  ASSERT_EQ(bytes, 512);
  v1::DetokenizeRequest request;
  request.mutable_tokens()->Resize(static_cast<int>(kMaxDetokenizedBytes) / bytes, kSpaces);
  const absl::StatusOr<v1::DetokenizeResponse> longest =
      WithTokenizer().Detokenize(request, kModelId);
  ASSERT_TRUE(longest.ok()) << longest.status();
  EXPECT_EQ(longest->text().size(), kMaxDetokenizedBytes);
  request.add_tokens(kSpaces);
  ExpectInvalid(WithTokenizer().Detokenize(request, kModelId), "tokens");
}

TEST_F(ValidateTest, NeedsATokenizerForText) {
  v1::GenerateRequest text;
  text.set_text("Hello");
  v1::GenerateRequest stop = Prompt({1});
  stop.mutable_stop()->add_strings("x");
  const RequestValidator validator = WithoutTokenizer();
  ExpectInvalid(validator.Generation(text, kModelId, absl::InfiniteFuture()), "prompt.text");
  ExpectInvalid(validator.Generation(stop, kModelId, absl::InfiniteFuture()), "stop.strings[0]");
  v1::ScoreRequest score;
  score.set_continuation_text("Hello");
  ExpectInvalid(validator.Scoring(score, kModelId, absl::InfiniteFuture()), "continuation_text");
  EXPECT_EQ(validator.Tokenize({}, kModelId).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(validator.Detokenize({}, kModelId).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ValidateTest, RefusesTextsBeyondThePositionsWithTheNumbers) {
  // 2048 positions of 4 tokens: the last block is written, not embedded.
  v1::GenerateRequest request;
  for (int i = 0; i < 8184; ++i) request.mutable_tokens()->add_ids(1);
  request.mutable_stop()->set_max_tokens(12);
  EXPECT_TRUE(Generation(request).ok()) << Generation(request).status();
  request.mutable_stop()->set_max_tokens(13);
  ExpectInvalid(Generation(request), "stop.max_tokens");
  EXPECT_THAT(std::string(Generation(request).status().message()),
              AllOf(HasSubstr("8184"), HasSubstr("13"), HasSubstr("2049"), HasSubstr("2048")));
  for (int i = 0; i < 16; ++i) request.mutable_tokens()->add_ids(1);
  ExpectInvalid(Generation(request), "prompt.tokens");
  const RequestValidator generous(Config(), TokenizerForTest(), {"tiny", true});
  EXPECT_TRUE(generous.Generation(request, kModelId, absl::InfiniteFuture()).ok());
}

TEST_F(ValidateTest, CountsThePadsOfTheAlignment) {
  v1::GenerateRequest request;
  for (int i = 0; i < 8192; ++i) request.mutable_tokens()->add_ids(1);
  request.mutable_stop()->set_max_tokens(4);
  request.set_alignment(v1::ALIGNMENT_END);
  EXPECT_TRUE(Generation(request).ok());
  request.set_alignment(v1::ALIGNMENT_NONE);
  EXPECT_TRUE(Generation(request).ok());
  request.set_alignment(v1::ALIGNMENT_START);  // three pads in front
  ExpectInvalid(Generation(request), "stop.max_tokens");
  request.mutable_stop()->set_max_tokens(1);
  EXPECT_TRUE(Generation(request).ok());
}

TEST_F(ValidateTest, KnowsTheModelByNameAndById) {
  v1::GenerateRequest request = Prompt({1});
  for (const std::string model : {"", "tiny", kModelId}) {
    request.set_model(model);
    const auto result = Generation(request);
    ASSERT_TRUE(result.ok()) << model;
    // By its id it means no other.
    EXPECT_EQ(result->model_id, model == kModelId ? kModelId : "");
  }
  request.set_model("other");
  EXPECT_EQ(Generation(request).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Generation(request).status().message()),
              AllOf(HasSubstr("\"other\""), HasSubstr("\"tiny\""), HasSubstr(kModelId)));
}

TEST_F(ValidateTest, ScoresAContinuationAfterAContextWithTheModelsAlignment) {
  v1::ScoreRequest request;
  request.mutable_context_tokens()->add_ids(5);
  request.mutable_context_tokens()->add_ids(6);
  request.mutable_continuation_tokens()->add_ids(7);
  auto result = Scoring(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->tokens, ElementsAre(5, 6, 7));
  EXPECT_EQ(result->first_scored, 2);
  EXPECT_EQ(result->alignment, Alignment::kEnd);
}

TEST_F(ValidateTest, ScoresATextByItselfWithAlignmentStart) {
  v1::ScoreRequest request;
  request.set_continuation_text("Hello world");
  auto result = Scoring(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->tokens, ElementsAre(12092, 1533));
  EXPECT_EQ(result->first_scored, 0);
  EXPECT_EQ(result->alignment, Alignment::kStart);
}

TEST_F(ValidateTest, TakesAnEmptyContextForTheBeginningOfText) {
  v1::ScoreRequest request;
  request.set_context_text("");
  request.mutable_continuation_tokens()->add_ids(7);
  auto result = Scoring(request);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->tokens, ElementsAre(0, 7));
  EXPECT_EQ(result->first_scored, 1);
}

TEST_F(ValidateTest, AsksForNoMoreLogprobsThanThereAreIds) {
  ModelConfig config = Config();
  config.vocab_size = 15;
  const RequestValidator validator(config, nullptr, {"tiny", false});
  v1::GenerateRequest generation = Prompt({1});
  generation.set_logprobs(20);
  const auto generating = validator.Generation(generation, kModelId, absl::InfiniteFuture());
  ASSERT_TRUE(generating.ok()) << generating.status();
  EXPECT_EQ(generating->logprobs, 15);
  v1::ScoreRequest score;
  score.mutable_continuation_tokens()->add_ids(1);
  score.mutable_continuation_tokens()->add_ids(2);
  score.set_top_logprobs(20);
  const auto scoring = validator.Scoring(score, kModelId, absl::InfiniteFuture());
  ASSERT_TRUE(scoring.ok()) << scoring.status();
  EXPECT_EQ(scoring->top_logprobs, 15);
}

TEST_F(ValidateTest, RefusesBadScoringRequests) {
  ExpectInvalid(Scoring({}), "continuation");
  v1::ScoreRequest request;
  request.mutable_context_tokens()->add_ids(1);
  request.mutable_continuation_tokens();
  ExpectInvalid(Scoring(request), "continuation_tokens");
  request.mutable_continuation_tokens()->add_ids(99999);
  ExpectInvalid(Scoring(request), "continuation_tokens[0]");
  request.mutable_continuation_tokens()->set_ids(0, 1);
  request.set_top_logprobs(21);
  ExpectInvalid(Scoring(request), "top_logprobs");
  request.set_top_logprobs(0);
  request.mutable_context_tokens()->set_ids(0, -3);
  ExpectInvalid(Scoring(request), "context_tokens[0]");
  request.set_context_text("\xC0\x80");
  ExpectInvalid(Scoring(request), "context_text");
  request.mutable_context_tokens()->add_ids(1);
  for (int i = 0; i < 9000; ++i) request.mutable_continuation_tokens()->add_ids(1);
  ExpectInvalid(Scoring(request), "continuation_tokens");
}

TEST_F(ValidateTest, TokenizesAndDetokenizes) {
  const RequestValidator validator = WithTokenizer();
  v1::TokenizeRequest tokenize;
  tokenize.set_text("Hello world<|endoftext|>");
  auto tokens = validator.Tokenize(tokenize, kModelId);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_THAT(tokens->tokens(), ElementsAre(12092, 1533, 0));
  v1::DetokenizeRequest detokenize;
  *detokenize.mutable_tokens() = tokens->tokens();
  EXPECT_EQ(validator.Detokenize(detokenize, kModelId)->text(), tokenize.text());
  detokenize.set_skip_special_tokens(true);
  EXPECT_EQ(validator.Detokenize(detokenize, kModelId)->text(), "Hello world");
  detokenize.add_tokens(-1);
  ExpectInvalid(validator.Detokenize(detokenize, kModelId), "tokens[3]");
}

TEST_F(ValidateTest, DescribesTheModel) {
  v1::GetModelResponse response;
  WithTokenizer().FillModel(response);
  EXPECT_EQ(response.name(), "tiny");
  EXPECT_EQ(response.kind(), "block_transformer");
  EXPECT_EQ(response.block_length(), 4);
  EXPECT_EQ(response.max_tokens(), 8192);
  EXPECT_EQ(response.default_alignment(), v1::ALIGNMENT_END);
  EXPECT_TRUE(response.has_tokenizer());
  EXPECT_LT(WithTokenizer().vocab_limit(), 50304);
  EXPECT_EQ(WithoutTokenizer().vocab_limit(), 50304);
}

TEST(RequestDeadline, IsTheCallsOrTenMinutesByTheCoresClock) {
  const absl::Time core = absl::FromUnixSeconds(2'000'000'000);
  EXPECT_EQ(RequestDeadline(absl::InfiniteDuration(), core), core + absl::Minutes(10));
  EXPECT_EQ(RequestDeadline(absl::Seconds(3), core), core + absl::Seconds(3));
  EXPECT_EQ(RequestDeadline(absl::Seconds(-3), core), core - absl::Seconds(3));
}

}  // namespace
}  // namespace blockserve
