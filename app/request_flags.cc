#include "app/request_flags.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "common/utf8.h"

namespace blockserve {
namespace {

absl::Status Invalid(absl::string_view message) { return absl::InvalidArgumentError(message); }

void AddPriorityFlag(FlagTable& flags, std::string* target) {
  flags.AddChoice("priority", "high, normal or batch, where there is a queue; default: normal",
                  {"high", "normal", "batch"}, target);
}

v1::Priority PriorityValue(const std::string& name) {
  if (name == "high") return v1::PRIORITY_HIGH;
  if (name == "normal") return v1::PRIORITY_NORMAL;
  if (name == "batch") return v1::PRIORITY_BATCH;
  return v1::PRIORITY_UNSPECIFIED;
}

void AddCacheSaltFlag(FlagTable& flags, std::optional<std::string>* target) {
  flags.Add("cache_salt", "share KV with requests of the same salt alone, 1 to 256 bytes", target);
}

void AddAlignmentFlag(FlagTable& flags, std::string* target) {
  flags.AddChoice("alignment", "where blocks begin: end, start or none; default: the model's",
                  {"end", "start", "none"}, target);
}

// At most one of a text and its tokens, the text well-formed: gRPC sends no other.
absl::Status CheckText(absl::string_view flag, const std::optional<std::string>& text,
                       const std::optional<std::vector<int32_t>>& tokens) {
  if (text.has_value() && tokens.has_value()) {
    return Invalid(absl::StrCat(flag, " and ", flag, "-tokens exclude each other"));
  }
  if (text.has_value() && !IsValidUtf8(*text)) {
    return Invalid(absl::StrCat(flag, " is not valid UTF-8"));
  }
  return absl::OkStatus();
}

absl::Status CheckCacheSalt(const std::optional<std::string>& salt) {
  if (salt.has_value() && !IsValidUtf8(*salt)) return Invalid("--cache-salt is not valid UTF-8");
  return absl::OkStatus();
}

v1::TokenIds ToIds(const std::vector<int32_t>& tokens) {
  v1::TokenIds ids;
  ids.mutable_ids()->Add(tokens.begin(), tokens.end());
  return ids;
}

}  // namespace

v1::Alignment AlignmentValue(const std::string& name) {
  if (name == "end") return v1::ALIGNMENT_END;
  if (name == "start") return v1::ALIGNMENT_START;
  if (name == "none") return v1::ALIGNMENT_NONE;
  return v1::ALIGNMENT_UNSPECIFIED;
}

absl::Status NamingTheFlag(const absl::Status& status) {
  if (!absl::IsInvalidArgument(status)) return status;
  const absl::string_view message = status.message();
  const size_t end =
      std::min(message.find_first_not_of("abcdefghijklmnopqrstuvwxyz_."), message.size());
  if (end == 0 || end == message.size() || (message[end] != ':' && message[end] != '[')) {
    return status;
  }
  absl::string_view field = message.substr(0, end);
  static constexpr std::pair<absl::string_view, absl::string_view> kNames[] = {
      {"stop.strings", "stop"},
      {"stop.token_ids", "stop_tokens"},
      {"prompt.text", "prompt"},
      {"prompt.tokens", "prompt_tokens"},
      {"continuation_text", "continuation"},
      {"context_text", "prompt"},
      {"context_tokens", "prompt_tokens"},
  };
  for (const auto& [theirs, ours] : kNames) {
    if (field == theirs) field = ours;
  }
  absl::ConsumePrefix(&field, "stop.");
  absl::ConsumePrefix(&field, "sampling.");
  return absl::InvalidArgumentError(absl::StrCat(FlagSpelling(field), message.substr(end)));
}

void GenerateFlags::AddFlags(FlagTable& flags) {
  flags.Add("prompt", "text to continue; needs a model with a tokenizer", &prompt);
  flags.AddTokens("prompt_tokens", "or its token ids: 1,2,3", &prompt_tokens);
  flags.Add("max_tokens", "most tokens of output", &max_tokens);
  flags.Add("min_tokens", "no stop before so many tokens", &min_tokens);
  flags.Add("temperature", "0 takes the best token", &temperature);
  flags.Add("top_k", "draw from the k best tokens alone", &top_k);
  flags.Add("top_p", "draw from the best tokens that make up this probability", &top_p);
  flags.Add("min_p", "leave out tokens below this share of the best one's probability", &min_p);
  flags.Add("repetition_penalty", "> 1 makes tokens of prompt and output rarer",
            &repetition_penalty);
  flags.Add("presence_penalty", "-2 to 2, for tokens of the output", &presence_penalty);
  flags.Add("frequency_penalty", "-2 to 2, for each time a token is in the output",
            &frequency_penalty);
  flags.AddRepeated("logit_bias", "ID:BIAS, added to a token's logit; may be repeated",
                    &logit_bias);
  flags.Add("seed", "equal seeds draw equal tokens; default: a new one", &seed);
  flags.Add("n", "number of choices", &n);
  flags.AddRepeated("stop", "text that ends the output; may be repeated", &stop);
  flags.Add("include_stop_string", "the output ends with the --stop text that ended it",
            &include_stop_string);
  flags.Needs("include_stop_string", "stop");
  flags.AddTokens("stop_tokens", "ids that end the output", &stop_tokens);
  flags.Add("ignore_eos", "the end-of-text id does not end the output", &ignore_eos);
  flags.AddOptionalNumber("logprobs",
                          "with --format json: log-probabilities, and those of the K best: [=K]", 0,
                          &logprobs);
  AddPriorityFlag(flags, &priority);
  AddCacheSaltFlag(flags, &cache_salt);
  AddAlignmentFlag(flags, &alignment);
}

absl::StatusOr<v1::GenerateRequest> GenerateFlags::Request() const {
  v1::GenerateRequest request;
  if (absl::Status status = CheckText("--prompt", prompt, prompt_tokens); !status.ok()) {
    return status;
  }
  if (prompt.has_value()) {
    request.set_text(*prompt);
  } else if (prompt_tokens.has_value()) {
    *request.mutable_tokens() = ToIds(*prompt_tokens);
  } else {
    return Invalid("--prompt or --prompt-tokens is missing");
  }
  if (absl::Status status = CheckCacheSalt(cache_salt); !status.ok()) return status;
  v1::SamplingParameters& sampling = *request.mutable_sampling();
  if (temperature.has_value()) sampling.set_temperature(*temperature);
  // Without a temperature there is nothing to draw, which is easily forgotten.
  for (const auto& [flag, given] :
       {std::pair("--top-k", top_k.has_value()), std::pair("--top-p", top_p.has_value()),
        std::pair("--min-p", min_p.has_value())}) {
    if (given && temperature == 0.0f) {
      return Invalid(absl::StrCat(flag, " has no effect with --temperature 0, the default"));
    }
  }
  if (top_k.has_value()) sampling.set_top_k(*top_k);
  if (top_p.has_value()) sampling.set_top_p(*top_p);
  if (min_p.has_value()) sampling.set_min_p(*min_p);
  if (repetition_penalty.has_value()) sampling.set_repetition_penalty(*repetition_penalty);
  if (presence_penalty.has_value()) sampling.set_presence_penalty(*presence_penalty);
  if (frequency_penalty.has_value()) sampling.set_frequency_penalty(*frequency_penalty);
  for (const std::string& entry : logit_bias) {
    const size_t colon = entry.find(':');
    int32_t token = 0;
    float bias = 0;
    if (colon == std::string::npos || !absl::SimpleAtoi(entry.substr(0, colon), &token) ||
        !absl::SimpleAtof(entry.substr(colon + 1), &bias)) {
      return Invalid(absl::StrCat("--logit-bias is \"", entry, "\"; it must be ID:BIAS"));
    }
    v1::LogitBias* added = sampling.add_logit_bias();
    added->set_token(token);
    added->set_bias(bias);
  }
  v1::StopConditions& conditions = *request.mutable_stop();
  conditions.set_max_tokens(max_tokens);
  conditions.set_min_tokens(min_tokens);
  for (const std::string& text : stop) {
    if (!IsValidUtf8(text)) return Invalid("--stop is not valid UTF-8");
    conditions.add_strings(text);
  }
  if (stop_tokens.has_value()) {
    conditions.mutable_token_ids()->Add(stop_tokens->begin(), stop_tokens->end());
  }
  conditions.set_include_string(include_stop_string);
  conditions.set_ignore_eos(ignore_eos);
  if (seed.has_value()) request.set_seed(*seed);
  request.set_n(n);
  if (logprobs.has_value()) request.set_logprobs(*logprobs);
  request.set_priority(PriorityValue(priority));
  if (cache_salt.has_value()) request.set_cache_salt(*cache_salt);
  request.set_alignment(AlignmentValue(alignment));
  return request;
}

void ScoreFlags::AddFlags(FlagTable& flags) {
  flags.Add("prompt", "the context; by itself the text to be scored", &prompt);
  flags.AddTokens("prompt_tokens", "or its token ids: 1,2,3", &prompt_tokens);
  flags.Add("continuation", "text to be scored after the prompt", &continuation);
  flags.AddTokens("continuation_tokens", "or its token ids", &continuation_tokens);
  flags.AddOptionalNumber("top_logprobs", "also of the K best tokens: =K", 1, &top_logprobs);
  AddPriorityFlag(flags, &priority);
  AddCacheSaltFlag(flags, &cache_salt);
  AddAlignmentFlag(flags, &alignment);
}

absl::StatusOr<v1::ScoreRequest> ScoreFlags::Request() const {
  v1::ScoreRequest request;
  for (const absl::Status& status :
       {CheckText("--prompt", prompt, prompt_tokens),
        CheckText("--continuation", continuation, continuation_tokens)}) {
    if (!status.ok()) return status;
  }
  if (absl::Status status = CheckCacheSalt(cache_salt); !status.ok()) return status;
  const bool has_prompt = prompt.has_value() || prompt_tokens.has_value();
  if (continuation.has_value() || continuation_tokens.has_value()) {
    if (prompt.has_value()) request.set_context_text(*prompt);
    if (prompt_tokens.has_value()) *request.mutable_context_tokens() = ToIds(*prompt_tokens);
    if (continuation.has_value()) request.set_continuation_text(*continuation);
    if (continuation_tokens.has_value()) {
      *request.mutable_continuation_tokens() = ToIds(*continuation_tokens);
    }
  } else if (has_prompt) {
    if (prompt.has_value()) request.set_continuation_text(*prompt);
    if (prompt_tokens.has_value()) *request.mutable_continuation_tokens() = ToIds(*prompt_tokens);
  } else {
    return Invalid("--prompt or --prompt-tokens is missing");
  }
  if (top_logprobs.has_value()) request.set_top_logprobs(*top_logprobs);
  request.set_priority(PriorityValue(priority));
  if (cache_salt.has_value()) request.set_cache_salt(*cache_salt);
  request.set_alignment(AlignmentValue(alignment));
  return request;
}

}  // namespace blockserve
