#include "gateway/http/api.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/metrics.h"
#include "gateway/http/info_answers.h"
#include "gateway/http/openai_answer.h"
#include "gateway/http/tokenize_answers.h"
#include "gateway/validate.h"

namespace blockserve {
namespace {

enum class Endpoint {
  kCompletions,
  kChatCompletions,
  kTokenize,
  kDetokenize,
  kTokenizerInfo,
  kModels,
  kStatus,
  kReady,
  kHealth,
  kVersion,
  kMetrics,
  kPage,
};

struct Route {
  absl::string_view path;
  Endpoint endpoint;
  absl::string_view method;
  bool needs_key = false;  // where keys are asked for at all
  std::optional<RequestMethod> counted = std::nullopt;
};

constexpr Route kRoutes[] = {
    {"/v1/completions", Endpoint::kCompletions, "POST", true, RequestMethod::kGenerate},
    {"/v1/chat/completions", Endpoint::kChatCompletions, "POST", true, RequestMethod::kGenerate},
    {"/tokenize", Endpoint::kTokenize, "POST", true, RequestMethod::kTokenize},
    {"/detokenize", Endpoint::kDetokenize, "POST", true, RequestMethod::kDetokenize},
    {"/tokenizer_info", Endpoint::kTokenizerInfo, "GET", true},
    {"/v1/models", Endpoint::kModels, "GET", true},
    {"/status", Endpoint::kStatus, "GET", true},
    {"/metrics", Endpoint::kMetrics, "GET", true},
    {"/ready", Endpoint::kReady, "GET"},
    {"/health", Endpoint::kHealth, "GET"},
    {"/version", Endpoint::kVersion, "GET"},
    {"/", Endpoint::kPage, "GET"},
};
constexpr absl::string_view kOneModel = "/v1/models/";  // a model's name follows
constexpr absl::string_view kEverything = "*";          // the path of OPTIONS that asks for no path

const Route* RouteOf(absl::string_view path) {
  if (absl::StartsWith(path, kOneModel)) path = kOneModel.substr(0, kOneModel.size() - 1);
  for (const Route& route : kRoutes) {
    if (route.path == path) return &route;
  }
  return nullptr;
}

absl::string_view MethodsOf(absl::string_view path) {
  const Route* const route = RouteOf(path);
  if (route == nullptr) return "GET, HEAD, POST, OPTIONS";  // kEverything
  return route->method == "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
}

// Which headers a page may send that is let in: those that its browser asks for, since client
// libraries have many of their own ("x-stainless-lang", …).
std::string AllowedHeaders(const HttpRequest& request) {
  const absl::string_view asked = request.header("Access-Control-Request-Headers");
  const bool plain = std::all_of(asked.begin(), asked.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == ',' || c == ' ';
  });
  if (!asked.empty() && plain) return std::string(asked);
  return "Authorization, Content-Type, Last-Event-ID, X-Request-Id, X-Request-Timeout";
}

}  // namespace

HttpApi::HttpApi(HttpApiOptions options, HttpBackend backend)
    : options_(std::move(options)),
      backend_(std::move(backend)),
      started_s_(absl::ToUnixSeconds(absl::Now())),
      probe_(std::make_shared<DeploymentProbe>(
          backend_.probe_core,
          [validator = backend_.validator](absl::Time deadline) {
            v1::GenerateRequest request;
            request.mutable_tokens();  // an empty prompt: the model's first token
            request.mutable_sampling()->set_temperature(0);
            request.mutable_stop()->set_max_tokens(1);
            request.set_priority(v1::PRIORITY_HIGH);
            return validator->Generation(request, "", deadline);
          })),
      text_workers_("http-text", options_.text_threads, kMostWaitingTextBytes) {}

v1::GetModelResponse HttpApi::DescribeModel() const {
  v1::GetModelResponse response;
  backend_.validator->FillModel(response);
  backend_.core->FillModelStatus(response);
  return response;
}

std::optional<HttpResponse> HttpApi::CheckHead(const HttpRequest& head,
                                               std::string* key_name) const {
  if (head.method == "OPTIONS" && head.path == kEverything) return std::nullopt;
  const Route* const route = RouteOf(head.path);
  if (route == nullptr) return OpenAiError(404, "there is no such path here");
  if (head.method == "OPTIONS") return std::nullopt;
  if (head.method != route->method && !(route->method == "GET" && head.method == "HEAD")) {
    HttpResponse response = OpenAiError(405, absl::StrCat("use ", route->method));
    response.headers.emplace_back("Allow", MethodsOf(head.path));
    return response;
  }
  const absl::string_view encoding = head.header("Content-Encoding");
  if (!encoding.empty() && !absl::EqualsIgnoreCase(encoding, "identity")) {
    return OpenAiError(415, "Content-Encoding: bodies are taken as they are, not packed",
                       "Content-Encoding");
  }
  if (!options_.authenticate || !route->needs_key) return std::nullopt;
  absl::StatusOr<std::string> name = options_.authenticate(head.header("Authorization"));
  if (!name.ok()) {
    HttpResponse response = OpenAiError(name.status());
    if (route->counted.has_value()) {
      const std::string id = RequestIdOf(head);
      backend_.core->OnRefused({.method = *route->counted,
                                .request_id = id.substr(0, kMaxRequestIdBytes),
                                .status = name.status()});
      response.headers.emplace_back(kRequestIdHeader, id);
    }
    return response;
  }
  if (key_name != nullptr) *key_name = *std::move(name);
  return std::nullopt;
}

void HttpApi::Handle(const std::shared_ptr<HttpExchange>& exchange) {
  const HttpRequest& request = exchange->request();
  std::string key_name;
  if (std::optional<HttpResponse> refusal = CheckHead(request, &key_name)) {
    return exchange->Respond(*std::move(refusal));
  }
  if (request.method == "OPTIONS") {
    HttpResponse response;
    response.status = 204;
    response.content_type = "";
    response.headers = {{"Allow", std::string(MethodsOf(request.path))}};
    if (!options_.cors_origin.empty()) {
      response.headers.emplace_back("Access-Control-Allow-Methods", MethodsOf(request.path));
      response.headers.emplace_back("Access-Control-Allow-Headers", AllowedHeaders(request));
      response.headers.emplace_back("Vary", "Access-Control-Request-Headers");
      response.headers.emplace_back("Access-Control-Max-Age", "600");
    }
    return exchange->Respond(std::move(response));
  }
  Dispatch(exchange, key_name);
}

void HttpApi::Dispatch(const std::shared_ptr<HttpExchange>& exchange, const std::string& key_name) {
  const std::string& path = exchange->request().path;
  switch (RouteOf(path)->endpoint) {  // CheckHead has found it
    case Endpoint::kCompletions:
      return Complete(exchange, /*chat=*/false, key_name);
    case Endpoint::kChatCompletions:
      return Complete(exchange, /*chat=*/true, key_name);
    case Endpoint::kTokenize:
      return AnswerText(exchange, RequestMethod::kTokenize, key_name);
    case Endpoint::kDetokenize:
      return AnswerText(exchange, RequestMethod::kDetokenize, key_name);
    case Endpoint::kTokenizerInfo:
      return exchange->Respond(
          TokenizerInfoAnswer(backend_.validator->config(), backend_.validator->tokenizer()));
    case Endpoint::kModels: {
      absl::string_view name = path;
      if (!absl::ConsumePrefix(&name, kOneModel)) name = "";
      return exchange->Respond(ModelsAnswer(DescribeModel(), started_s_, name));
    }
    case Endpoint::kStatus:
      return Status(exchange);
    case Endpoint::kReady:
      return Ready(exchange);
    case Endpoint::kHealth: {
      HttpResponse response;
      response.body = "{\"status\":\"ok\"}";
      return exchange->Respond(std::move(response));
    }
    case Endpoint::kVersion:
      return exchange->Respond(VersionAnswer());
    case Endpoint::kMetrics: {
      if (!options_.metrics) return exchange->Respond(OpenAiError(404, "no metrics are kept"));
      HttpResponse response;
      response.content_type = std::string(kMetricsContentType);
      response.body = options_.metrics();
      return exchange->Respond(std::move(response));
    }
    case Endpoint::kPage:
      return exchange->Respond(PageAnswer());
  }
}

template <class Read, class Done>
void HttpApi::ReadBody(const std::shared_ptr<HttpExchange>& exchange, const std::string& key_name,
                       Read read, Done done) {
  using Result = decltype(read(exchange->request()));
  const size_t bytes = exchange->request().body.size();
  if (bytes <= kLongTextBytes) {
    return done(exchange->request(), read(exchange->request()));
  }
  struct LongRequest {
    std::shared_ptr<HttpExchange> exchange;
    HttpRequest request;
    Read read;
    Done done;
    std::atomic<bool> left{false};  // the client has
    Result result = ClientHasGone();
  };
  // The exchange itself is the connection's thread's.
  std::shared_ptr<LongRequest> waiting(
      new LongRequest{exchange, std::move(exchange->request()), std::move(read), std::move(done)});
  exchange->set_on_lost([waiting](HttpLoss) { waiting->left = true; });
  const bool taken = text_workers_.Run(key_name, bytes, [waiting] {
    if (!waiting->left) waiting->result = waiting->read(waiting->request);
    waiting->exchange->Post([waiting] {
      if (waiting->left) waiting->result = ClientHasGone();
      waiting->done(waiting->request, std::move(waiting->result));
    });
  });
  if (taken) return;
  waiting->done(waiting->request, TooManyTexts());
}

absl::StatusOr<HttpCompletionJob> HttpApi::MakeJob(const HttpRequest& request, bool chat,
                                                   const std::string& key_name,
                                                   absl::Time arrived) const {
  const HttpJobContext context{*backend_.validator,     backend_.chat_format,
                               options_.check_priority, options_.default_priority,
                               DescribeModel(),         arrived};
  absl::StatusOr<HttpCompletionJob> job = MakeCompletionJob(context, request, chat, key_name);
  if (!job.ok()) return job;
  // Of a prompt that is only echoed the core does not hear.
  const bool echoed_alone =
      std::none_of(job->prompts.begin(), job->prompts.end(), [](const HttpPromptJob& prompt) {
        return prompt.scoring.has_value() || prompt.generation.has_value();
      });
  if (echoed_alone) {
    if (absl::Status status = backend_.core->TakeFromRate(key_name); !status.ok()) return status;
  }
  return job;
}

void HttpApi::Complete(const std::shared_ptr<HttpExchange>& exchange, bool chat,
                       const std::string& key_name) {
  if (absl::Status status = backend_.core->CheckRate(key_name); !status.ok()) {
    return Refuse(exchange, exchange->request(), chat, key_name, status);
  }
  ReadBody(
      exchange, key_name,
      [this, chat, key_name, arrived = backend_.core->Now()](const HttpRequest& request) {
        return MakeJob(request, chat, key_name, arrived);
      },
      [this, exchange, chat, key_name](const HttpRequest& request,
                                       absl::StatusOr<HttpCompletionJob> job) {
        if (!job.ok()) return Refuse(exchange, request, chat, key_name, job.status());
        unknown_fields_.Note(job->wanted.unknown_fields);
        CompletionCall::Start(backend_.core, backend_.validator->tokenizer(), exchange,
                              *std::move(job));
      });
}

void HttpApi::Refuse(const std::shared_ptr<HttpExchange>& exchange, const HttpRequest& request,
                     bool chat, const std::string& key_name, const absl::Status& status) const {
  const std::string request_id = RequestIdOf(request);
  backend_.core->OnRefused(
      {.request_id = request_id.substr(0, kMaxRequestIdBytes), .key = key_name, .status = status});
  HttpResponse response = OpenAiError(status);
  // There is a model, and a path: what is missing is a format.
  if (chat && absl::IsNotFound(status) && !backend_.chat_format.ok() &&
      status == backend_.chat_format.status()) {
    response.status = 400;
    response.body = OpenAiError(absl::InvalidArgumentError(status.message())).body;
  }
  response.headers.emplace_back(kRequestIdHeader, request_id);
  exchange->Respond(std::move(response));
}

void HttpApi::AnswerText(const std::shared_ptr<HttpExchange>& exchange, RequestMethod method,
                         const std::string& key_name) {
  const auto done = [this, exchange, method, arrived = backend_.core->Now()](
                        const HttpRequest&, absl::StatusOr<HttpResponse> response) {
    backend_.core->OnAnswered(method, response.status(), backend_.core->Now() - arrived);
    exchange->Respond(response.ok() ? *std::move(response) : OpenAiError(response.status()));
  };
  if (absl::Status status = backend_.core->TakeFromRate(key_name); !status.ok()) {
    return done(exchange->request(), status);
  }
  ReadBody(
      exchange, key_name,
      [this, method](const HttpRequest& request) {
        const auto make = method == RequestMethod::kTokenize ? &TokenizeAnswer : &DetokenizeAnswer;
        std::vector<std::string> unknown;
        absl::StatusOr<HttpResponse> response =
            make(*backend_.validator, DescribeModel(), request.body, unknown);
        unknown_fields_.Note(unknown);
        return response;
      },
      done);
}

void HttpApi::Ready(const std::shared_ptr<HttpExchange>& exchange) {
  bool of_deployment = false;
  for (const absl::string_view part : absl::StrSplit(exchange->request().query, '&')) {
    if (!absl::StartsWith(part, "scope=")) continue;  // what keeps a cache from answering, say
    of_deployment = part == "scope=deployment";
    if (of_deployment) continue;
    return exchange->Respond(
        OpenAiError(absl::InvalidArgumentError("scope: must be deployment, or left out")));
  }
  const auto answer = [](absl::Status status) {
    if (!status.ok()) return OpenAiError(503, status.message());
    HttpResponse response;
    response.body = "{\"status\":\"ready\"}";
    return response;
  };
  if (!serving_) return exchange->Respond(answer(absl::UnavailableError("not ready")));
  if (!of_deployment) return exchange->Respond(answer(absl::OkStatus()));
  probe_->Check([exchange, answer](absl::Status status) {
    exchange->Post([exchange, response = answer(status)] { exchange->Respond(response); });
  });
}

void HttpApi::Status(const std::shared_ptr<HttpExchange>& exchange) {
  backend_.read_status([exchange, model = DescribeModel()](DeploymentStatus status) {
    exchange->Post(
        [exchange, response = StatusAnswer(model, status)] { exchange->Respond(response); });
  });
}

}  // namespace blockserve
