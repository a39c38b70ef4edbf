#include "gateway/http/openai_answer.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/status_catalogue.h"
#include "common/utf8.h"
#include "gateway/context_length.h"
#include "gateway/http/json_text.h"
#include "gateway/http/openai_request.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

// Seconds after which a client may come again that a lost tier has failed.
constexpr int kRetryUnavailableSeconds = 2;

absl::string_view ErrorType(int status) {
  if (status == 401) return "authentication_error";
  if (status == 403) return "permission_error";
  if (status == 404) return "not_found_error";
  if (status == 429) return "rate_limit_error";
  return status < 500 ? "invalid_request_error" : "server_error";
}

// `in_stream`: where no status line tells it, the status is the code, as vLLM has it.
std::string ErrorObject(int status, absl::string_view message, absl::string_view param,
                        absl::string_view code, bool in_stream = false) {
  const auto or_null = [](std::string& out, absl::string_view text) {
    if (text.empty()) {
      out += "null";
    } else {
      AppendJsonString(out, text);
    }
  };
  std::string body = "{\"error\":{\"message\":";
  AppendJsonString(body, IsValidUtf8(message) ? message : "bad request");
  absl::StrAppend(&body, ",\"type\":\"", ErrorType(status), "\",\"param\":");
  or_null(body, param);
  body += ",\"code\":";
  if (in_stream && code.empty()) {
    absl::StrAppend(&body, status);
  } else {
    or_null(body, code);
  }
  body += "}}";
  return body;
}

// What HTTP's clients are told of a status.
struct ErrorParts {
  int http_status;
  std::string message;
  std::string param;  // may be empty
};
ErrorParts PartsOf(const absl::Status& status) {
  ErrorParts parts;
  parts.http_status = LookUpStatus(status.code()).http_status;
  parts.message = WithHttpFieldName(status.message());
  if (parts.http_status < 500) parts.param = FieldOfMessage(parts.message);
  return parts;
}

absl::string_view FinishReasonName(const v1::Finished* finished) {
  if (finished == nullptr) return "null";
  return finished->reason() == v1::FINISH_REASON_LENGTH ? "\"length\"" : "\"stop\"";
}

void AppendHead(std::string& out, const OpenAiHead& head, absl::string_view object) {
  out += "{\"id\":";
  AppendJsonString(out, head.id);
  absl::StrAppend(&out, ",\"object\":\"", object, "\",\"created\":", head.created, ",\"model\":");
  AppendJsonString(out, head.model);
  out += ",\"system_fingerprint\":";
  AppendJsonString(out, head.fingerprint);
  out += ",\"choices\":[";
}

void AppendPromptIds(std::string& out, const OpenAiChoice& choice) {
  if (!choice.prompt_token_ids.has_value()) return;
  out += ",\"prompt_token_ids\":";
  AppendJsonIds(out, *choice.prompt_token_ids);
}

// `content`: what the choice's text is called: "text", or the object that it is in.
void AppendChoiceObject(std::string& out, const OpenAiChoice& choice, bool chat, bool event) {
  absl::StrAppend(&out, "{\"index\":", choice.index);
  if (!chat) {
    out += ",\"text\":";
    AppendJsonString(out, choice.text);
  } else {
    out += event ? ",\"delta\":{" : ",\"message\":{";
    if (!event || choice.first) out += "\"role\":\"assistant\",";
    out += "\"content\":";
    AppendJsonString(out, choice.text);
    out += '}';
  }
  absl::StrAppend(&out, ",\"logprobs\":", choice.logprobs.empty() ? "null" : choice.logprobs,
                  ",\"finish_reason\":", FinishReasonName(choice.finished));
  if (choice.finished != nullptr) {
    out += ",\"stop_reason\":";
    if (choice.finished->has_stop_string()) {
      AppendJsonString(out, choice.finished->stop_string());
    } else if (choice.finished->has_stop_token()) {
      absl::StrAppend(&out, choice.finished->stop_token());
    } else {
      out += "null";
    }
  }
  if (choice.token_ids.has_value()) {
    out += ",\"token_ids\":";
    AppendJsonIds(out, *choice.token_ids);
  }
  AppendPromptIds(out, choice);
  if (choice.worker.has_value()) {
    out += ",\"worker\":";
    AppendJsonString(out, *choice.worker);
  }
  out += '}';
}

void AppendListItem(std::string& list, absl::string_view item) {
  if (!list.empty()) list += ',';
  list.append(item.data(), item.size());
}

}  // namespace

HttpResponse OpenAiError(int status, absl::string_view message, absl::string_view param,
                         absl::string_view code) {
  HttpResponse response;
  response.status = status;
  response.body = ErrorObject(status, message, param, code);
  if (status == 503) response.headers = {{"Retry-After", absl::StrCat(kRetryUnavailableSeconds)}};
  if (status == 401) response.headers = {{"WWW-Authenticate", "Bearer"}};
  return response;
}

HttpResponse OpenAiError(const absl::Status& status) {
  const ErrorParts parts = PartsOf(status);
  absl::string_view code;
  if (absl::IsNotFound(status) && parts.param == "model") code = "model_not_found";
  if (absl::IsUnauthenticated(status)) code = "invalid_api_key";
  if (IsContextLengthExceeded(status)) code = "context_length_exceeded";
  HttpResponse response = OpenAiError(parts.http_status, parts.message, parts.param, code);
  if (const std::optional<absl::Duration> wait = RetryAfter(status)) {
    response.headers = {{"Retry-After", absl::StrCat(RetryAfterSeconds(*wait))}};
  }
  // OpenAI's packages send again whatever ends with a 5xx, but not what says this.
  if (absl::IsInternal(status) || absl::IsDeadlineExceeded(status)) {
    response.headers = {{"X-Should-Retry", "false"}};
  }
  return response;
}

std::string OpenAiErrorEvent(const absl::Status& status) {
  const ErrorParts parts = PartsOf(status);
  return absl::StrCat(
      "data: ", ErrorObject(parts.http_status, parts.message, parts.param, "", /*in_stream=*/true),
      "\n\n");
}

int64_t CountCharacters(absl::string_view text) {
  int64_t count = 0;
  for (const char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

std::string TokenText(const Tokenizer* tokenizer, int32_t id) {
  const absl::string_view bytes =
      tokenizer == nullptr ? absl::string_view() : tokenizer->TokenBytes(id);
  if (bytes.empty()) return absl::StrCat("token_id:", id);
  if (IsValidUtf8(bytes)) return std::string(bytes);
  std::string text = "bytes:";
  for (const char c : bytes) {
    absl::StrAppendFormat(&text, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
  }
  return text;
}

OpenAiLogprobs::OpenAiLogprobs(const Tokenizer* tokenizer, bool chat, bool tokens_as_ids)
    : tokenizer_(tokenizer), names_(tokens_as_ids ? nullptr : tokenizer), chat_(chat) {
  if (tokenizer != nullptr) decoder_.emplace(*tokenizer, /*skip_special_tokens=*/false);
}

void OpenAiLogprobs::BeginOutput(int64_t characters_before) {
  offset_ = characters_before;
  if (!decoder_.has_value()) return;
  std::string held_back = decoder_->held_back();
  decoder_.emplace(*tokenizer_, /*skip_special_tokens=*/true, std::move(held_back));
}

void OpenAiLogprobs::Add(int32_t id, const v1::TokenLogprobs& logprobs) {
  if (chat_) {
    AddChat(id, logprobs);
  } else {
    AddCompletion(id, logprobs);
  }
}

int64_t OpenAiLogprobs::Advance(int32_t id) {
  int64_t begin = offset_;
  if (!decoder_.has_value()) return begin;
  const bool within_character = !decoder_->held_back().empty();
  const std::string text = decoder_->Push(id);
  // What was held back and is not gone on with has become U+FFFD, before this token.
  const absl::string_view bytes = tokenizer_->TokenBytes(id);
  const bool goes_on = !bytes.empty() && (static_cast<unsigned char>(bytes[0]) & 0xC0) == 0x80;
  if (within_character && !goes_on && !text.empty()) ++begin;
  offset_ += CountCharacters(text);
  return begin;
}

void OpenAiLogprobs::AddCompletion(int32_t id, const v1::TokenLogprobs& logprobs) {
  const std::string own = Name(id);
  std::string item;
  AppendJsonString(item, own);
  AppendListItem(tokens_, item);
  AppendListItem(offsets_, absl::StrCat(Advance(id)));
  if (!logprobs.has_logprob()) {
    AppendListItem(values_, "null");
    AppendListItem(best_, "null");
    return;
  }
  item.clear();
  AppendJsonFloat(item, logprobs.logprob());
  AppendListItem(values_, item);
  // The token's own is always among them. Two tokens of the same text: the likelier one.
  std::set<std::string> seen;
  item = "{";
  const auto add = [&](const std::string& text, float value) {
    if (!seen.insert(text).second) return;
    if (item.size() > 1) item += ',';
    AppendJsonString(item, text);
    item += ':';
    AppendJsonFloat(item, value);
  };
  for (const v1::TopLogprob& top : logprobs.top()) {
    add(Name(top.token()), top.logprob());
  }
  add(own, logprobs.logprob());
  item += '}';
  AppendListItem(best_, item);
}

void OpenAiLogprobs::AddChat(int32_t id, const v1::TokenLogprobs& logprobs) {
  const auto append = [&](std::string& out, int32_t token, float value) {
    out += "{\"token\":";
    AppendJsonString(out, Name(token));
    out += ",\"logprob\":";
    AppendJsonFloat(out, value);
    out += ",\"bytes\":[";
    const absl::string_view bytes =
        tokenizer_ == nullptr ? absl::string_view() : tokenizer_->TokenBytes(token);
    for (size_t i = 0; i < bytes.size(); ++i) {
      absl::StrAppend(&out, i == 0 ? "" : ",", static_cast<unsigned char>(bytes[i]));
    }
    out += ']';
  };
  std::string item;
  append(item, id, logprobs.logprob());
  item += ",\"top_logprobs\":[";
  for (int i = 0; i < logprobs.top_size(); ++i) {
    if (i > 0) item += ',';
    append(item, logprobs.top(i).token(), logprobs.top(i).logprob());
    item += '}';
  }
  item += "]}";
  AppendListItem(tokens_, item);
}

std::string OpenAiLogprobs::Take() {
  std::string out;
  if (chat_) {
    out = absl::StrCat("{\"content\":[", tokens_, "]}");
  } else {
    out = absl::StrCat("{\"tokens\":[", tokens_, "],\"token_logprobs\":[", values_,
                       "],\"top_logprobs\":[", best_, "],\"text_offset\":[", offsets_, "]}");
  }
  tokens_.clear();
  values_.clear();
  best_.clear();
  offsets_.clear();
  return out;
}

void AppendUsage(std::string& out, const OpenAiUsage& usage) {
  absl::StrAppend(&out, "{\"prompt_tokens\":", usage.prompt_tokens,
                  ",\"completion_tokens\":", usage.completion_tokens,
                  ",\"total_tokens\":", usage.prompt_tokens + usage.completion_tokens,
                  ",\"prompt_tokens_details\":{\"cached_tokens\":", usage.cached_tokens, "}}");
}

OpenAiEvents::OpenAiEvents(OpenAiHead head, bool usage_field)
    : head_(std::move(head)), usage_field_(usage_field) {
  beginning_ = "data: ";
  AppendHead(beginning_, head_, head_.chat ? "chat.completion.chunk" : "text_completion");
}

void OpenAiEvents::Begin(std::string& out, absl::string_view event_id) const {
  if (!event_id.empty()) absl::StrAppend(&out, "id: ", event_id, "\n");
  out += beginning_;
}

void OpenAiEvents::AppendChoice(std::string& out, absl::string_view event_id,
                                const OpenAiChoice& choice, const OpenAiUsage* usage) const {
  Begin(out, event_id);
  AppendChoiceObject(out, choice, head_.chat, /*event=*/true);
  out += ']';
  if (usage != nullptr) {
    out += ",\"usage\":";
    AppendUsage(out, *usage);
  } else if (usage_field_) {
    out += ",\"usage\":null";
  }
  out += "}\n\n";
}

void OpenAiEvents::AppendUsageOnly(std::string& out, absl::string_view event_id,
                                   const OpenAiUsage& usage) const {
  Begin(out, event_id);
  out += "],\"usage\":";
  AppendUsage(out, usage);
  out += "}\n\n";
}

std::string OpenAiAnswer(const OpenAiHead& head, absl::Span<const OpenAiChoice> choices,
                         const OpenAiUsage& usage) {
  std::string out;
  AppendHead(out, head, head.chat ? "chat.completion" : "text_completion");
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) out += ',';
    AppendChoiceObject(out, choices[i], head.chat, /*event=*/false);
  }
  out += ']';
  if (head.chat && !choices.empty()) AppendPromptIds(out, choices[0]);  // where vLLM has them
  out += ",\"usage\":";
  AppendUsage(out, usage);
  out += '}';
  return out;
}

}  // namespace blockserve
