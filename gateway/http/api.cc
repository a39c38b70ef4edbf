#include "gateway/http/api.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/logging.h"
#include "common/version.h"
#include "gateway/http/json_fields.h"
#include "gateway/http/json_text.h"
#include "gateway/http/openai_answer.h"
#include "gateway/http/page.h"
#include "gateway/validate.h"

namespace blockserve {
namespace {

constexpr absl::string_view kModelsPath = "/v1/models";
constexpr size_t kMaxLoggedFields = 256;
constexpr size_t kMaxLoggedFieldBytes = 64;
// One client is not to fill what is logged for all.
constexpr size_t kMaxLoggedFieldsOfRequest = 16;
constexpr absl::string_view kEverything = "*";  // the path of OPTIONS that asks for no path

bool NeedsKey(absl::string_view path) {
  return absl::StartsWith(path, "/v1/") || path == "/tokenize" || path == "/detokenize" ||
         path == "/tokenizer_info" || path == "/status" || path == "/metrics";
}

absl::string_view MethodOf(absl::string_view path) {
  if (path == "/v1/completions" || path == "/v1/chat/completions" || path == "/tokenize" ||
      path == "/detokenize") {
    return "POST";
  }
  if (path == kModelsPath || absl::StartsWith(path, "/v1/models/") || path == "/health" ||
      path == "/ready" || path == "/metrics" || path == "/version" || path == "/status" ||
      path == "/tokenizer_info" || path == "/") {
    return "GET";
  }
  return "";
}

absl::string_view MethodsOf(absl::string_view path) {
  if (path == kEverything) return "GET, HEAD, POST, OPTIONS";
  return MethodOf(path) == "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
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

void AppendWorkers(std::string& out, const std::vector<WorkerStatus>& workers) {
  out += '[';
  for (size_t i = 0; i < workers.size(); ++i) {
    const WorkerStatus& worker = workers[i];
    out += i == 0 ? "{\"address\":" : ",{\"address\":";
    AppendJsonString(out, worker.address);
    out += ",\"name\":";
    AppendJsonString(out, worker.name);
    absl::StrAppend(&out, ",\"connected\":", worker.connected ? "true" : "false",
                    ",\"usable\":", worker.usable ? "true" : "false",
                    ",\"in_flight\":", worker.in_flight, ",\"sequences\":", worker.sequences,
                    ",\"steps\":", worker.steps, ",\"batch\":", worker.batch, ",\"busy_share\":");
    AppendJsonFloat(out, worker.busy_share);
    absl::StrAppend(&out, ",\"kv_pages\":", worker.pages, ",\"kv_free_pages\":", worker.free_pages,
                    "}");
  }
  out += ']';
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

HttpResponse HttpApi::Error(int status, const std::string& message) const {
  return OpenAiError(status, message);
}

v1::GetModelResponse HttpApi::DescribeModel() const {
  v1::GetModelResponse response;
  backend_.validator->FillModel(response);
  backend_.core->FillModelStatus(response);
  return response;
}

std::optional<HttpResponse> HttpApi::CheckHead(const HttpRequest& head,
                                               std::string* key_name) const {
  if (head.method == "OPTIONS" && head.path == kEverything) return std::nullopt;
  const absl::string_view allowed = MethodOf(head.path);
  if (allowed.empty()) return OpenAiError(404, "there is no such path here");
  if (head.method == "OPTIONS") return std::nullopt;
  if (head.method != allowed && !(allowed == "GET" && head.method == "HEAD")) {
    HttpResponse response = OpenAiError(405, absl::StrCat("use ", allowed));
    response.headers.emplace_back("Allow", MethodsOf(head.path));
    return response;
  }
  const absl::string_view encoding = head.header("Content-Encoding");
  if (!encoding.empty() && !absl::EqualsIgnoreCase(encoding, "identity")) {
    return OpenAiError(415, "Content-Encoding: bodies are taken as they are, not packed",
                       "Content-Encoding");
  }
  if (!options_.authenticate || !NeedsKey(head.path)) return std::nullopt;
  absl::StatusOr<std::string> name = options_.authenticate(head.header("Authorization"));
  if (!name.ok()) return OpenAiError(name.status());
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
  const HttpRequest& request = exchange->request();
  const std::string& path = request.path;
  if (path == "/v1/completions") return Complete(exchange, /*chat=*/false, key_name);
  if (path == "/v1/chat/completions") return Complete(exchange, /*chat=*/true, key_name);
  if (path == "/tokenize") return AnswerText(exchange, RequestMethod::kTokenize, key_name);
  if (path == "/detokenize") return AnswerText(exchange, RequestMethod::kDetokenize, key_name);
  if (path == "/tokenizer_info") return exchange->Respond(TokenizerInfo());
  if (path == "/status") return Status(exchange);
  if (path == "/ready") return Ready(exchange);
  if (path == kModelsPath) return exchange->Respond(Models(""));
  if (absl::StartsWith(path, kModelsPath)) {
    return exchange->Respond(Models(path.substr(kModelsPath.size() + 1)));
  }
  HttpResponse response;
  if (path == "/health") {
    response.body = "{\"status\":\"ok\"}";
  } else if (path == "/version") {
    response.body = absl::StrCat("{\"version\":\"", Version(), "\",\"commit\":\"", Commit(), "\"}");
  } else if (path == "/metrics") {
    if (!options_.metrics) return exchange->Respond(OpenAiError(404, "no metrics are kept"));
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    response.body = options_.metrics();
  } else {
    response.content_type = "text/html; charset=utf-8";
    response.headers = {
        {"Content-Security-Policy",
         "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
         "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
         "frame-ancestors 'none'"},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"}};
    response.body = std::string(PageHtml());
  }
  exchange->Respond(std::move(response));
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
        LogUnknownFields(job->wanted.unknown_fields);
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

void HttpApi::LogUnknownFields(const std::vector<std::string>& fields) const {
  std::vector<std::string> fresh;
  bool last = false;
  {
    MutexLock lock(&mutex_);
    for (const std::string& field : fields) {
      if (logged_fields_.size() >= kMaxLoggedFields) break;
      if (fresh.size() >= kMaxLoggedFieldsOfRequest) break;
      // Names come from clients: nothing else of theirs gets into the log by this way.
      const bool is_name = field.size() <= kMaxLoggedFieldBytes &&
                           std::all_of(field.begin(), field.end(), [](unsigned char c) {
                             return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-';
                           });
      if (is_name && logged_fields_.insert(field).second) fresh.push_back(field);
    }
    last = !fresh.empty() && logged_fields_.size() >= kMaxLoggedFields;
  }
  if (!fresh.empty()) {
    LogInfo(absl::StrCat(
        "fields of HTTP requests that are not known here, and ignored: ",
        absl::StrJoin(fresh, ", "),
        last ? absl::StrCat(" (", kMaxLoggedFields, " names have been logged; no further ones are)")
             : ""));
  }
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
        return method == RequestMethod::kTokenize ? Tokenize(request) : Detokenize(request);
      },
      done);
}

absl::StatusOr<HttpResponse> HttpApi::Tokenize(const HttpRequest& request) const {
  absl::StatusOr<nlohmann::json> parsed = ParseJsonObject(request.body);
  if (!parsed.ok()) return parsed.status();
  JsonFields fields(*parsed);
  v1::TokenizeRequest wanted;
  wanted.set_model(fields.String("model").value_or(""));
  const auto prompt = fields.String("prompt");
  if (!prompt.has_value()) fields.Fail("prompt", "must be a string");
  fields.Find("add_special_tokens");  // no tokenizer of these models adds any
  if (!fields.status().ok()) return fields.status();
  LogUnknownFields(fields.Unknown());
  wanted.set_text(*prompt);
  const v1::GetModelResponse model = DescribeModel();
  absl::StatusOr<v1::TokenizeResponse> tokens =
      backend_.validator->Tokenize(wanted, model.model_id());
  if (!tokens.ok()) {
    const absl::string_view message = tokens.status().message();
    return absl::Status(tokens.status().code(), absl::StartsWith(message, "text: ")
                                                    ? absl::StrCat("prompt", message.substr(4))
                                                    : std::string(message));
  }
  HttpResponse response;
  response.body = "{\"tokens\":";
  AppendJsonIds(response.body, absl::MakeSpan(tokens->tokens().data(),
                                              static_cast<size_t>(tokens->tokens_size())));
  absl::StrAppend(&response.body, ",\"count\":", tokens->tokens_size(),
                  ",\"max_model_len\":", model.max_tokens(), "}");
  return response;
}

absl::StatusOr<HttpResponse> HttpApi::Detokenize(const HttpRequest& request) const {
  absl::StatusOr<nlohmann::json> parsed = ParseJsonObject(request.body);
  if (!parsed.ok()) return parsed.status();
  JsonFields fields(*parsed);
  v1::DetokenizeRequest wanted;
  wanted.set_model(fields.String("model").value_or(""));
  wanted.set_skip_special_tokens(fields.Bool("skip_special_tokens").value_or(false));
  const auto ids = fields.Ids("tokens", request.body.size());
  if (!ids.has_value()) fields.Fail("tokens", "must be a list of token ids");
  if (!fields.status().ok()) return fields.status();
  LogUnknownFields(fields.Unknown());
  wanted.mutable_tokens()->Add(ids->begin(), ids->end());
  absl::StatusOr<v1::DetokenizeResponse> text =
      backend_.validator->Detokenize(wanted, DescribeModel().model_id());
  if (!text.ok()) return text.status();
  HttpResponse response;
  response.body = "{\"prompt\":";
  AppendJsonString(response.body, text->text());
  response.body += '}';
  return response;
}

HttpResponse HttpApi::TokenizerInfo() const {
  const Tokenizer* tokenizer = backend_.validator->tokenizer();
  if (tokenizer == nullptr) {
    return OpenAiError(absl::FailedPreconditionError("this model has no tokenizer"));
  }
  const ModelConfig& config = backend_.validator->config();
  HttpResponse response;
  std::string& out = response.body;
  const auto append = [&](absl::string_view name, int32_t id) {
    absl::StrAppend(&out, out.empty() ? "{\"" : ",\"", name, "\":");
    AppendJsonString(out, TokenText(tokenizer, id));
    absl::StrAppend(&out, ",\"", name, "_id\":", id);
  };
  append("bos_token", config.bos_token_id);
  append("eos_token", config.eos_token_id);
  append("pad_token", config.pad_token_id);
  absl::StrAppend(&out, ",\"vocab_size\":", tokenizer->vocab_size(), "}");
  return response;
}

HttpResponse HttpApi::Models(absl::string_view name) const {
  const v1::GetModelResponse model = DescribeModel();
  if (!name.empty() && name != model.name() && name != model.model_id()) {
    return OpenAiError(absl::NotFoundError("model: there is none of this name here"));
  }
  std::string entry = "{\"id\":";
  AppendJsonString(entry, model.name());
  absl::StrAppend(&entry, ",\"object\":\"model\",\"created\":", started_s_,
                  ",\"owned_by\":\"blockserve\",\"root\":");
  AppendJsonString(entry, model.model_id());
  absl::StrAppend(&entry, ",\"max_model_len\":", model.max_tokens(), ",\"kind\":\"", model.kind(),
                  "\",\"block_length\":", model.block_length(), "}");
  HttpResponse response;
  response.body =
      name.empty() ? absl::StrCat("{\"object\":\"list\",\"data\":[", entry, "]}") : entry;
  return response;
}

void HttpApi::Ready(const std::shared_ptr<HttpExchange>& exchange) {
  const std::string& query = exchange->request().query;
  if (!query.empty() && query != "scope=deployment") {
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
  if (query.empty()) return exchange->Respond(answer(absl::OkStatus()));
  probe_->Check([exchange, answer](absl::Status status) {
    exchange->Post([exchange, response = answer(status)] { exchange->Respond(response); });
  });
}

void HttpApi::Status(const std::shared_ptr<HttpExchange>& exchange) {
  const v1::GetModelResponse model = DescribeModel();
  backend_.read_status([exchange, model](DeploymentStatus status) {
    HttpResponse response;
    std::string& out = response.body;
    out = "{\"model\":";
    AppendJsonString(out, model.name());
    out += ",\"model_id\":";
    AppendJsonString(out, model.model_id());
    absl::StrAppend(&out, ",\"kind\":\"", model.kind(),
                    "\",\"block_length\":", model.block_length(),
                    ",\"max_model_len\":", model.max_tokens(),
                    ",\"live_requests\":", status.live_requests, ",\"block\":");
    AppendWorkers(out, status.block);
    out += ",\"token\":";
    AppendWorkers(out, status.token);
    out += '}';
    exchange->Post([exchange, response = std::move(response)] { exchange->Respond(response); });
  });
}

}  // namespace blockserve
