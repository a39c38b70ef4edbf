#include "gateway/http/completion_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gateway/http/front_fixture.h"
#include "gateway/manual_loop.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

using Json = nlohmann::json;

class CompletionCallTest : public testing::Test {
 protected:
  CompletionCallTest() {
    job_.request_id = "r";
    job_.head.id = "cmpl-r";
    AddPrompt();
  }
  ~CompletionCallTest() override {
    if (!exchange_->over()) exchange_->Lose(HttpLoss::kServerStops);  // a call keeps its exchange
  }
  // Another call, of two prompts; what it has, and the id of the first one's generation.
  std::pair<std::shared_ptr<FakeExchange>, GenerationId> StartTwo(bool stream) {
    core_.cancelled.clear();
    const GenerationId first = core_.last_id + 1;
    job_.wanted.stream = stream;
    if (job_.prompts.size() == 1) AddPrompt();
    const auto exchange = std::make_shared<FakeExchange>(loop_);
    CompletionCall::Start(&core_, nullptr, exchange, job_);
    return {exchange, first};
  }
  HttpPromptJob& AddPrompt() {
    HttpPromptJob& prompt = job_.prompts.emplace_back();
    prompt.ids = {1, 2};
    prompt.generation.emplace();
    return prompt;
  }
  void Start() {
    CompletionCall::Start(&core_, nullptr, exchange_, job_);
    loop_.RunReady();
  }
  GenerationSink& sink(GenerationId id) { return *core_.generations.at(id); }

  // One letter, of one token.
  void Write(GenerationId id, char letter, bool last = false) {
    v1::Output output;
    output.add_tokens(letter);
    output.set_text(std::string(1, letter));
    sink(id).OnOutput(std::move(output), {{1}, last});
  }
  void End(GenerationId id, absl::Status status = absl::OkStatus()) {
    if (status.ok()) {
      v1::Finished finished;
      finished.set_reason(v1::FINISH_REASON_LENGTH);
      sink(id).OnFinished(std::move(finished));
    }
    v1::Usage usage;
    usage.set_completion_tokens(2);
    sink(id).OnDone(std::move(status), std::move(usage));
  }

  ManualLoop loop_;
  FakeCore core_;
  const std::shared_ptr<FakeExchange> exchange_ = std::make_shared<FakeExchange>(loop_);
  HttpCompletionJob job_;
};

TEST_F(CompletionCallTest, AWholeAnswerWaitsForEveryPrompt) {
  AddPrompt();
  Start();
  for (const GenerationId id : {2, 1}) {
    EXPECT_EQ(exchange_->posts, 2 - static_cast<int>(id)) << "a whole answer needs no more";
    sink(id).OnStarted({});
    Write(id, 'a');
    Write(id, id == 1 ? 'b' : 'c', /*last=*/true);
    EXPECT_TRUE(sink(id).WantsMore());
    End(id);
    loop_.RunReady();
  }
  ASSERT_TRUE(exchange_->response.has_value());
  EXPECT_THAT(exchange_->response->headers,
              ElementsAre(std::pair<std::string, std::string>(kRequestIdHeader, "r")));
  const Json answer = Json::parse(exchange_->response->body);
  EXPECT_EQ(answer["choices"][0]["text"], "ab");
  EXPECT_EQ(answer["choices"][1]["text"], "ac");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 4);
  EXPECT_THAT(core_.cancelled, IsEmpty());
}

TEST_F(CompletionCallTest, AStreamBeginsWithItsFirstEvent) {
  job_.wanted.stream = true;
  Start();
  sink(1).OnStarted({});
  loop_.RunReady();
  EXPECT_FALSE(exchange_->head.has_value()) << "it may yet be an error";
  Write(1, 'a');
  loop_.RunReady();
  ASSERT_TRUE(exchange_->head.has_value());
  EXPECT_EQ(exchange_->head->content_type, "text/event-stream; charset=utf-8");
  EXPECT_THAT(exchange_->stream, HasSubstr("\"text\":\"a\""));
  Write(1, 'b', /*last=*/true);
  End(1);
  loop_.RunReady();
  EXPECT_TRUE(exchange_->ended);
  EXPECT_THAT(exchange_->stream, HasSubstr("\"text\":\"b\""));
  EXPECT_TRUE(absl::EndsWith(exchange_->stream, "data: [DONE]\n\n"));
}

TEST_F(CompletionCallTest, AnErrorOfOnePromptIsTheEndOfAll) {
  for (const bool stream : {false, true}) {
    const auto [exchange, first] = StartTwo(stream);
    Write(first, 'a');
    if (stream) loop_.RunReady();
    End(first + 1, absl::UnavailableError("prompt: gone"));
    loop_.RunReady();
    EXPECT_EQ(core_.cancelled.size(), 1u);
    EXPECT_EQ(core_.cancelled[first], absl::UnavailableError("prompt[1]: gone"));
    if (stream) {
      EXPECT_TRUE(exchange->ended);
      EXPECT_THAT(exchange->stream, HasSubstr("\"text\":\"a\""));
      EXPECT_THAT(exchange->stream, HasSubstr("\"message\":\"prompt[1]: gone\""));
      EXPECT_THAT(exchange->stream, Not(HasSubstr("[DONE]")));
    } else {
      ASSERT_TRUE(exchange->response.has_value());
      EXPECT_EQ(exchange->response->status, 503);
      EXPECT_EQ(exchange->response->headers.back().second, "r");
    }
    Write(first, 'b');
    End(first);
    loop_.RunReady();
  }
}

TEST_F(CompletionCallTest, TheEventsBeforeAnErrorAreTold) {
  job_.wanted.stream = true;
  Start();
  Write(1, 'a');
  End(1, absl::InternalError("broken"));
  loop_.RunReady();
  EXPECT_TRUE(exchange_->ended);
  EXPECT_LT(exchange_->stream.find("\"text\":\"a\""), exchange_->stream.find("broken"));
}

TEST_F(CompletionCallTest, WhatALostClientAskedForIsCancelled) {
  for (const HttpLoss loss :
       {HttpLoss::kClientGone, HttpLoss::kClientSlow, HttpLoss::kServerStops}) {
    for (const bool stream : {false, true}) {
      const auto [exchange, first] = StartTwo(stream);
      End(first);  // heard of later than the loss
      exchange->Lose(loss);
      loop_.RunReady();
      ASSERT_EQ(core_.cancelled.size(), 2u);
      EXPECT_EQ(core_.cancelled[first + 1], loss == HttpLoss::kServerStops
                                                ? absl::UnavailableError("the gateway is stopping")
                                                : absl::CancelledError("the client has gone"));
      Write(first + 1, 'a', /*last=*/true);
      End(first + 1);
      loop_.RunReady();
      EXPECT_FALSE(exchange->response.has_value() || exchange->ended);
      core_.generations.clear();
      EXPECT_EQ(exchange.use_count(), 1) << "nothing keeps the call";
    }
  }
}

TEST_F(CompletionCallTest, AReaderWhoIsBehindHoldsTheCoreBack) {
  job_.wanted.stream = true;
  AddPrompt();
  Start();
  for (int i = 1; i < CompletionCall::kWindow; ++i) Write(1, 'a');
  EXPECT_TRUE(sink(2).WantsMore());
  Write(2, 'a');
  EXPECT_FALSE(sink(1).WantsMore());
  loop_.RunReady();
  EXPECT_FALSE(sink(1).WantsMore()) << "it is written, and has not left";
  Write(1, 'b');
  loop_.RunReady();
  EXPECT_THAT(core_.resumed, IsEmpty());
  exchange_->Drain();
  EXPECT_THAT(core_.resumed, ElementsAre(1, 2));
  EXPECT_TRUE(sink(1).WantsMore());
  exchange_->Drain();
  Write(1, 'b');
  loop_.RunReady();
  exchange_->Drain();
  EXPECT_EQ(core_.resumed.size(), 2u) << "once";
  // One that has ended is not asked to go on.
  Write(1, 'c', /*last=*/true);
  End(1);
  for (int i = 0; i < CompletionCall::kWindow; ++i) Write(2, 'a');
  EXPECT_FALSE(sink(2).WantsMore());
  loop_.RunReady();
  core_.resumed.clear();
  exchange_->Drain();
  EXPECT_THAT(core_.resumed, ElementsAre(2));
}

TEST_F(CompletionCallTest, TheCoreGoesOnWhenHalfOfWhatWaitedHasLeft) {
  job_.wanted.stream = true;
  Start();
  Write(1, 'a');
  loop_.RunReady();  // on its way
  for (int i = 1; i < CompletionCall::kWindow; ++i) Write(1, 'a');
  EXPECT_FALSE(sink(1).WantsMore());
  exchange_->Drain();
  EXPECT_THAT(core_.resumed, IsEmpty()) << "15 of 16 wait";
  loop_.RunReady();
  exchange_->Drain();
  EXPECT_THAT(core_.resumed, ElementsAre(1));
}

TEST_F(CompletionCallTest, WhatTheClientHasFromBeforeHoldsNobodyBack) {
  job_.wanted.stream = true;
  job_.resume = HttpEventId{"r", 0, "", "", {100}};
  Start();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(sink(1).WantsMore()) << i;
    Write(1, 'a');
    loop_.RunReady();
  }
  EXPECT_FALSE(exchange_->head.has_value());
  Write(1, 'b');
  loop_.RunReady();
  EXPECT_THAT(exchange_->stream, HasSubstr("\"text\":\"b\""));
}

TEST_F(CompletionCallTest, AStreamThatEndsBeforeItsClientSaysIsAnError) {
  job_.wanted.stream = true;
  job_.resume = HttpEventId{"r", 0, "", "", {3}};
  AddPrompt();
  job_.resume->tokens = {3, 0};
  Start();
  Write(1, 'a', /*last=*/true);
  End(1);
  loop_.RunReady();
  ASSERT_TRUE(exchange_->response.has_value());
  EXPECT_EQ(exchange_->response->status, 400);
  EXPECT_EQ(core_.cancelled.count(2), 1u);
}

TEST_F(CompletionCallTest, WhatIsEchoedIsScoredAndThenGoneOnWith) {
  job_.wanted.echo = true;
  job_.prompts[0].text = "echo";
  job_.prompts[0].scoring.emplace();
  Start();
  ASSERT_EQ(core_.scorings.size(), 1u);
  EXPECT_THAT(core_.generations, IsEmpty());
  v1::ScoreResponse scored;
  scored.set_block_numeric_id("b");
  scored.set_token_numeric_id("t");
  core_.scorings.at(1)->OnDone(scored);
  loop_.RunReady();
  ASSERT_EQ(core_.generations.count(2), 1u);
  Write(2, 'a', /*last=*/true);
  End(2);
  loop_.RunReady();
  const Json answer = Json::parse(exchange_->response->body);
  EXPECT_EQ(answer["choices"][0]["text"], "echoa");
  EXPECT_EQ(answer["system_fingerprint"], "b/t");
}

TEST_F(CompletionCallTest, WhatCannotBeScoredIsNotGoneOnWith) {
  job_.prompts[0].scoring.emplace();
  Start();
  core_.scorings.at(1)->OnDone(absl::ResourceExhaustedError("full"));
  loop_.RunReady();
  EXPECT_EQ(exchange_->response->status, 429);
  EXPECT_THAT(core_.generations, IsEmpty());
  EXPECT_THAT(core_.cancelled, IsEmpty()) << "it has ended by itself";
}

TEST_F(CompletionCallTest, AnEchoAloneAsksNobody) {
  job_.wanted.echo = true;
  job_.prompts[0].text = "echo";
  job_.prompts[0].generation.reset();
  job_.model.set_block_numeric_id("b");
  job_.model.set_token_numeric_id("t");
  Start();
  EXPECT_EQ(core_.last_id, 0u);
  ASSERT_TRUE(exchange_->response.has_value());
  const Json answer = Json::parse(exchange_->response->body);
  EXPECT_EQ(answer["choices"][0]["text"], "echo");
  EXPECT_EQ(answer["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(answer["system_fingerprint"], "b/t");
}

}  // namespace
}  // namespace blockserve
