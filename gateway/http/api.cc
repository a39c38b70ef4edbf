#include "gateway/http/api.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
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
// A chat's answer, where the request does not say how long it may be.
constexpr int32_t kDefaultChatTokens = 256;
// Room in a request id for the number of a prompt.
constexpr size_t kMaxHttpRequestIdBytes = 120;
constexpr size_t kMaxLoggedFields = 256;
constexpr size_t kMaxLoggedFieldBytes = 64;

uint64_t DrawBits() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

absl::StatusOr<absl::Duration> RequestTimeout(const HttpRequest& request) {
  constexpr absl::string_view kHeader = "X-Request-Timeout";
  const absl::string_view given = request.header(kHeader);
  if (given.empty()) return kDefaultDeadline;
  double seconds = 0;
  if (!absl::SimpleAtod(given, &seconds) || !(seconds > 0 && seconds <= 86400)) {
    return FieldError(kHeader, "must be seconds, more than 0 and at most 86400");
  }
  return absl::Seconds(seconds);
}

bool NeedsKey(absl::string_view path) {
  return absl::StartsWith(path, "/v1/") || path == "/tokenize" || path == "/detokenize" ||
         path == "/tokenizer_info" || path == "/status";
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
          backend_.probe_core, [validator = backend_.validator](absl::Time deadline) {
            v1::GenerateRequest request;
            request.mutable_tokens();  // an empty prompt: the model's first token
            request.mutable_sampling()->set_temperature(0);
            request.mutable_stop()->set_max_tokens(1);
            request.set_priority(v1::PRIORITY_HIGH);
            return validator->Generation(request, "", deadline);
          })) {}

HttpResponse HttpApi::Error(int status, const std::string& message) const {
  return OpenAiError(status, message);
}

v1::GetModelResponse HttpApi::DescribeModel() const {
  v1::GetModelResponse response;
  backend_.validator->FillModel(response);
  backend_.core->FillModelStatus(response);
  return response;
}

void HttpApi::Handle(const std::shared_ptr<HttpExchange>& exchange) {
  const HttpRequest& request = exchange->request();
  const absl::string_view allowed = MethodOf(request.path);
  if (allowed.empty()) {
    return exchange->Respond(OpenAiError(404, "there is no such path here"));
  }
  const bool get = allowed == "GET";
  const absl::string_view methods = get ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
  if (request.method == "OPTIONS") {
    HttpResponse response;
    response.status = 204;
    response.content_type = "";
    response.headers = {{"Allow", std::string(methods)}};
    if (!options_.cors_origin.empty()) {
      response.headers.emplace_back("Access-Control-Allow-Methods", methods);
      response.headers.emplace_back(
          "Access-Control-Allow-Headers",
          "Authorization, Content-Type, Last-Event-ID, X-Request-Id, X-Request-Timeout");
      response.headers.emplace_back("Access-Control-Max-Age", "600");
    }
    return exchange->Respond(std::move(response));
  }
  if (request.method != allowed && !(get && request.method == "HEAD")) {
    HttpResponse response = OpenAiError(405, absl::StrCat("use ", allowed));
    response.headers.emplace_back("Allow", methods);
    return exchange->Respond(std::move(response));
  }
  Dispatch(exchange);
}

void HttpApi::Dispatch(const std::shared_ptr<HttpExchange>& exchange) {
  const HttpRequest& request = exchange->request();
  const std::string& path = request.path;
  std::string key_name;
  if (options_.authenticate && NeedsKey(path)) {
    absl::string_view token = request.header("Authorization");
    if (!absl::StartsWithIgnoreCase(token, "Bearer ")) {
      return exchange->Respond(OpenAiError(
          absl::UnauthenticatedError("an API key is needed: Authorization: Bearer KEY")));
    }
    token = absl::StripAsciiWhitespace(token.substr(7));
    absl::StatusOr<std::string> name = options_.authenticate(token);
    if (!name.ok()) return exchange->Respond(OpenAiError(name.status()));
    key_name = *std::move(name);
  }
  if (path == "/v1/completions") return Complete(exchange, /*chat=*/false, key_name);
  if (path == "/v1/chat/completions") return Complete(exchange, /*chat=*/true, key_name);
  if (path == "/tokenize") return exchange->Respond(Tokenize(request));
  if (path == "/detokenize") return exchange->Respond(Detokenize(request));
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

void HttpApi::Complete(const std::shared_ptr<HttpExchange>& exchange, bool chat,
                       const std::string& key_name) {
  absl::StatusOr<HttpCompletionJob> job = MakeJob(exchange->request(), chat, key_name);
  if (!job.ok()) {
    backend_.core->CountRefused(/*scoring=*/false, job.status());
    HttpResponse response = OpenAiError(job.status());
    // There is a model, and a path: what is missing is a format.
    if (chat && absl::IsNotFound(job.status()) && !backend_.chat_format.ok() &&
        job.status() == backend_.chat_format.status()) {
      response.status = 400;
      response.body = OpenAiError(absl::InvalidArgumentError(job.status().message())).body;
    }
    return exchange->Respond(std::move(response));
  }
  LogUnknownFields(job->wanted.unknown_fields);
  CompletionCall::Start(backend_.core, backend_.validator->tokenizer(), exchange, *std::move(job));
}

absl::StatusOr<HttpPromptJob> HttpApi::MakePromptJob(const HttpCompletion& wanted,
                                                     HttpPrompt prompt, absl::string_view model_id,
                                                     absl::Time deadline) const {
  const RequestValidator& validator = *backend_.validator;
  v1::GenerateRequest request = wanted.request;
  if (prompt.text.has_value()) {
    request.set_text(*prompt.text);
  } else {
    request.mutable_tokens()->mutable_ids()->Add(prompt.ids.begin(), prompt.ids.end());
  }
  const int32_t max_tokens = wanted.max_tokens.value_or(kDefaultMaxTokens);
  HttpPromptJob job;
  if (max_tokens > 0) {
    request.mutable_stop()->set_max_tokens(max_tokens);
    absl::StatusOr<GenerationRequest> generation =
        validator.Generation(request, model_id, deadline);
    if (!generation.ok()) return generation.status();
    job.ids = generation->prompt;
    job.generation = *std::move(generation);
  } else {
    // Nothing is generated, but what the request says of it has to make sense.
    v1::GenerateRequest checked = request;
    checked.mutable_tokens()->Clear();
    checked.mutable_stop()->set_max_tokens(1);
    checked.mutable_stop()->set_min_tokens(0);
    if (auto status = validator.Generation(checked, model_id, deadline).status(); !status.ok()) {
      return status;
    }
  }
  if (!wanted.echo) return job;
  v1::ScoreRequest scored;
  scored.set_request_id(request.request_id());
  scored.set_model(request.model());
  scored.set_priority(request.priority());
  scored.set_alignment(v1::ALIGNMENT_START);
  scored.set_top_logprobs(request.logprobs());
  if (job.generation.has_value()) {
    scored.mutable_continuation_tokens()->mutable_ids()->Add(job.ids.begin(), job.ids.end());
  } else if (request.has_text()) {
    scored.set_continuation_text(request.text());
  } else {
    *scored.mutable_continuation_tokens() = request.tokens();
  }
  absl::StatusOr<ScoringRequest> scoring = validator.Scoring(scored, model_id, deadline);
  if (!scoring.ok()) return scoring.status();
  job.ids = scoring->tokens;
  if (request.has_logprobs()) job.scoring = *std::move(scoring);
  if (prompt.text.has_value()) {
    job.text = *std::move(prompt.text);
  } else if (validator.tokenizer() != nullptr) {
    absl::StatusOr<std::string> text = validator.tokenizer()->Decode(job.ids, false);
    if (!text.ok()) return FieldError("prompt", text.status().message());
    job.text = *std::move(text);
  }
  return job;
}

absl::StatusOr<HttpCompletionJob> HttpApi::MakeJob(const HttpRequest& request, bool chat,
                                                   const std::string& key_name) {
  HttpCompletionJob job;
  absl::StatusOr<HttpCompletion> parsed = ParseCompletion(request.body, chat);
  if (!parsed.ok()) return parsed.status();
  job.wanted = *std::move(parsed);
  HttpCompletion& wanted = job.wanted;
  const absl::string_view given_id = request.header("X-Request-Id");
  if (given_id.size() > kMaxHttpRequestIdBytes) {
    return FieldError("X-Request-Id", "may have ", kMaxHttpRequestIdBytes, " characters");
  }
  if (const absl::string_view last = request.header("Last-Event-ID"); !last.empty()) {
    absl::StatusOr<HttpEventId> id = ParseEventId(last);
    if (!id.ok()) return id.status();
    const size_t choices = (chat ? 1 : wanted.prompts.size()) *
                           static_cast<size_t>(wanted.request.has_n() ? wanted.request.n() : 1);
    // An echo by itself is one event: who has it has all.
    if (!wanted.stream || wanted.max_tokens == 0 || id->tokens.size() != choices ||
        (wanted.request.has_seed() && wanted.request.seed() != id->seed)) {
      return FieldError("Last-Event-ID", "is not of a stream of this request");
    }
    job.resume = *std::move(id);
  }
  if (job.resume.has_value()) {
    job.request_id = job.resume->request_id;
  } else {
    job.request_id = given_id.empty() ? absl::StrCat(absl::Hex(DrawBits(), absl::kZeroPad16),
                                                     absl::Hex(DrawBits(), absl::kZeroPad16))
                                      : std::string(given_id);
  }
  absl::StatusOr<absl::Duration> timeout = RequestTimeout(request);
  if (!timeout.ok()) return timeout.status();
  const absl::Time deadline = backend_.core->Now() + *timeout;

  const v1::GetModelResponse model = DescribeModel();
  if (chat) {
    if (!backend_.chat_format.ok()) return backend_.chat_format.status();
    absl::StatusOr<std::string> text = backend_.chat_format->Render(wanted.messages);
    if (!text.ok()) return text.status();
    wanted.prompts = {{*std::move(text), {}}};
    for (const std::string& stop : backend_.chat_format->stop()) {
      wanted.request.mutable_stop()->add_strings(stop);
    }
    if (!wanted.max_tokens.has_value()) {
      wanted.max_tokens = kDefaultChatTokens;
      const Tokenizer* tokenizer = backend_.validator->tokenizer();
      if (tokenizer != nullptr && model.max_tokens() > 0) {
        absl::StatusOr<std::vector<int32_t>> ids = tokenizer->Encode(*wanted.prompts[0].text);
        const int64_t room = ids.ok() ? model.max_tokens() - static_cast<int64_t>(ids->size()) : 1;
        wanted.max_tokens =
            static_cast<int32_t>(std::max<int64_t>(1, std::min<int64_t>(kDefaultChatTokens, room)));
      }
    }
  }
  const TraceContext trace =
      ParseTraceparent(request.header(kTraceparentKey)).value_or(TraceContext());
  const bool seed_given = wanted.request.has_seed();
  job.seed = job.resume.has_value() ? job.resume->seed
             : seed_given           ? wanted.request.seed()
                                    : DrawBits();
  for (size_t i = 0; i < wanted.prompts.size(); ++i) {
    wanted.request.set_request_id(
        wanted.prompts.size() == 1 ? job.request_id : absl::StrCat(job.request_id, "-", i));
    // Prompts that are alike get answers that differ, unless the client wants to get the same.
    wanted.request.set_seed(seed_given ? job.seed : job.seed + i);
    absl::StatusOr<HttpPromptJob> prompt =
        MakePromptJob(wanted, std::move(wanted.prompts[i]), model.model_id(), deadline);
    if (prompt.ok() && options_.check_priority) {
      uint32_t priority = v1::PRIORITY_NORMAL;
      if (prompt->generation.has_value()) priority = prompt->generation->priority;
      if (prompt->scoring.has_value()) priority = prompt->scoring->priority;
      if (auto status = options_.check_priority(key_name, priority); !status.ok()) return status;
    }
    if (!prompt.ok()) {
      const std::string message = WithHttpFieldName(prompt.status().message());
      if (wanted.prompts.size() == 1 || !absl::StartsWith(message, "prompt")) {
        return absl::Status(prompt.status().code(), message);
      }
      return absl::Status(prompt.status().code(),
                          absl::StrCat("prompt[", i, "]", absl::StripPrefix(message, "prompt")));
    }
    if (prompt->generation.has_value()) {
      prompt->generation->key = key_name;
      prompt->generation->origin.trace = trace;
    }
    if (prompt->scoring.has_value()) {
      prompt->scoring->key = key_name;
      prompt->scoring->origin.trace = trace;
    }
    job.prompts.push_back(*std::move(prompt));
  }
  wanted.prompts.clear();
  job.head.chat = chat;
  job.head.id = absl::StrCat(chat ? "chatcmpl-" : "cmpl-", job.request_id);
  job.head.created = absl::ToUnixSeconds(absl::Now());
  job.head.model = model.name();
  return job;
}

void HttpApi::LogUnknownFields(const std::vector<std::string>& fields) {
  std::vector<std::string> fresh;
  {
    MutexLock lock(&mutex_);
    for (const std::string& field : fields) {
      if (logged_fields_.size() >= kMaxLoggedFields) break;
      // Names come from clients: nothing else of theirs gets into the log by this way.
      const bool is_name = field.size() <= kMaxLoggedFieldBytes &&
                           std::all_of(field.begin(), field.end(), [](unsigned char c) {
                             return absl::ascii_isalnum(c) || c == '_' || c == '.' || c == '-';
                           });
      if (is_name && logged_fields_.insert(field).second) fresh.push_back(field);
    }
  }
  if (!fresh.empty()) {
    LogInfo(absl::StrCat("fields of HTTP requests that are not known here, and ignored: ",
                         absl::StrJoin(fresh, ", ")));
  }
}

HttpResponse HttpApi::Tokenize(const HttpRequest& request) const {
  absl::StatusOr<nlohmann::json> parsed = ParseJsonObject(request.body);
  if (!parsed.ok()) return OpenAiError(parsed.status());
  JsonFields fields(*parsed);
  v1::TokenizeRequest wanted;
  wanted.set_model(fields.String("model").value_or(""));
  const auto prompt = fields.String("prompt");
  if (!prompt.has_value()) fields.Fail("prompt", "must be a string");
  if (!fields.status().ok()) return OpenAiError(fields.status());
  wanted.set_text(*prompt);
  const v1::GetModelResponse model = DescribeModel();
  absl::StatusOr<v1::TokenizeResponse> tokens =
      backend_.validator->Tokenize(wanted, model.model_id());
  if (!tokens.ok()) {
    const absl::string_view message = tokens.status().message();
    return OpenAiError(
        absl::Status(tokens.status().code(), absl::StartsWith(message, "text: ")
                                                 ? absl::StrCat("prompt", message.substr(4))
                                                 : std::string(message)));
  }
  HttpResponse response;
  response.body = "{\"tokens\":";
  AppendJsonIds(response.body, absl::MakeSpan(tokens->tokens().data(),
                                              static_cast<size_t>(tokens->tokens_size())));
  absl::StrAppend(&response.body, ",\"count\":", tokens->tokens_size(),
                  ",\"max_model_len\":", model.max_tokens(), "}");
  return response;
}

HttpResponse HttpApi::Detokenize(const HttpRequest& request) const {
  absl::StatusOr<nlohmann::json> parsed = ParseJsonObject(request.body);
  if (!parsed.ok()) return OpenAiError(parsed.status());
  JsonFields fields(*parsed);
  v1::DetokenizeRequest wanted;
  wanted.set_model(fields.String("model").value_or(""));
  wanted.set_skip_special_tokens(fields.Bool("skip_special_tokens").value_or(false));
  const auto ids = fields.Ids("tokens", request.body.size());
  if (!ids.has_value()) fields.Fail("tokens", "must be a list of token ids");
  if (!fields.status().ok()) return OpenAiError(fields.status());
  wanted.mutable_tokens()->Add(ids->begin(), ids->end());
  absl::StatusOr<v1::DetokenizeResponse> text =
      backend_.validator->Detokenize(wanted, DescribeModel().model_id());
  if (!text.ok()) return OpenAiError(text.status());
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
