#include "gateway/http/tokenize_answers.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gateway/http/json_fields.h"
#include "gateway/http/json_text.h"

namespace blockserve {

absl::StatusOr<HttpResponse> TokenizeAnswer(const RequestValidator& validator,
                                            const v1::GetModelResponse& model,
                                            absl::string_view body,
                                            std::vector<std::string>& unknown) {
  absl::StatusOr<nlohmann::json> parsed = ParseJsonObject(body);
  if (!parsed.ok()) return parsed.status();
  JsonFields fields(*parsed);
  v1::TokenizeRequest wanted;
  wanted.set_model(fields.String("model").value_or(""));
  const auto prompt = fields.String("prompt");
  if (!prompt.has_value()) fields.Fail("prompt", "must be a string");
  fields.Find("add_special_tokens");  // no tokenizer of these models adds any
  if (!fields.status().ok()) return fields.status();
  unknown = fields.Unknown();
  wanted.set_text(*prompt);
  absl::StatusOr<v1::TokenizeResponse> tokens = validator.Tokenize(wanted, model.model_id());
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

absl::StatusOr<HttpResponse> DetokenizeAnswer(const RequestValidator& validator,
                                              const v1::GetModelResponse& model,
                                              absl::string_view body,
                                              std::vector<std::string>& unknown) {
  absl::StatusOr<nlohmann::json> parsed = ParseJsonObject(body);
  if (!parsed.ok()) return parsed.status();
  JsonFields fields(*parsed);
  v1::DetokenizeRequest wanted;
  wanted.set_model(fields.String("model").value_or(""));
  wanted.set_skip_special_tokens(fields.Bool("skip_special_tokens").value_or(false));
  const auto ids = fields.Ids("tokens", body.size());
  if (!ids.has_value()) fields.Fail("tokens", "must be a list of token ids");
  if (!fields.status().ok()) return fields.status();
  unknown = fields.Unknown();
  wanted.mutable_tokens()->Add(ids->begin(), ids->end());
  absl::StatusOr<v1::DetokenizeResponse> text = validator.Detokenize(wanted, model.model_id());
  if (!text.ok()) return text.status();
  HttpResponse response;
  response.body = "{\"prompt\":";
  AppendJsonString(response.body, text->text());
  response.body += '}';
  return response;
}

}  // namespace blockserve
