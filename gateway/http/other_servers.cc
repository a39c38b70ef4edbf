#include "gateway/http/other_servers.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace blockserve {
namespace {

using Json = nlohmann::json;

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
bool IsNotAboveZero(const Json& value) { return value.is_number() && value <= 0; }
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
    {"structural_tag", IsEmpty},
    {"allowed_token_ids", Never},  // an empty list allows nothing
    {"bad_words", IsEmptyList},
    {"banned_strings", IsEmpty},
    {"ban_eos_token", Is<false>},  // ignore_eos is what this has
    {"logits_processors", IsEmptyList},
    {"custom_logit_processor", IsEmpty},
    {"thinking_token_budget", IsNumber<-1>},
    // Other ends.
    {"stop_strings", IsEmpty},
    {"stop_regex", IsEmpty},
    {"repetition_detection", IsEmpty},
    // Other ways to sample.
    {"use_beam_search", Is<false>},
    {"num_beams", IsNumber<1>},
    {"length_penalty", IsNumber<1>},
    {"samplers", Never},
    {"typical_p", IsNumber<1>},
    {"typ_p", IsNumber<1>},
    {"tfs_z", IsNumber<1>},
    {"top_a", IsNumber<0>},
    {"top_n_sigma", IsNotAboveZero},
    {"smoothing_factor", IsNumber<0>},
    {"no_repeat_ngram_size", IsNumber<0>},
    {"mirostat", IsNumber<0>},
    {"mirostat_mode", IsNumber<0>},
    {"dynatemp_range", IsNumber<0>},
    {"xtc_probability", IsNumber<0>},
    {"dry_multiplier", IsNumber<0>},
    {"do_sample", Is<true>},  // temperature 0 is what this has
    // Another model.
    {"lora", IsEmptyList},
    {"lora_path", IsEmpty},
    {"adapter_id", IsEmpty},
    // Another prompt, or another text for the same tokens.
    {"prompt_embeds", Never},
    {"truncate", Never},  // truncate_prompt_tokens is what this has
    {"truncation_side", [](const Json& value) { return value == "left"; }},
    // Another text by a mark in it.
    {"watermarking", Is<false>},
    {"watermark", Is<false>},
    // No tokenizer of these models adds any.
    {"add_special_tokens", IsBoolean},
    {"skip_special_tokens", Is<true>},
    {"spaces_between_special_tokens", IsBoolean},  // of those that are skipped
    {"no_stop_trim", Is<false>},
    // More about the prompt: `echo` with `logprobs` tells it.
    {"prompt_logprobs", Never},
    // `logprobs` is what this has.
    {"n_probs", IsNumber<0>},
    {"logprob_token_ids", IsEmptyList},
};

constexpr UnsupportedField kUnsupportedInChat[] = {
    {"echo", Is<false>},
    // The format is the model's (chat_format.json).
    {"chat_template", IsEmpty},
    {"chat_template_kwargs", IsEmpty},
    {"documents", IsEmptyList},
};

// Names that other servers, or newer clients, have for a field.
constexpr std::pair<absl::string_view, absl::string_view> kAliases[] = {
    {"max_completion_tokens", "max_tokens"},  {"n_predict", "max_tokens"},
    {"max_new_tokens", "max_tokens"},         {"min_new_tokens", "min_tokens"},
    {"repeat_penalty", "repetition_penalty"},
};

}  // namespace

void RefuseUnsupported(JsonFields& fields, bool chat) {
  const auto refuse = [&fields](absl::Span<const UnsupportedField> unsupported) {
    for (const UnsupportedField& field : unsupported) {
      const std::string name(field.name);
      const Json* value = fields.Find(name);
      if (value != nullptr && !field.asks_for_nothing(*value)) {
        fields.Fail(name, "is not supported here");
      }
    }
  };
  refuse(kUnsupported);
  if (chat) refuse(kUnsupportedInChat);
}

absl::Status TakeAliases(nlohmann::json& object, std::vector<RenamedField>& renamed) {
  for (const auto& [alias, name] : kAliases) {
    const auto given = object.find(std::string(alias));
    if (given == object.end()) continue;
    Json value = std::move(*given);
    object.erase(given);
    if (value.is_null()) continue;
    Json& here = object[std::string(name)];
    if (here.is_null()) {
      here = std::move(value);
      renamed.push_back({std::string(name), std::string(alias)});
    } else if (here != value) {
      return FieldError(alias, "differs from ", WithFieldNamesOf(renamed, name));
    }
  }
  return absl::OkStatus();
}

std::string WithFieldNamesOf(absl::Span<const RenamedField> renamed, absl::string_view message) {
  for (const RenamedField& field : renamed) {
    absl::string_view rest = message;
    if (absl::ConsumePrefix(&rest, field.name) && (rest.empty() || rest.front() == ':')) {
      return absl::StrCat(field.given, rest);
    }
  }
  return std::string(message);
}

}  // namespace blockserve
