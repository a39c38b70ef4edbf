#include "gateway/http/api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"
#include "gateway/http/front_fixture.h"
#include "gateway/tokenizer_for_test.h"
#include "gateway/validate.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;

using Json = nlohmann::json;

// Runs on the test's thread what any thread has posted.
class PostedLoop final : public Loop {
 public:
  absl::Time Now() const override { return absl::UnixEpoch(); }
  void Post(std::function<void()> task) override {
    MutexLock lock(&mutex_);
    posted_.push_back(std::move(task));
    changed_.SignalAll();
  }
  void PostAfter(absl::Duration, std::function<void()>) override { FAIL(); }
  // The next one, once there is one.
  void RunNext() {
    std::function<void()> task;
    {
      MutexLock lock(&mutex_);
      while (posted_.empty()) changed_.Wait(&mutex_);
      task = std::move(posted_.front());
      posted_.pop_front();
    }
    task();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> posted_ ABSL_GUARDED_BY(mutex_);
};

class HttpApiTest : public testing::Test {
 protected:
  HttpApiTest() : validator_(Config(), TokenizerForTest(), {"tiny", false}) {}
  ~HttpApiTest() override {
    if (api_.has_value()) api_->Stop();
  }

  static ModelConfig Config() {
    ModelConfig config = LoadModelConfig("tests/golden/concat_l4").value();
    config.vocab_size = 50304;
    return config;
  }
  HttpApi& api() {
    if (!api_.has_value()) {
      HttpBackend backend;
      backend.core = backend.probe_core = &core_;
      backend.validator = &validator_;
      backend.chat_format = absl::NotFoundError("messages: this model has no chat format");
      api_.emplace(options_, std::move(backend));
    }
    return *api_;
  }
  std::shared_ptr<FakeExchange> Exchange(const std::string& method, const std::string& path,
                                         std::string body = "") {
    const auto exchange = std::make_shared<FakeExchange>(loop_);
    exchange->request().method = method;
    exchange->request().path = path;
    exchange->request().body = std::move(body);
    return exchange;
  }
  // The answer to what is answered at once.
  HttpResponse Ask(const std::string& method, const std::string& path, std::string body = "") {
    const auto exchange = Exchange(method, path, std::move(body));
    api().Handle(exchange);
    EXPECT_TRUE(exchange->response.has_value()) << method << " " << path;
    return exchange->response.value_or(HttpResponse());
  }
  // What `request` is answered whatever its body is; 0: that depends.
  int OfHead(const HttpRequest& request) {
    const std::optional<HttpResponse> refusal = api().CheckHead(request, nullptr);
    return refusal.has_value() ? refusal->status : 0;
  }
  static HttpRequest Head(const std::string& method, const std::string& path) {
    HttpRequest request;
    request.method = method;
    request.path = path;
    return request;
  }
  static std::string HeaderOf(const HttpResponse& response, absl::string_view name) {
    for (const auto& [key, value] : response.headers) {
      if (key == name) return value;
    }
    return "";
  }
  static std::string MessageOf(const HttpResponse& response) {
    return Json::parse(response.body)["error"]["message"].get<std::string>();
  }

  PostedLoop loop_;
  FakeCore core_;
  RequestValidator validator_;
  HttpApiOptions options_;
  std::optional<HttpApi> api_;
};

TEST_F(HttpApiTest, HeadsDecideWhatNeedsNoBody) {
  EXPECT_EQ(OfHead(Head("POST", "/v1/completions")), 0);
  EXPECT_EQ(OfHead(Head("OPTIONS", "/v1/completions")), 0);
  EXPECT_EQ(OfHead(Head("OPTIONS", "*")), 0);
  EXPECT_EQ(OfHead(Head("GET", "*")), 404);
  EXPECT_EQ(OfHead(Head("GET", "/health")), 0);
  EXPECT_EQ(OfHead(Head("HEAD", "/health")), 0);
  EXPECT_EQ(OfHead(Head("GET", "/v1/models/a/b")), 0);
  EXPECT_EQ(OfHead(Head("POST", "/v1/models/a")), 405);
  EXPECT_EQ(OfHead(Head("GET", "/v1/completions")), 405);
  EXPECT_EQ(OfHead(Head("HEAD", "/v1/completions")), 405);
  EXPECT_EQ(OfHead(Head("POST", "/health")), 405);
  EXPECT_EQ(OfHead(Head("POST", "/v1/complete")), 404);
  EXPECT_EQ(OfHead(Head("OPTIONS", "/nowhere")), 404);
  HttpRequest packed = Head("POST", "/v1/completions");
  packed.fields.set("Content-Encoding", "gzip");
  EXPECT_EQ(OfHead(packed), 415);
  packed.fields.set("Content-Encoding", "Identity");
  EXPECT_EQ(OfHead(packed), 0);
  EXPECT_EQ(HeaderOf(Ask("GET", "/tokenize"), "Allow"), "POST, OPTIONS");
  EXPECT_EQ(HeaderOf(Ask("DELETE", "/v1/models"), "Allow"), "GET, HEAD, OPTIONS");
}

TEST_F(HttpApiTest, KeysAreAskedForWhereThereIsSomethingToSee) {
  options_.authenticate = [](absl::string_view header) -> absl::StatusOr<std::string> {
    if (header == "Bearer good") return std::string("name");
    return absl::UnauthenticatedError("no such key");
  };
  for (const char* path : {"/health", "/ready", "/version", "/"}) {
    EXPECT_EQ(OfHead(Head("GET", path)), 0) << path;
  }
  for (const char* path :
       {"/v1/models", "/v1/models/a", "/status", "/metrics", "/tokenizer_info"}) {
    EXPECT_EQ(OfHead(Head("GET", path)), 401) << path;
  }
  for (const char* path : {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"}) {
    HttpRequest request = Head("POST", path);
    EXPECT_EQ(OfHead(request), 401) << path;
    request.fields.set("Authorization", "Bearer good");
    std::string name;
    EXPECT_FALSE(api().CheckHead(request, &name).has_value()) << path;
    EXPECT_EQ(name, "name");
  }
  // Counted, and told in the log: once each, and only what is counted otherwise.
  ASSERT_EQ(core_.refused.size(), 4u);
  EXPECT_EQ(core_.refused[1].method, RequestMethod::kGenerate);
  EXPECT_EQ(core_.refused[2].method, RequestMethod::kTokenize);
  EXPECT_TRUE(absl::IsUnauthenticated(core_.refused[3].status));
  const HttpResponse answer = Ask("POST", "/v1/completions", R"({"prompt":"a"})");
  EXPECT_EQ(answer.status, 401);
  EXPECT_EQ(core_.last_id, 0u);
  ASSERT_EQ(core_.refused.size(), 5u);
  EXPECT_EQ(core_.refused[4].request_id.size(), 32u);
  EXPECT_EQ(HeaderOf(answer, kRequestIdHeader), core_.refused[4].request_id);
}

TEST_F(HttpApiTest, BrowsersAreToldWhoMayAskWhat) {
  const HttpResponse closed = Ask("OPTIONS", "/v1/completions");
  EXPECT_EQ(closed.status, 204);
  EXPECT_THAT(closed.headers, ElementsAre(Pair("Allow", "POST, OPTIONS")));
  options_.cors_origin = "https://a";
  api_.reset();
  const auto allowed = [this](const std::string& asked) {
    const auto exchange = Exchange("OPTIONS", "/v1/completions");
    exchange->request().fields.set("Access-Control-Request-Headers", asked);
    api().Handle(exchange);
    return HeaderOf(*exchange->response, "Access-Control-Allow-Headers");
  };
  EXPECT_EQ(allowed("x-stainless-lang, authorization"), "x-stainless-lang, authorization");
  for (const char* odd : {"", "a\tb", "a;b", "a\"b"}) {
    EXPECT_THAT(allowed(odd), HasSubstr("Authorization, Content-Type")) << odd;
  }
  EXPECT_EQ(HeaderOf(Ask("OPTIONS", "*"), "Access-Control-Allow-Methods"),
            "GET, HEAD, POST, OPTIONS");
}

TEST_F(HttpApiTest, ARefusedCompletionIsToldToTheCoreByItsName) {
  const auto exchange = Exchange("POST", "/v1/completions", R"({"prompt":"a","n":0})");
  exchange->request().fields.set("X-Request-Id", std::string(300, 'x'));
  api().Handle(exchange);
  ASSERT_TRUE(exchange->response.has_value());
  EXPECT_EQ(exchange->response->status, 400);
  EXPECT_EQ(HeaderOf(*exchange->response, "X-Request-Id"), std::string(300, 'x'));
  ASSERT_EQ(core_.refused.size(), 1u);
  EXPECT_EQ(core_.refused[0].request_id, std::string(128, 'x')) << "it goes into the log";
  EXPECT_EQ(core_.refused[0].status.code(), absl::StatusCode::kInvalidArgument);
  core_.rate = absl::ResourceExhaustedError("too many");
  const HttpResponse often = Ask("POST", "/v1/completions", "no JSON");
  EXPECT_EQ(often.status, 429) << "before its body is looked at";
  EXPECT_EQ(HeaderOf(often, "X-Request-Id"), core_.refused[1].request_id);
  EXPECT_EQ(core_.last_id, 0u);
}

TEST_F(HttpApiTest, AModelWithoutAChatFormatIsThereAllTheSame) {
  const HttpResponse response =
      Ask("POST", "/v1/chat/completions", R"({"messages":[{"role":"user","content":"hi"}]})");
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(MessageOf(response), "messages: this model has no chat format");
  EXPECT_EQ(Ask("POST", "/v1/chat/completions",
                R"({"model":"other","messages":[{"role":"user","content":"hi"}]})")
                .status,
            400);
  EXPECT_EQ(Ask("POST", "/v1/completions", R"({"model":"other","prompt":"hi"})").status, 404);
}

TEST_F(HttpApiTest, AnEchoAloneTakesOfTheKeysRate) {
  const std::string echo = R"({"prompt":"a","echo":true,"max_tokens":0})";
  EXPECT_EQ(Ask("POST", "/v1/completions", echo).status, 200);
  EXPECT_EQ(core_.taken_from_rate, 1);
  const auto exchange = Exchange("POST", "/v1/completions", R"({"prompt":"a"})");
  api().Handle(exchange);
  EXPECT_EQ(core_.last_id, 1u);
  EXPECT_EQ(core_.taken_from_rate, 1) << "the core takes that of a request by itself";
  exchange->Lose(HttpLoss::kClientGone);
}

std::string Long(absl::string_view rest) {
  return absl::StrCat(R"({"x":")", std::string(kLongTextBytes, 'x'), "\"", rest, "}");
}

TEST_F(HttpApiTest, ALongBodyIsReadByAnotherThread) {
  const auto exchange = Exchange("POST", "/v1/completions", Long(R"(,"prompt":"a")"));
  api().Handle(exchange);
  EXPECT_EQ(core_.last_id, 0u);
  loop_.RunNext();
  EXPECT_EQ(core_.last_id, 1u);
  exchange->Lose(HttpLoss::kClientGone);
  EXPECT_EQ(core_.cancelled.count(1), 1u);
  const auto bad = Exchange("POST", "/v1/completions", Long(R"(,"prompt":7)"));
  bad->request().fields.set("X-Request-Id", "r");
  api().Handle(bad);
  loop_.RunNext();
  EXPECT_EQ(bad->response->status, 400);
  EXPECT_EQ(HeaderOf(*bad->response, "X-Request-Id"), "r");
}

TEST_F(HttpApiTest, NothingIsDoneForAClientThatLeavesWhileItsBodyIsRead) {
  for (const char* path : {"/v1/completions", "/tokenize"}) {
    const auto exchange = Exchange("POST", path, Long(R"(,"prompt":"a")"));
    api().Handle(exchange);
    exchange->Lose(HttpLoss::kClientGone);
    loop_.RunNext();
    EXPECT_FALSE(exchange->response.has_value());
    api_->Stop();  // whose thread lets go of it later than it has posted
    api_.reset();
    EXPECT_EQ(exchange.use_count(), 1) << path << ": nothing keeps it";
  }
  EXPECT_EQ(core_.last_id, 0u);
  ASSERT_EQ(core_.refused.size(), 1u);
  EXPECT_EQ(core_.refused[0].status.code(), absl::StatusCode::kCancelled);
  ASSERT_EQ(core_.answered.size(), 1u);
  EXPECT_EQ(core_.answered[0].second.code(), absl::StatusCode::kCancelled);
}

TEST_F(HttpApiTest, TokenizesAndDetokenizesAndCountsIt) {
  const Json tokens = Json::parse(Ask("POST", "/tokenize", R"({"prompt":"one two"})").body);
  EXPECT_EQ(tokens["count"], 2);
  EXPECT_EQ(tokens["tokens"], Json(TokenizerForTest()->Encode("one two").value()));
  const std::string back = absl::StrCat(R"({"tokens":)", tokens["tokens"].dump(), "}");
  EXPECT_EQ(Json::parse(Ask("POST", "/detokenize", back).body)["prompt"], "one two");
  EXPECT_EQ(core_.taken_from_rate, 2);
  ASSERT_EQ(core_.answered.size(), 2u);
  EXPECT_EQ(core_.answered[0], std::make_pair(RequestMethod::kTokenize, absl::OkStatus()));
  EXPECT_EQ(core_.answered[1], std::make_pair(RequestMethod::kDetokenize, absl::OkStatus()));
  for (const char* bad : {"{}", R"({"prompt":7})", R"({"prompt":["a"]})", "7"}) {
    EXPECT_EQ(Ask("POST", "/tokenize", bad).status, 400) << bad;
  }
  for (const char* bad :
       {"{}", R"({"tokens":"a"})", R"({"tokens":[-1]})", R"({"tokens":[60000]})"}) {
    EXPECT_THAT(MessageOf(Ask("POST", "/detokenize", bad)), testing::StartsWith("tokens")) << bad;
  }
  EXPECT_EQ(Ask("POST", "/tokenize", R"({"prompt":"a","model":"other"})").status, 404);
  const std::string special = R"({"tokens":[0],"skip_special_tokens":)";
  EXPECT_EQ(Json::parse(Ask("POST", "/detokenize", special + "true}").body)["prompt"], "");
  EXPECT_EQ(Json::parse(Ask("POST", "/detokenize", special + "false}").body)["prompt"],
            "<|endoftext|>");
  core_.rate = absl::ResourceExhaustedError("too many");
  EXPECT_EQ(Ask("POST", "/tokenize", R"({"prompt":"a"})").status, 429);
  EXPECT_EQ(core_.answered.back().second, core_.rate);
}

TEST_F(HttpApiTest, IsReadyWhenItSaysSo) {
  EXPECT_EQ(Ask("GET", "/ready").status, 503);
  api().SetServing(true);
  EXPECT_EQ(Ask("GET", "/ready").status, 200);
  const auto odd = Exchange("GET", "/ready");
  odd->request().query = "scope=all";
  api().Handle(odd);
  EXPECT_EQ(odd->response->status, 400);
  const auto with_more = Exchange("GET", "/ready");
  with_more->request().query = "t=17";
  api().Handle(with_more);
  EXPECT_EQ(with_more->response->status, 200);
  // The deployment is, when a probe has gone through both tiers.
  for (const bool good : {false, true}) {
    const auto wide = Exchange("GET", "/ready");
    wide->request().query = good ? "scope=deployment" : "t=17&scope=deployment";
    api().Handle(wide);
    EXPECT_FALSE(wide->response.has_value());
    core_.generations.at(core_.last_id)
        ->OnDone(good ? absl::OkStatus() : absl::UnavailableError("none"), {});
    loop_.RunNext();
    EXPECT_EQ(wide->response->status, good ? 200 : 503);
  }
  api().SetServing(false);
  EXPECT_EQ(Ask("GET", "/ready").status, 503);
  EXPECT_EQ(Ask("GET", "/health").status, 200);
}

TEST_F(HttpApiTest, TheModelIsFoundByItsNames) {
  const Json list = Json::parse(Ask("GET", "/v1/models").body);
  EXPECT_EQ(list["data"][0]["id"], "tiny");
  EXPECT_EQ(Json::parse(Ask("GET", "/v1/models/tiny").body)["root"], "id");
  EXPECT_EQ(Ask("GET", "/v1/models/id").status, 200);
  EXPECT_EQ(Ask("GET", "/v1/models/other").status, 404);
  EXPECT_EQ(Ask("GET", "/metrics").status, 404) << "none are kept";
}

}  // namespace
}  // namespace blockserve
