#include "gateway/http/completion_job.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/random_bits.h"
#include "common/trace_context.h"
#include "gateway/context_length.h"
#include "gateway/http/json_fields.h"
#include "gateway/validate.h"
#include "model/fingerprint.h"

namespace blockserve {
namespace {

// A chat's answer, where the request does not say how long it may be.
constexpr int32_t kDefaultChatTokens = 256;
// Room in a request id for the number of a prompt.
constexpr size_t kMaxHttpRequestIdBytes = 120;

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

absl::StatusOr<HttpPromptJob> MakePromptJob(const RequestValidator& validator,
                                            const HttpCompletion& wanted, HttpPrompt prompt,
                                            absl::string_view model_id, absl::Time deadline) {
  v1::GenerateRequest request = wanted.request;
  if (prompt.ids.has_value()) {
    request.mutable_tokens()->mutable_ids()->Add(prompt.ids->begin(), prompt.ids->end());
  } else {
    request.set_text(*prompt.text);
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
  if (request.has_cache_salt()) scored.set_cache_salt(request.cache_salt());
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
  // Of an empty prompt the token that stands for it is no part of the text.
  if (prompt.text.has_value() ? prompt.text->empty() : prompt.ids->empty()) return job;
  if (request.has_logprobs()) job.scoring = *std::move(scoring);
  if (prompt.text.has_value()) {
    job.text = *std::move(prompt.text);
  } else if (validator.tokenizer() != nullptr) {
    absl::StatusOr<std::string> text = validator.tokenizer()->Decode(job.ids, false);
    if (!text.ok()) return FieldError("prompt", text.status().message());
    job.text = *std::move(text);
    // Ids may end within a character, which is then for the output to complete.
    StreamDecoder end(*validator.tokenizer(), /*skip_special_tokens=*/false, job.ids);
    if (job.generation.has_value()) {
      job.generation->text_before = end.held_back();
      job.text.resize(job.text.size() - end.Flush().size());
    }
  }
  return job;
}

// Fills in the ids of a prompt's text, so that it is encoded once.
absl::Status Encode(const Tokenizer& tokenizer, HttpCompletion& wanted, size_t index) {
  HttpPrompt& prompt = wanted.prompts[index];
  if (prompt.ids.has_value()) return absl::OkStatus();
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(*prompt.text);
  if (!ids.ok()) {
    return NamedAsGiven(FieldError("prompt", ids.status().message()), wanted, index,
                        wanted.prompts.size());
  }
  prompt.ids = *std::move(ids);
  return absl::OkStatus();
}

// Of each prompt its last tokens, where the request says so.
absl::Status Truncate(const HttpJobContext& context, HttpCompletion& wanted) {
  if (!wanted.truncate_prompt_tokens.has_value()) return absl::OkStatus();
  int64_t most = *wanted.truncate_prompt_tokens;
  if (most < 0) {
    if (context.model.max_tokens() == 0) return absl::OkStatus();  // no limit is known
    const int32_t otherwise = wanted.chat ? kDefaultChatTokens : kDefaultMaxTokens;
    most = context.model.max_tokens() - wanted.max_tokens.value_or(otherwise);
    if (most < 1) {
      return ContextLengthExceeded(absl::StrCat(WithFieldNamesOf(wanted.renamed, "max_tokens"),
                                                ": leaves no room for a prompt"),
                                   context.model.max_tokens());
    }
  }
  const Tokenizer* const tokenizer = context.validator.tokenizer();
  for (size_t i = 0; i < wanted.prompts.size(); ++i) {
    HttpPrompt& prompt = wanted.prompts[i];
    if (tokenizer != nullptr) {
      if (absl::Status status = Encode(*tokenizer, wanted, i); !status.ok()) return status;
    }
    // A text without a tokenizer is refused later.
    if (!prompt.ids.has_value() || static_cast<int64_t>(prompt.ids->size()) <= most) continue;
    prompt.ids->erase(prompt.ids->begin(), prompt.ids->end() - most);
    prompt.text.reset();
  }
  return absl::OkStatus();
}

// How long the answer of a chat may be whose request does not say it: what the model has room for.
absl::Status ChooseChatTokens(const HttpJobContext& context, HttpCompletion& wanted) {
  if (wanted.max_tokens.has_value()) return absl::OkStatus();
  wanted.max_tokens = kDefaultChatTokens;
  const Tokenizer* const tokenizer = context.validator.tokenizer();
  const int64_t most = context.model.max_tokens();
  const HttpPrompt& prompt = wanted.prompts[0];
  // Of a prompt that is too long it does not matter: it is refused later, most of them unread.
  if (tokenizer == nullptr || most == 0) return absl::OkStatus();
  if (!prompt.ids.has_value() && tokenizer->LeastTokens(*prompt.text) > most) {
    return absl::OkStatus();
  }
  if (absl::Status status = Encode(*tokenizer, wanted, 0); !status.ok()) return status;
  const int64_t room = most - static_cast<int64_t>(prompt.ids->size());
  wanted.max_tokens = static_cast<int32_t>(std::clamp<int64_t>(room, 1, kDefaultChatTokens));
  return absl::OkStatus();
}

// About how large the part of an answer may become that is of `prompt`: of each choice its text,
// ids where they are asked for, and of each token its log-probability and offset and those of the
// best ids beside it.
int64_t AnswerBytes(const HttpCompletion& wanted, const HttpPromptJob& prompt) {
  constexpr int64_t kTextBytes = 8;
  constexpr int64_t kIdBytes = 6;
  constexpr int64_t kLogprobBytes = 48;
  constexpr int64_t kTopLogprobBytes = 16;
  const bool logprobs = wanted.request.has_logprobs();
  const int64_t token_bytes =
      kTextBytes + (logprobs ? kLogprobBytes + kTopLogprobBytes * wanted.request.logprobs() : 0);
  const int64_t prompt_tokens = static_cast<int64_t>(prompt.ids.size());
  const int64_t most_tokens = prompt.generation.has_value() ? prompt.generation->max_tokens : 0;
  int64_t bytes = token_bytes * most_tokens;
  if (wanted.echo) {
    // Some tokens are hundreds of bytes; with log-probabilities a token's text stands there thrice.
    const int64_t text_bytes = static_cast<int64_t>(prompt.text.size());
    bytes += std::max(token_bytes * prompt_tokens, text_bytes * (logprobs ? 3 : 1));
  }
  if (wanted.return_token_ids) bytes += kIdBytes * (prompt_tokens + most_tokens);
  return bytes * wanted.n();
}

// An answer is made in memory, on a thread that others share.
absl::Status CheckAnswerSize(const HttpCompletion& wanted, int64_t bytes) {
  constexpr int64_t kMostBytes = int64_t{32} << 20;
  // A stream's events leave as they are made; what is echoed comes at once.
  if (wanted.stream && !wanted.echo) return absl::OkStatus();
  if (bytes <= kMostBytes) return absl::OkStatus();
  return FieldError(wanted.request.has_logprobs() ? "logprobs"
                    : wanted.n() > 1              ? "n"
                                                  : "prompt",
                    "the answer may take more than ", kMostBytes >> 20,
                    " MiB: ask for fewer prompts, choices, tokens or log-probabilities");
}

// Whose stream is gone on with, where one is: `job.resume`.
absl::Status ReadLastEventId(absl::string_view text, HttpCompletionJob& job) {
  if (text.empty()) return absl::OkStatus();
  absl::StatusOr<HttpEventId> id = ParseEventId(text);
  if (!id.ok()) return id.status();
  const HttpCompletion& wanted = job.wanted;
  const size_t choices =
      (wanted.chat ? 1 : wanted.prompts.size()) * static_cast<size_t>(wanted.n());
  // An echo by itself is one event: who has it has all.
  if (!wanted.stream || wanted.max_tokens == 0 || id->tokens.size() != choices ||
      (wanted.request.has_seed() && wanted.request.seed() != id->seed)) {
    return FieldError("Last-Event-ID", "is not of a stream of this request");
  }
  job.resume = *std::move(id);
  return absl::OkStatus();
}

// Of what the tokens of the answer depend on beside the workers and the client's own fields.
std::string HashOfPrompts(const std::vector<HttpPromptJob>& prompts) {
  Sha256 hash;
  for (const HttpPromptJob& prompt : prompts) {
    hash.Update(absl::StrCat(absl::StrJoin(prompt.ids, ","), "\n"));
    if (!prompt.generation.has_value()) continue;
    for (const std::string& stop : prompt.generation->stop_strings) {
      hash.Update(absl::StrCat(stop.size(), " ", stop));
    }
  }
  return hash.Hex().substr(0, HttpEventId::kHashDigits);
}

// What the core is to do for each prompt of `job.wanted`, which are moved away: `job.prompts`.
absl::Status AddPrompts(const HttpJobContext& context, const HttpRequest& request,
                        const std::string& key_name, absl::Time deadline, HttpCompletionJob& job) {
  HttpCompletion& wanted = job.wanted;
  const bool seed_given = wanted.request.has_seed();
  const size_t count = wanted.prompts.size();
  RequestOrigin origin;
  origin.trace = ParseTraceparent(request.header(kTraceparentKey)).value_or(TraceContext());
  origin.prompts_of_call = static_cast<int32_t>(count);
  origin.tiers = std::make_shared<CallTiers>();
  if (job.resume.has_value()) *origin.tiers = {job.resume->tiers, /*wrote_stream=*/true};
  int64_t answer_bytes = 0;
  for (size_t i = 0; i < count; ++i) {
    wanted.request.set_request_id(count == 1 ? job.request_id
                                             : absl::StrCat(job.request_id, "-", i));
    // Prompts that are alike get answers that differ, unless the client wants to get the same.
    wanted.request.set_seed(seed_given ? job.seed : job.seed + i);
    absl::StatusOr<HttpPromptJob> prompt =
        MakePromptJob(context.validator, wanted, std::move(wanted.prompts[i]),
                      context.model.model_id(), deadline);
    if (!prompt.ok()) return NamedAsGiven(prompt.status(), wanted, i, count);
    if (context.check_priority) {
      uint32_t priority = v1::PRIORITY_NORMAL;
      if (prompt->generation.has_value()) priority = prompt->generation->priority;
      if (prompt->scoring.has_value()) priority = prompt->scoring->priority;
      if (auto status = context.check_priority(key_name, priority); !status.ok()) return status;
    }
    origin.first_of_call = i == 0;
    // A prompt is scored first, then gone on with.
    if (prompt->scoring.has_value()) {
      prompt->scoring->key = key_name;
      prompt->scoring->origin = origin;
      origin.first_of_call = false;
    }
    if (prompt->generation.has_value()) {
      prompt->generation->key = key_name;
      prompt->generation->origin = origin;
      // On top of the request's own, whose number is bounded.
      if (wanted.chat) {
        const std::vector<std::string>& stop = context.chat_format->stop();
        std::vector<std::string>& strings = prompt->generation->stop_strings;
        strings.insert(strings.end(), stop.begin(), stop.end());
      }
    }
    job.prompts.push_back(*std::move(prompt));
    answer_bytes += AnswerBytes(wanted, job.prompts.back());
    if (auto status = CheckAnswerSize(wanted, answer_bytes); !status.ok()) return status;
  }
  wanted.prompts.clear();
  return absl::OkStatus();
}

}  // namespace

std::string RequestIdOf(const HttpRequest& request) {
  const absl::string_view given = request.header(kRequestIdHeader);
  if (!given.empty()) return std::string(given);
  return absl::StrCat(absl::Hex(RandomBits(), absl::kZeroPad16),
                      absl::Hex(RandomBits(), absl::kZeroPad16));
}

absl::StatusOr<HttpCompletionJob> MakeCompletionJob(const HttpJobContext& context,
                                                    const HttpRequest& request, bool chat,
                                                    const std::string& key_name) {
  HttpCompletionJob job;
  absl::StatusOr<HttpCompletion> parsed = ParseCompletion(request.body, chat);
  if (!parsed.ok()) return parsed.status();
  job.wanted = *std::move(parsed);
  HttpCompletion& wanted = job.wanted;
  if (wanted.request.priority() == v1::PRIORITY_UNSPECIFIED && context.default_priority) {
    wanted.request.set_priority(static_cast<v1::Priority>(context.default_priority(key_name)));
  }
  if (request.header(kRequestIdHeader).size() > kMaxHttpRequestIdBytes) {
    return FieldError(kRequestIdHeader, "may have ", kMaxHttpRequestIdBytes, " characters");
  }
  if (absl::Status status = ReadLastEventId(request.header("Last-Event-ID"), job); !status.ok()) {
    return status;
  }
  job.request_id = job.resume.has_value() ? job.resume->request_id : RequestIdOf(request);
  job.seed = job.resume.has_value()      ? job.resume->seed
             : wanted.request.has_seed() ? wanted.request.seed()
                                         : RandomBits();
  absl::StatusOr<absl::Duration> timeout = RequestTimeout(request);
  if (!timeout.ok()) return timeout.status();
  if (chat) {
    if (!context.chat_format.ok()) return context.chat_format.status();
    absl::StatusOr<std::string> text =
        context.chat_format->Render(wanted.messages, wanted.chat_end);
    if (!text.ok()) return text.status();
    wanted.prompts = {{*std::move(text), std::nullopt}};
  }
  if (absl::Status status = Truncate(context, wanted); !status.ok()) return status;
  if (chat) {
    if (absl::Status status = ChooseChatTokens(context, wanted); !status.ok()) return status;
  }
  if (absl::Status status = AddPrompts(context, request, key_name, context.now + *timeout, job);
      !status.ok()) {
    return status;
  }
  if (wanted.include_event_id || job.resume.has_value()) {
    job.prompts_hash = HashOfPrompts(job.prompts);
  }
  if (job.resume.has_value() && !job.resume->prompts.empty() &&
      job.resume->prompts != job.prompts_hash) {
    return absl::FailedPreconditionError(
        "Last-Event-ID: the prompt has other tokens than that of this stream: it, the tokenizer or "
        "the chat format is another one");
  }
  job.head.chat = chat;
  job.head.id = absl::StrCat(chat ? "chatcmpl-" : "cmpl-", job.request_id);
  job.head.created = absl::ToUnixSeconds(absl::Now());
  job.head.model = context.model.name();
  job.model = context.model;
  return job;
}

}  // namespace blockserve
