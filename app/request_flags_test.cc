#include "app/request_flags.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

absl::StatusOr<v1::GenerateRequest> Generate(const std::vector<std::string>& arguments) {
  GenerateFlags request;
  FlagTable table;
  request.AddFlags(table);
  if (absl::Status status = table.Parse(arguments); !status.ok()) return status;
  return request.Request();
}

absl::StatusOr<v1::ScoreRequest> Score(const std::vector<std::string>& arguments) {
  ScoreFlags request;
  FlagTable table;
  request.AddFlags(table);
  if (absl::Status status = table.Parse(arguments); !status.ok()) return status;
  return request.Request();
}

TEST(GenerateFlags, AreGreedyAndLeaveTheRestToTheServer) {
  auto request = Generate({"--prompt-tokens=1,2"});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->tokens().ids(), ElementsAre(1, 2));
  EXPECT_EQ(request->sampling().temperature(), 0.0f);
  EXPECT_FALSE(request->sampling().has_top_p());
  EXPECT_FALSE(request->has_seed());
  EXPECT_FALSE(request->has_logprobs());
  EXPECT_FALSE(request->has_cache_salt());
  EXPECT_FALSE(request->stop().include_string());
  EXPECT_EQ(request->alignment(), v1::ALIGNMENT_UNSPECIFIED);
  EXPECT_EQ(request->priority(), v1::PRIORITY_UNSPECIFIED);
  EXPECT_EQ(request->n(), 1);
}

TEST(GenerateFlags, ReachTheRequest) {
  auto request = Generate({"--prompt=",
                           "--max-tokens=5",
                           "--min-tokens=2",
                           "--temperature=0.7",
                           "--top-k=3",
                           "--top-p=0.9",
                           "--min-p=0.1",
                           "--repetition-penalty=1.1",
                           "--presence-penalty=0.2",
                           "--frequency-penalty=-0.3",
                           "--seed=9",
                           "--n=2",
                           "--stop=a",
                           "--stop=b",
                           "--include-stop-string",
                           "--stop-tokens=7",
                           "--ignore-eos",
                           "--logprobs=4",
                           "--alignment=none",
                           "--priority=batch",
                           "--cache-salt=ours",
                           "--logit-bias=5:-1.5"});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE(request->has_text());
  EXPECT_EQ(request->stop().max_tokens(), 5);
  EXPECT_EQ(request->stop().min_tokens(), 2);
  EXPECT_THAT(request->stop().strings(), ElementsAre("a", "b"));
  EXPECT_THAT(request->stop().token_ids(), ElementsAre(7));
  EXPECT_TRUE(request->stop().include_string());
  EXPECT_TRUE(request->stop().ignore_eos());
  EXPECT_EQ(request->sampling().temperature(), 0.7f);
  EXPECT_EQ(request->sampling().top_k(), 3);
  EXPECT_EQ(request->sampling().top_p(), 0.9f);
  EXPECT_EQ(request->sampling().min_p(), 0.1f);
  EXPECT_EQ(request->sampling().repetition_penalty(), 1.1f);
  EXPECT_EQ(request->sampling().presence_penalty(), 0.2f);
  EXPECT_EQ(request->sampling().frequency_penalty(), -0.3f);
  EXPECT_EQ(request->sampling().logit_bias(0).token(), 5);
  EXPECT_EQ(request->sampling().logit_bias(0).bias(), -1.5f);
  EXPECT_EQ(request->seed(), 9u);
  EXPECT_EQ(request->n(), 2);
  EXPECT_EQ(request->logprobs(), 4);
  EXPECT_EQ(request->alignment(), v1::ALIGNMENT_NONE);
  EXPECT_EQ(request->cache_salt(), "ours");
}

TEST(GenerateFlags, NameWhatIsMissingOrWrong) {
  for (const auto& [arguments, words] :
       std::vector<std::pair<std::vector<std::string>, std::string>>{
           {{}, "--prompt"},
           {{"--prompt=a", "--prompt-tokens=1"}, "exclude"},
           {{"--prompt=\xFF"}, "--prompt is not valid UTF-8"},
           {{"--prompt=a", "--stop=\xFF"}, "--stop is not valid UTF-8"},
           {{"--prompt=a", "--cache-salt=\xFF"}, "--cache-salt is not valid UTF-8"},
           {{"--prompt=a", "--logit-bias=5"}, "--logit-bias"},
           {{"--prompt=a", "--top-p=0.5"}, "--top-p has no effect with --temperature 0"},
           {{"--prompt=a", "--temperature=0", "--top-k=5"}, "--top-k"},
           {{"--prompt=a", "--min-p=0.1"}, "--min-p"},
           {{"--prompt=a", "--include-stop-string"}, "--include-stop-string needs --stop"},
           {{"--prompt=a", "--alignment=left"}, "--alignment"}}) {
    auto request = Generate(arguments);
    EXPECT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(request.status().message()), HasSubstr(words));
  }
}

TEST(NamingTheFlag, PutsItInThePlaceOfTheField) {
  const auto named = [](absl::string_view message) {
    return std::string(NamingTheFlag(absl::InvalidArgumentError(message)).message());
  };
  EXPECT_EQ(named("stop.max_tokens: must be at least 1"), "--max-tokens: must be at least 1");
  EXPECT_EQ(named("sampling.top_p: x"), "--top-p: x");
  EXPECT_EQ(named("prompt.tokens[3]: x"), "--prompt-tokens[3]: x");
  EXPECT_EQ(named("stop.token_ids[0]: x"), "--stop-tokens[0]: x");
  EXPECT_EQ(named("n: x"), "--n: x");
  EXPECT_EQ(named("the model is not: here"), "the model is not: here");
  EXPECT_EQ(NamingTheFlag(absl::InternalError("n: x")).message(), "n: x");
}

TEST(ScoreFlags, MakeAPromptTheContextOfAContinuation) {
  auto request = Score({"--prompt=a", "--continuation-tokens=3,4", "--top-logprobs=2",
                        "--alignment=end", "--cache-salt="});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->context_text(), "a");
  EXPECT_THAT(request->continuation_tokens().ids(), ElementsAre(3, 4));
  EXPECT_EQ(request->top_logprobs(), 2);
  EXPECT_EQ(request->alignment(), v1::ALIGNMENT_END);
  EXPECT_TRUE(request->has_cache_salt()) << "an empty one is for the server to refuse";
}

TEST(ScoreFlags, ScoreAPromptAloneByItself) {
  auto request = Score({"--prompt-tokens=1,2"});
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->context_case(), v1::ScoreRequest::CONTEXT_NOT_SET);
  EXPECT_THAT(request->continuation_tokens().ids(), ElementsAre(1, 2));
  EXPECT_EQ(request->alignment(), v1::ALIGNMENT_UNSPECIFIED);
}

TEST(ScoreFlags, NameWhatIsMissing) {
  EXPECT_THAT(std::string(Score({}).status().message()), HasSubstr("--prompt"));
  EXPECT_THAT(
      std::string(
          Score({"--prompt=a", "--continuation=b", "--continuation-tokens=1"}).status().message()),
      HasSubstr("--continuation"));
}

}  // namespace
}  // namespace blockserve
