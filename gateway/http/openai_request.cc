#include "gateway/http/openai_request.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "gateway/http/json_fields.h"
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
    out.prompts.push_back({prompt->get<std::string>(), {}});
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
      out.prompts.push_back({entry.get<std::string>(), {}});
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
    } else {
      return fields.Fail(absl::StrCat(field, ".content"), "must be a string or a list of parts");
    }
    out.messages.push_back(std::move(read));
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
    if (const auto best = fields.Integer("logprobs", 0, kMaxTopLogprobs)) {
      out.request.set_logprobs(static_cast<int32_t>(*best));
    }
    return;
  }
  const bool wanted = fields.Bool("logprobs").value_or(false);
  const auto best = fields.Integer("top_logprobs", 0, kMaxTopLogprobs);
  if (best.has_value() && !wanted) return fields.Fail("top_logprobs", "needs logprobs to be true");
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

// Fields that are not served here, of OpenAI's and of other servers', and what each may say
// nevertheless because it asks for nothing: client libraries send their defaults. Passed over, a
// field that shapes the text would be answered with a text that is not what was asked for.
struct UnsupportedField {
  absl::string_view name;
  bool (*asks_for_nothing)(const Json& value);
};

template <bool kValue>
bool Is(const Json& value) {
  return value == kValue;
}
template <int kValue>
bool IsNumber(const Json& value) {
  return value.is_number() && value == kValue;
}
bool IsBoolean(const Json& value) { return value.is_boolean(); }
bool IsEmpty(const Json& value) {  // a string, list or object
  return (value.is_string() && value.get_ref<const std::string&>().empty()) ||
         (value.is_structured() && value.empty());
}
bool IsEmptyList(const Json& value) { return value.is_array() && value.empty(); }
bool Never(const Json& /*value*/) { return false; }

constexpr UnsupportedField kUnsupported[] = {
    // OpenAI's.
    {"tools", IsEmptyList},
    // There are no tools: "auto" calls none either.
    {"tool_choice", [](const Json& value) { return value == "none" || value == "auto"; }},
    {"parallel_tool_calls", IsBoolean},
    {"functions", IsEmptyList},
    {"function_call", [](const Json& value) { return value == "none"; }},
    {"response_format",
     [](const Json& value) {
       return value == Json{{"type", "text"}};
     }},
    {"suffix", [](const Json& value) { return value == ""; }},
    {"modalities", [](const Json& value) { return value == Json::array({"text"}); }},
    {"audio", Never},
    // vLLM's, SGLang's and llama.cpp's: texts of a given form.
    {"structured_outputs", IsEmpty},
    {"guided_json", IsEmpty},
    {"guided_regex", IsEmpty},
    {"guided_choice", IsEmpty},
    {"guided_grammar", IsEmpty},
    {"json_schema", IsEmpty},
    {"regex", IsEmpty},
    {"ebnf", IsEmpty},
    {"grammar", IsEmpty},
    {"allowed_token_ids", Never},  // an empty list allows nothing
    {"bad_words", IsEmptyList},
    {"logits_processors", IsEmptyList},
    // Other ways to sample.
    {"use_beam_search", Is<false>},
    {"length_penalty", IsNumber<1>},
    {"typical_p", IsNumber<1>},
    {"mirostat", IsNumber<0>},
    {"mirostat_mode", IsNumber<0>},
    {"dynatemp_range", IsNumber<0>},
    {"xtc_probability", IsNumber<0>},
    {"dry_multiplier", IsNumber<0>},
    // Another prompt, or another text for the same tokens.
    {"prompt_embeds", Never},
    {"truncate_prompt_tokens", Never},
    // No tokenizer of these models adds any.
    {"add_special_tokens", IsBoolean},
    {"skip_special_tokens", Is<true>},
    {"spaces_between_special_tokens", IsBoolean},  // of those that are skipped
    {"include_stop_str_in_output", Is<false>},
    {"no_stop_trim", Is<false>},
    // More about the prompt: `echo` with `logprobs` tells it.
    {"prompt_logprobs", Never},
};

void RefuseUnsupported(JsonFields& fields) {
  for (const UnsupportedField& field : kUnsupported) {
    const std::string name(field.name);
    const Json* value = fields.Find(name);
    if (value != nullptr && !field.asks_for_nothing(*value)) {
      fields.Fail(name, "is not supported here");
    }
  }
}

void ReadEnums(JsonFields& fields, v1::GenerateRequest& out) {
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
  if (const auto priority = fields.String("priority")) {
    if (*priority == "high") {
      out.set_priority(v1::PRIORITY_HIGH);
    } else if (*priority == "normal") {
      out.set_priority(v1::PRIORITY_NORMAL);
    } else if (*priority == "batch") {
      out.set_priority(v1::PRIORITY_BATCH);
    } else {
      fields.Fail("priority", "must be high, normal or batch");
    }
  }
}

}  // namespace

absl::StatusOr<HttpCompletion> ParseCompletion(absl::string_view body, bool chat) {
  absl::StatusOr<Json> parsed = ParseJsonObject(body);
  if (!parsed.ok()) return parsed.status();
  HttpCompletion out;
  out.chat = chat;
  JsonFields fields(*parsed);
  RefuseUnsupported(fields);
  if (const auto model = fields.String("model")) out.request.set_model(*model);
  if (chat) {
    ReadMessages(fields, out);
  } else {
    ReadPrompts(fields, out);
  }
  const auto max_tokens = fields.Integer("max_tokens", 0, kAnyInt);
  if (max_tokens.has_value()) out.max_tokens = static_cast<int32_t>(*max_tokens);
  if (chat) {
    if (const auto most = fields.Integer("max_completion_tokens", 0, kAnyInt)) {
      if (out.max_tokens.has_value() && *most != *out.max_tokens) {
        fields.Fail("max_completion_tokens", "differs from max_tokens");
      }
      out.max_tokens = static_cast<int32_t>(*most);
    }
  } else {
    out.echo = fields.Bool("echo").value_or(false);
  }
  if (out.max_tokens == 0 && !out.echo)
    fields.Fail("max_tokens", "must be at least 1 without echo");
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
  if (const auto seed = fields.Bits("seed")) out.request.set_seed(*seed);
  out.return_token_ids = fields.Bool("return_token_ids").value_or(false);
  if (const auto salt = fields.String("cache_salt")) out.request.set_cache_salt(*salt);
  ReadEnums(fields, out.request);
  if (fields.status().ok() && (out.echo || chat)) {
    if (out.request.alignment() != v1::ALIGNMENT_UNSPECIFIED &&
        out.request.alignment() != v1::ALIGNMENT_START) {
      fields.Fail("alignment", chat ? "is start for chat" : "is start with echo");
    }
    out.request.set_alignment(v1::ALIGNMENT_START);
  }
  fields.Find("user");  // accepted, and of no effect
  if (!fields.status().ok()) return fields.status();
  for (std::string& name : fields.Unknown()) out.unknown_fields.push_back(std::move(name));
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

std::string WithHttpFieldName(absl::string_view message) {
  // HTTP's entries have no numbers; the message names the token.
  if (absl::StartsWith(message, "sampling.logit_bias[")) {
    return absl::StrCat("logit_bias", message.substr(std::min(message.find(':'), message.size())));
  }
  static constexpr std::pair<absl::string_view, absl::string_view> kNames[] = {
      {"prompt.text", "prompt"},
      {"prompt.tokens", "prompt"},
      {"continuation_text", "prompt"},
      {"continuation_tokens", "prompt"},
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
