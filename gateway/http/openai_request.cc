#include "gateway/http/openai_request.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "gateway/admission.h"
#include "gateway/http/json_fields.h"
#include "gateway/http/other_servers.h"
#include "gateway/validate.h"

namespace blockserve {
namespace {

using Json = nlohmann::json;

constexpr int64_t kAnyInt = std::numeric_limits<int32_t>::max();

void ReadPrompts(JsonFields& fields, HttpCompletion& out) {
  const Json* prompt = fields.Find("prompt");
  if (!fields.status().ok()) return;
  if (prompt == nullptr) return fields.Fail("prompt", "must be given");
  constexpr absl::string_view kForms =
      "must be a string, a list of strings, a list of token ids, or a list of such lists";
  if (prompt->is_string()) {
    out.prompts.push_back({prompt->get<std::string>(), std::nullopt});
    return;
  }
  if (!prompt->is_array() || prompt->empty()) return fields.Fail("prompt", kForms);
  const auto read_ids = [&](const Json& ids, const std::string& field) {
    absl::StatusOr<std::vector<int32_t>> read = IdsOf(ids, field);
    if (!read.ok()) {
      fields.Fail(FieldOfMessage(read.status().message()), "must be a token id");
      return false;
    }
    out.prompts.push_back({std::nullopt, *std::move(read)});
    return true;
  };
  if (prompt->front().is_number()) {
    read_ids(*prompt, "prompt");
    return;
  }
  if (prompt->size() > kMaxHttpPrompts) {
    return fields.Fail(
        "prompt", absl::StrCat("may have ", kMaxHttpPrompts, " prompts, not ", prompt->size()));
  }
  for (size_t i = 0; i < prompt->size(); ++i) {
    const Json& entry = (*prompt)[i];
    if (entry.type() != prompt->front().type()) return fields.Fail("prompt", kForms);
    if (entry.is_string()) {
      out.prompts.push_back({entry.get<std::string>(), std::nullopt});
    } else if (entry.is_array()) {
      if (!read_ids(entry, absl::StrCat("prompt[", i, "]"))) return;
    } else {
      return fields.Fail("prompt", kForms);
    }
  }
}

void ReadMessages(JsonFields& fields, HttpCompletion& out) {
  const Json* messages = fields.Find("messages");
  if (!fields.status().ok()) return;
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    return fields.Fail("messages", "must be a list of at least one message");
  }
  if (messages->size() > kMaxHttpMessages) {
    return fields.Fail("messages", absl::StrCat("may have ", kMaxHttpMessages, " entries, not ",
                                                messages->size()));
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    const std::string field = absl::StrCat("messages[", i, "]");
    const Json& message = (*messages)[i];
    if (!message.is_object()) return fields.Fail(field, "must be an object");
    ChatMessage read;
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string()) {
      return fields.Fail(absl::StrCat(field, ".role"), "must be a string");
    }
    read.role = role->get<std::string>();
    // What an assistant may have said beside its content: it would be left out of the text.
    for (const char* said : {"tool_calls", "function_call", "refusal"}) {
      const auto found = message.find(said);
      if (found == message.end() || found->empty() || *found == "") continue;
      return fields.Fail(absl::StrCat(field, ".", said), "is not supported here");
    }
    const auto content = message.find("content");
    if (content != message.end() && content->is_string()) {
      read.content = content->get<std::string>();
    } else if (content != message.end() && content->is_array()) {
      for (const Json& part : *content) {
        if (!part.is_object() || part.value("type", Json()) != "text" || !part.contains("text") ||
            !part["text"].is_string()) {
          return fields.Fail(absl::StrCat(field, ".content"), "may have parts of type text only");
        }
        read.content += part["text"].get_ref<const std::string&>();
      }
    } else if (read.role == "assistant" && (content == message.end() || content->is_null())) {
      // It said nothing.
    } else {
      return fields.Fail(absl::StrCat(field, ".content"), "must be a string or a list of parts");
    }
    out.messages.push_back(std::move(read));
  }
}

void ReadChatEnd(JsonFields& fields, HttpCompletion& out) {
  const auto answer = fields.Bool("add_generation_prompt");
  if (fields.Bool("continue_final_message").value_or(false)) {
    if (answer.value_or(false)) {
      return fields.Fail("continue_final_message", "excludes add_generation_prompt");
    }
    out.chat_end = ChatEnd::kWithinLastMessage;
  } else if (!answer.value_or(true)) {
    out.chat_end = ChatEnd::kAfterLastMessage;
  }
}

void ReadStop(JsonFields& fields, v1::StopConditions& out) {
  const Json* stop = fields.Find("stop");
  if (stop != nullptr) {
    if (stop->is_string()) {
      out.add_strings(stop->get<std::string>());
    } else if (!stop->is_array() || stop->size() > static_cast<size_t>(kMaxStopStrings)) {
      fields.Fail("stop", absl::StrCat("must be a string, or a list of at most ", kMaxStopStrings));
    } else {
      for (const Json& entry : *stop) {
        if (!entry.is_string())
          return fields.Fail("stop", "must be a string, or a list of strings");
        out.add_strings(entry.get<std::string>());
      }
    }
  }
  if (const auto ids = fields.Ids("stop_token_ids", kMaxStopIds)) {
    out.mutable_token_ids()->Add(ids->begin(), ids->end());
  }
  if (const auto ignore = fields.Bool("ignore_eos")) out.set_ignore_eos(*ignore);
  if (const auto include = fields.Bool("include_stop_str_in_output")) {
    out.set_include_string(*include);
  }
  if (const auto least = fields.Integer("min_tokens", 0, kAnyInt)) {
    out.set_min_tokens(static_cast<int32_t>(*least));
  }
}

void ReadSampling(JsonFields& fields, v1::SamplingParameters& out) {
  if (const auto value = fields.Number("temperature")) out.set_temperature(*value);
  if (const auto value = fields.Number("top_p")) out.set_top_p(*value);
  if (const auto value = fields.Number("min_p")) out.set_min_p(*value);
  if (const auto value = fields.Number("repetition_penalty")) out.set_repetition_penalty(*value);
  if (const auto value = fields.Number("presence_penalty")) out.set_presence_penalty(*value);
  if (const auto value = fields.Number("frequency_penalty")) out.set_frequency_penalty(*value);
  // llama.cpp's, whose clients send a default of 64: of penalties that are none it says nothing.
  const bool penalizes = out.presence_penalty() != 0 || out.frequency_penalty() != 0 ||
                         (out.has_repetition_penalty() && out.repetition_penalty() != 1);
  if (fields.Integer("repeat_last_n", -1, kAnyInt).value_or(-1) != -1 && penalizes) {
    fields.Fail("repeat_last_n", "must be -1 with penalties, which look at the whole text");
  }
  // -1 is what some clients say for "off".
  if (const auto value = fields.Integer("top_k", -1, kAnyInt)) {
    out.set_top_k(*value < 0 ? 0 : static_cast<int32_t>(*value));
  }
  const Json* bias = fields.Find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object() || bias->size() > static_cast<size_t>(kMaxLogitBias)) {
    return fields.Fail("logit_bias",
                       absl::StrCat("must be an object of at most ", kMaxLogitBias, " token ids"));
  }
  for (const auto& [id, value] : bias->items()) {
    v1::LogitBias& entry = *out.add_logit_bias();
    int32_t token = 0;
    if (!absl::SimpleAtoi(id, &token)) {
      return fields.Fail("logit_bias", "must have token ids as names");
    }
    if (!value.is_number()) return fields.Fail("logit_bias", "must have numbers as values");
    entry.set_token(token);
    entry.set_bias(value.get<float>());
    // Checked here, where its name is known: later the entries are numbered.
    if (!(std::abs(entry.bias()) <= kLargestLogitBias)) {
      return fields.Fail(absl::StrCat("logit_bias[\"", id, "\"]"),
                         absl::StrCat("must be in [-", kLargestLogitBias, ", ", kLargestLogitBias,
                                      "], not ", entry.bias()));
    }
  }
}

void ReadLogprobs(JsonFields& fields, HttpCompletion& out) {
  if (!out.chat) {
    if (const auto best = fields.Integer("logprobs", 0, kMaxRequestLogprobs)) {
      out.request.set_logprobs(static_cast<int32_t>(*best));
    }
    return;
  }
  const bool wanted = fields.Bool("logprobs").value_or(false);
  const auto best = fields.Integer("top_logprobs", 0, kMaxRequestLogprobs);
  if (best.value_or(0) > 0 && !wanted)
    return fields.Fail("top_logprobs", "needs logprobs to be true");
  if (wanted) out.request.set_logprobs(static_cast<int32_t>(best.value_or(0)));
}

void ReadStreamOptions(JsonFields& fields, HttpCompletion& out) {
  const Json* options = fields.Find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) return fields.Fail("stream_options", "must be an object");
  if (!out.stream) return fields.Fail("stream_options", "needs stream to be true");
  JsonFields inner(*options, "stream_options.");
  out.include_usage = inner.Bool("include_usage").value_or(false);
  out.continuous_usage = inner.Bool("continuous_usage_stats").value_or(false);
  out.per_block = inner.Bool("per_block").value_or(false);
  out.include_worker = inner.Bool("include_worker").value_or(false);
  out.include_event_id = inner.Bool("include_event_id").value_or(false);
  if (const auto interval = inner.Integer("stream_interval", 1, kMaxStreamInterval)) {
    out.request.set_stream_interval(static_cast<int32_t>(*interval));
  }
  if (!inner.status().ok()) {
    const absl::string_view message = inner.status().message();
    const std::string field = FieldOfMessage(message);
    return fields.Fail(field, message.substr(field.size() + 2));
  }
  for (std::string& name : inner.Unknown()) out.unknown_fields.push_back(std::move(name));
}

void ReadPriority(JsonFields& fields, v1::GenerateRequest& out) {
  const Json* given = fields.Find("priority");
  // As vLLM has them: smaller numbers come first, and 0 is the default.
  if (given != nullptr && given->is_number()) {
    if (const auto number = fields.Integer("priority", -kAnyInt, kAnyInt);
        number.value_or(0) != 0) {
      out.set_priority(*number < 0 ? v1::PRIORITY_HIGH : v1::PRIORITY_BATCH);
    }
    return;
  }
  constexpr std::pair<absl::string_view, v1::Priority> kNames[] = {
      {"high", v1::PRIORITY_HIGH}, {"normal", v1::PRIORITY_NORMAL}, {"batch", v1::PRIORITY_BATCH}};
  const std::optional<std::string> word = fields.String("priority");
  if (!word.has_value()) return;
  for (const auto& [name, priority] : kNames) {
    if (*word == name) return out.set_priority(priority);
  }
  fields.Fail("priority", "must be high, normal or batch, or an integer");
}

void ReadAlignment(JsonFields& fields, v1::GenerateRequest& out) {
  if (const auto alignment = fields.String("alignment")) {
    if (*alignment == "end") {
      out.set_alignment(v1::ALIGNMENT_END);
    } else if (*alignment == "start") {
      out.set_alignment(v1::ALIGNMENT_START);
    } else if (*alignment == "none") {
      out.set_alignment(v1::ALIGNMENT_NONE);
    } else {
      fields.Fail("alignment", "must be end, start or none");
    }
  }
}

absl::Status ReadCompletion(const Json& object, HttpCompletion& out) {
  const bool chat = out.chat;
  JsonFields fields(object);
  RefuseUnsupported(fields, chat);
  if (const auto model = fields.String("model")) out.request.set_model(*model);
  if (chat) {
    ReadMessages(fields, out);
    ReadChatEnd(fields, out);
  } else {
    ReadPrompts(fields, out);
    out.echo = fields.Bool("echo").value_or(false);
  }
  if (const auto most = fields.Integer("truncate_prompt_tokens", -1, kAnyInt)) {
    if (*most == 0) fields.Fail("truncate_prompt_tokens", "must be -1, or at least 1");
    out.truncate_prompt_tokens = static_cast<int32_t>(*most);
  }
  const auto max_tokens = fields.Integer("max_tokens", 0, kAnyInt);
  if (max_tokens.has_value()) out.max_tokens = static_cast<int32_t>(*max_tokens);
  if (out.max_tokens == 0 && !out.echo) {
    fields.Fail("max_tokens", chat ? "must be at least 1" : "must be at least 1 without echo");
  }
  const auto n = fields.Integer("n", 1, kMaxChoices);
  if (n.has_value()) out.request.set_n(static_cast<int32_t>(*n));
  if (const auto best_of = fields.Integer("best_of", 1, kMaxChoices)) {
    if (*best_of != n.value_or(1)) {
      fields.Fail("best_of", "must be equal to n: choices are not ranked here");
    }
  }
  out.stream = fields.Bool("stream").value_or(false);
  ReadStreamOptions(fields, out);
  ReadLogprobs(fields, out);
  ReadStop(fields, *out.request.mutable_stop());
  ReadSampling(fields, *out.request.mutable_sampling());
  // -1 is what vLLM and llama.cpp say for "any".
  if (const Json* seed = fields.Find("seed"); seed != nullptr && *seed != -1) {
    if (const auto bits = fields.Bits("seed")) out.request.set_seed(*bits);
  }
  out.return_token_ids = fields.Bool("return_token_ids").value_or(false);
  out.tokens_as_ids = fields.Bool("return_tokens_as_token_ids").value_or(false);
  if (const auto salt = fields.String("cache_salt")) out.request.set_cache_salt(*salt);
  ReadAlignment(fields, out.request);
  ReadPriority(fields, out.request);
  if (fields.status().ok() && (out.echo || chat)) {
    if (out.request.alignment() != v1::ALIGNMENT_UNSPECIFIED &&
        out.request.alignment() != v1::ALIGNMENT_START) {
      fields.Fail("alignment", chat ? "is start for chat" : "is start with echo");
    }
    out.request.set_alignment(v1::ALIGNMENT_START);
  }
  fields.Find("user");  // accepted, and of no effect
  for (std::string& name : fields.Unknown()) out.unknown_fields.push_back(std::move(name));
  return fields.status();
}

}  // namespace

absl::StatusOr<HttpCompletion> ParseCompletion(absl::string_view body, bool chat) {
  absl::StatusOr<Json> object = ParseJsonObject(body);
  if (!object.ok()) return object.status();
  HttpCompletion out;
  out.chat = chat;
  if (absl::Status status = TakeAliases(*object, out.renamed); !status.ok()) return status;
  if (absl::Status status = ReadCompletion(*object, out); !status.ok()) {
    return absl::Status(status.code(), WithFieldNamesOf(out.renamed, status.message()));
  }
  return out;
}

std::string FieldOfMessage(absl::string_view message) {
  const size_t colon = message.find(": ");
  if (colon == absl::string_view::npos || colon == 0) return "";
  const absl::string_view field = message.substr(0, colon);
  for (const char c : field) {
    const bool belongs = absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' ||
                         c == '-' || c == '.' || c == '[' || c == ']' || c == '"';
    if (!belongs) return "";
  }
  return std::string(field);
}

absl::Status NamedAsGiven(const absl::Status& status, const HttpCompletion& wanted, size_t index,
                          size_t prompts) {
  const std::string message = WithFieldNamesOf(wanted.renamed, WithHttpFieldName(status.message()));
  absl::string_view rest = message;
  const bool of_prompt = absl::ConsumePrefix(&rest, "prompt");
  if (absl::StartsWith(status.message(), kPromptsOfCall)) prompts = 1;  // of none by itself
  absl::Status named(status.code(), of_prompt && wanted.chat ? absl::StrCat("messages", rest)
                                    : of_prompt && prompts > 1
                                        ? absl::StrCat("prompt[", index, "]", rest)
                                        : message);
  status.ForEachPayload([&named](absl::string_view type, const absl::Cord& payload) {
    named.SetPayload(type, payload);
  });
  return named;
}

std::string WithHttpFieldName(absl::string_view message) {
  // HTTP's entries have no numbers; the message names the token.
  if (absl::StartsWith(message, "sampling.logit_bias[")) {
    return absl::StrCat("logit_bias", message.substr(std::min(message.find(':'), message.size())));
  }
  static constexpr std::pair<absl::string_view, absl::string_view> kNames[] = {
      {kPromptsOfCall, "prompt"},
      {"prompt.text", "prompt"},
      {"prompt.tokens", "prompt"},
      {"continuation_text", "prompt"},
      {"continuation_tokens", "prompt"},
      {"continuation", "prompt"},
      {"stop.strings", "stop"},
      {"stop.token_ids", "stop_token_ids"},
      {"stop.", ""},
      {"sampling.", ""},
      {"request_id", "X-Request-Id"},
  };
  for (const auto& [theirs, ours] : kNames) {
    if (absl::StartsWith(message, theirs)) {
      return absl::StrCat(ours, message.substr(theirs.size()));
    }
  }
  return std::string(message);
}

}  // namespace blockserve
