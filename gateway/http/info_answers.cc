#include "gateway/http/info_answers.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/version.h"
#include "gateway/http/json_text.h"
#include "gateway/http/openai_answer.h"
#include "gateway/http/page.h"

namespace blockserve {
namespace {

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

HttpResponse VersionAnswer() {
  HttpResponse response;
  response.body = absl::StrCat("{\"version\":\"", Version(), "\",\"commit\":\"", Commit(), "\"}");
  return response;
}

HttpResponse PageAnswer() {
  HttpResponse response;
  response.content_type = "text/html; charset=utf-8";
  response.headers = {{"Content-Security-Policy",
                       "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                       "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                       "frame-ancestors 'none'"},
                      {"X-Content-Type-Options", "nosniff"},
                      {"Referrer-Policy", "no-referrer"}};
  response.body = std::string(PageHtml());
  return response;
}

HttpResponse ModelsAnswer(const v1::GetModelResponse& model, int64_t created,
                          absl::string_view name) {
  if (!name.empty() && name != model.name() && name != model.model_id()) {
    return OpenAiError(absl::NotFoundError("model: there is none of this name here"));
  }
  std::string entry = "{\"id\":";
  AppendJsonString(entry, model.name());
  absl::StrAppend(&entry, ",\"object\":\"model\",\"created\":", created,
                  ",\"owned_by\":\"blockserve\",\"root\":");
  AppendJsonString(entry, model.model_id());
  absl::StrAppend(&entry, ",\"max_model_len\":", model.max_tokens(), ",\"kind\":\"", model.kind(),
                  "\",\"block_length\":", model.block_length(), "}");
  HttpResponse response;
  response.body =
      name.empty() ? absl::StrCat("{\"object\":\"list\",\"data\":[", entry, "]}") : entry;
  return response;
}

HttpResponse TokenizerInfoAnswer(const ModelConfig& config, const Tokenizer* tokenizer) {
  if (tokenizer == nullptr) {
    return OpenAiError(absl::FailedPreconditionError("this model has no tokenizer"));
  }
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

HttpResponse StatusAnswer(const v1::GetModelResponse& model, const DeploymentStatus& status) {
  HttpResponse response;
  std::string& out = response.body;
  out = "{\"model\":";
  AppendJsonString(out, model.name());
  out += ",\"model_id\":";
  AppendJsonString(out, model.model_id());
  absl::StrAppend(&out, ",\"kind\":\"", model.kind(), "\",\"block_length\":", model.block_length(),
                  ",\"max_model_len\":", model.max_tokens(),
                  ",\"live_requests\":", status.live_requests, ",\"block\":");
  AppendWorkers(out, status.block);
  out += ",\"token\":";
  AppendWorkers(out, status.token);
  out += '}';
  return response;
}

}  // namespace blockserve
