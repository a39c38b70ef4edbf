#include "gateway/validate.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/random_bits.h"
#include "common/utf8.h"
#include "gateway/alignment_proto.h"
#include "gateway/context_length.h"
#include "gateway/output_end.h"
#include "model/alignment.h"

namespace blockserve {
namespace {

template <class... Parts>
absl::Status Invalid(absl::string_view field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", parts...));
}

// That reads back as `value`: with fewer digits one just beyond a bound would look like the bound.
std::string ShortestDecimal(float value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof(digits), value).ptr};
}

// NaN fails every comparison, so that ranges are written as what is allowed.
absl::Status CheckRange(absl::string_view field, float value, bool allowed,
                        absl::string_view range) {
  if (std::isfinite(value) && allowed) return absl::OkStatus();
  return Invalid(field, "must be ", range, ", not ", ShortestDecimal(value));
}

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Invalid(field, "must be ", least, " to ", most, ", not ", value);
}

absl::StatusOr<std::string> RequestId(const std::string& given) {
  if (given.empty()) {
    return absl::StrCat(absl::Hex(RandomBits(), absl::kZeroPad16),
                        absl::Hex(RandomBits(), absl::kZeroPad16));
  }
  if (given.size() > kMaxRequestIdBytes) {
    return Invalid("request_id", "may have ", kMaxRequestIdBytes, " characters, not ",
                   given.size());
  }
  for (const char c : given) {
    if (c < 0x20 || c > 0x7E) return Invalid("request_id", "must be printable ASCII characters");
  }
  return given;
}

absl::StatusOr<uint32_t> ResolvePriority(v1::Priority given) {
  if (given == v1::PRIORITY_UNSPECIFIED) return v1::PRIORITY_NORMAL;
  if (!v1::Priority_IsValid(given)) return Invalid("priority", "unknown value ", int{given});
  return static_cast<uint32_t>(given);
}

// An empty salt may be one that its client forgot to fill in: to take it for none would share what
// is not to be shared.
template <class Request>
absl::StatusOr<std::string> CacheSalt(const Request& request) {
  const std::string& salt = request.cache_salt();
  if (request.has_cache_salt() && (salt.empty() || salt.size() > kMaxCacheSaltBytes)) {
    return Invalid("cache_salt", "must have 1 to ", kMaxCacheSaltBytes, " bytes, not ",
                   salt.size());
  }
  return salt;
}

std::vector<int32_t> ToVector(const google::protobuf::RepeatedField<int32_t>& ids) {
  return {ids.begin(), ids.end()};
}

absl::Status NoTokenizer(absl::string_view field) {
  return Invalid(field, "text needs a tokenizer, and this model has none: give token ids");
}

}  // namespace

absl::Time RequestDeadline(absl::Duration left, absl::Time core_now) {
  return core_now + (left == absl::InfiniteDuration() ? kDefaultDeadline : left);
}

RequestValidator::RequestValidator(const ModelConfig& config, const Tokenizer* tokenizer,
                                   ValidatorOptions options)
    : config_(config), tokenizer_(tokenizer), options_(std::move(options)) {}

int32_t RequestValidator::vocab_limit() const {
  if (tokenizer_ == nullptr) return config_.vocab_size;
  return std::min(config_.vocab_size, tokenizer_->vocab_size());
}

absl::Status RequestValidator::Model(absl::string_view model,
                                     absl::string_view served_model_id) const {
  if (model.empty() || model == options_.model_name || model == served_model_id) {
    return absl::OkStatus();
  }
  if (model.size() > kMaxRequestIdBytes || !IsValidUtf8(model)) {
    return absl::NotFoundError("model: there is none of this name here");
  }
  return absl::NotFoundError(
      absl::StrCat("model: \"", model, "\" is not served here; \"", options_.model_name, "\" is",
                   served_model_id.empty() ? "" : absl::StrCat(" (id ", served_model_id, ")")));
}

absl::Status RequestValidator::CheckIds(absl::string_view field,
                                        absl::Span<const int32_t> ids) const {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= config_.vocab_size) {
      return Invalid(absl::StrCat(field, "[", i, "]"), "token id ", ids[i],
                     " is outside the vocabulary of ", config_.vocab_size);
    }
  }
  return absl::OkStatus();
}

absl::Status RequestValidator::CheckLength(absl::string_view field, absl::string_view text) const {
  if (options_.allow_beyond_positions || tokenizer_ == nullptr) return absl::OkStatus();
  const int64_t most = (config_.block.max_positions + 1) * config_.block_length;
  const int64_t least = tokenizer_->LeastTokens(text);
  if (least <= most) return absl::OkStatus();
  return ContextLengthExceeded(
      absl::StrCat(field, ": ", text.size(), " bytes are at least ", least, " tokens"),
      MaxTokens());
}

absl::StatusOr<std::vector<int32_t>> RequestValidator::Encode(absl::string_view field,
                                                              absl::string_view text) const {
  if (tokenizer_ == nullptr) return NoTokenizer(field);
  if (!IsValidUtf8(text)) return Invalid(field, "is not valid UTF-8");
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer_->Encode(text);
  if (!ids.ok()) return Invalid(field, ids.status().message());
  if (absl::Status status = CheckIds(field, *ids); !status.ok()) return status;
  return ids;
}

absl::StatusOr<std::vector<int32_t>> RequestValidator::TokensOfText(absl::string_view field,
                                                                    absl::string_view text) const {
  if (absl::Status status = CheckLength(field, text); !status.ok()) return status;
  return Encode(field, text);
}

absl::StatusOr<std::vector<int32_t>> RequestValidator::TokensOfIds(absl::string_view field,
                                                                   const v1::TokenIds& ids) const {
  std::vector<int32_t> tokens = ToVector(ids.ids());
  if (absl::Status status = CheckIds(field, tokens); !status.ok()) return status;
  return tokens;
}

template <class Request, class Validated>
absl::Status RequestValidator::Head(const Request& request, const std::string& request_id,
                                    absl::string_view served_model_id, Validated& out) const {
  absl::StatusOr<std::string> id = RequestId(request_id);
  if (!id.ok()) return id.status();
  out.request_id = *std::move(id);
  if (absl::Status status = Model(request.model(), served_model_id); !status.ok()) return status;
  // Also when it leaves the queue, by which time most workers may be of another model.
  if (request.model() != options_.model_name) out.model_id = request.model();
  absl::StatusOr<uint32_t> priority = ResolvePriority(request.priority());
  if (!priority.ok()) return priority.status();
  out.priority = *priority;
  absl::StatusOr<std::string> cache_salt = CacheSalt(request);
  if (!cache_salt.ok()) return cache_salt.status();
  out.cache_salt = *std::move(cache_salt);
  return absl::OkStatus();
}

absl::StatusOr<v1::SamplingParameters> RequestValidator::Sampling(
    const v1::SamplingParameters& given) const {
  v1::SamplingParameters out;
  out.set_temperature(given.has_temperature() ? given.temperature() : 1.0f);
  out.set_top_k(given.top_k());
  out.set_top_p(given.has_top_p() ? given.top_p() : 1.0f);
  out.set_min_p(given.min_p());
  out.set_repetition_penalty(given.has_repetition_penalty() ? given.repetition_penalty() : 1.0f);
  out.set_presence_penalty(given.presence_penalty());
  out.set_frequency_penalty(given.frequency_penalty());

  const auto within = [](float value, float least, float most) {
    return value >= least && value <= most;
  };
  const float top_p = out.top_p();
  const float repetition = out.repetition_penalty();
  for (const absl::Status& status : {
           CheckRange("sampling.temperature", out.temperature(), out.temperature() >= 0,
                      "finite and >= 0"),
           CheckRange("sampling.top_k", out.top_k(), 0, INT32_MAX),
           CheckRange("sampling.top_p", top_p, top_p > 0 && top_p <= 1, "in (0, 1]"),
           CheckRange("sampling.min_p", out.min_p(), within(out.min_p(), 0, 1), "in [0, 1]"),
           CheckRange("sampling.repetition_penalty", repetition, repetition > 0, "finite and > 0"),
           CheckRange("sampling.presence_penalty", out.presence_penalty(),
                      within(out.presence_penalty(), -2, 2), "in [-2, 2]"),
           CheckRange("sampling.frequency_penalty", out.frequency_penalty(),
                      within(out.frequency_penalty(), -2, 2), "in [-2, 2]"),
       }) {
    if (!status.ok()) return status;
  }

  if (given.logit_bias_size() > kMaxLogitBias) {
    return Invalid("sampling.logit_bias", "may have ", kMaxLogitBias, " entries, not ",
                   given.logit_bias_size());
  }
  absl::flat_hash_set<int32_t> seen;
  for (int i = 0; i < given.logit_bias_size(); ++i) {
    const v1::LogitBias& entry = given.logit_bias(i);
    const std::string field = absl::StrCat("sampling.logit_bias[", i, "]");
    if (entry.token() < 0 || entry.token() >= config_.vocab_size) {
      return Invalid(absl::StrCat(field, ".token"), "token id ", entry.token(),
                     " is outside the vocabulary of ", config_.vocab_size);
    }
    if (!seen.insert(entry.token()).second) {
      return Invalid(absl::StrCat(field, ".token"), "token id ", entry.token(), " is given twice");
    }
    if (absl::Status status = CheckRange(
            absl::StrCat(field, ".bias"), entry.bias(),
            within(entry.bias(), -kLargestLogitBias, kLargestLogitBias), "in [-100, 100]");
        !status.ok()) {
      return status;
    }
  }
  *out.mutable_logit_bias() = given.logit_bias();
  // Their order means nothing, since each id is given once. Token workers want them by id, and get
  // the list with every block.
  std::sort(out.mutable_logit_bias()->pointer_begin(), out.mutable_logit_bias()->pointer_end(),
            [](const v1::LogitBias* a, const v1::LogitBias* b) { return a->token() < b->token(); });
  return out;
}

absl::Status RequestValidator::Stop(const v1::StopConditions& given,
                                    GenerationRequest& request) const {
  request.max_tokens = given.has_max_tokens() ? given.max_tokens() : kDefaultMaxTokens;
  request.min_tokens = given.min_tokens();
  if (request.max_tokens < 1) {
    return Invalid("stop.max_tokens", "must be at least 1, not ", request.max_tokens);
  }
  if (request.min_tokens < 0 || request.min_tokens > request.max_tokens) {
    return Invalid("stop.min_tokens", "must be 0 to max_tokens, which is ", request.max_tokens,
                   ", not ", request.min_tokens);
  }
  if (given.strings_size() > kMaxStopStrings) {
    return Invalid("stop.strings", "may have ", kMaxStopStrings, " entries, not ",
                   given.strings_size());
  }
  for (int i = 0; i < given.strings_size(); ++i) {
    const std::string& string = given.strings(i);
    const std::string field = absl::StrCat("stop.strings[", i, "]");
    if (tokenizer_ == nullptr) return NoTokenizer(field);
    if (string.empty() || string.size() > kMaxStopStringBytes) {
      return Invalid(field, "must have 1 to ", kMaxStopStringBytes, " bytes, not ", string.size());
    }
    if (!IsValidUtf8(string)) return Invalid(field, "is not valid UTF-8");
    request.stop_strings.push_back(string);
  }
  if (given.token_ids_size() > kMaxStopIds) {
    return Invalid("stop.token_ids", "may have ", kMaxStopIds, " entries, not ",
                   given.token_ids_size());
  }
  request.stop_ids = ToVector(given.token_ids());
  if (absl::Status status = CheckIds("stop.token_ids", request.stop_ids); !status.ok()) {
    return status;
  }
  request.include_stop_string = given.include_string();
  if (!given.ignore_eos()) request.stop_ids.push_back(config_.eos_token_id);
  std::sort(request.stop_ids.begin(), request.stop_ids.end());
  request.stop_ids.erase(std::unique(request.stop_ids.begin(), request.stop_ids.end()),
                         request.stop_ids.end());
  return absl::OkStatus();
}

absl::Status RequestValidator::Resume(const v1::GenerateRequest& given,
                                      GenerationRequest& request) const {
  const v1::Started& started = given.resume().started();
  const std::string field = "resume.started";
  ResumeState state;
  for (const auto& [name, from, to] :
       {std::tuple("model_id", &started.model_id(), &state.model_id),
        std::tuple("block_numeric_id", &started.block_numeric_id(), &state.block_numeric_id),
        std::tuple("token_numeric_id", &started.token_numeric_id(), &state.token_numeric_id)}) {
    if (from->empty()) return Invalid(absl::StrCat(field, ".", name), "is missing");
    if (from->size() > kMaxIdentityBytes) {
      return Invalid(absl::StrCat(field, ".", name), "may have ", kMaxIdentityBytes, " bytes, not ",
                     from->size());
    }
    *to = *from;
  }
  if (given.has_seed() && given.seed() != started.seed()) {
    return Invalid(absl::StrCat(field, ".seed"), "is ", started.seed(), ", and seed is ",
                   given.seed());
  }
  request.seed = started.seed();
  if (started.alignment() == v1::ALIGNMENT_UNSPECIFIED) {
    return Invalid(absl::StrCat(field, ".alignment"), "is missing");
  }
  absl::StatusOr<Alignment> alignment = ResolveAlignment(started.alignment(), request.alignment);
  if (!alignment.ok()) {
    return Invalid(absl::StrCat(field, ".alignment"), "unknown value ", int{started.alignment()});
  }
  if (given.alignment() != v1::ALIGNMENT_UNSPECIFIED && *alignment != request.alignment) {
    return Invalid(absl::StrCat(field, ".alignment"), "is ", std::string(AlignmentName(*alignment)),
                   ", and alignment is ", std::string(AlignmentName(request.alignment)));
  }
  request.alignment = *alignment;
  if (started.prompt_tokens() != static_cast<int64_t>(request.prompt.size())) {
    return Invalid(absl::StrCat(field, ".prompt_tokens"), "is ", started.prompt_tokens(),
                   ", and the prompt has ", request.prompt.size(), " tokens");
  }
  if (given.resume().choices_size() != request.n) {
    return Invalid("resume.choices", "must be n, which is ", request.n, ", not ",
                   given.resume().choices_size());
  }
  for (int i = 0; i < request.n; ++i) {
    const v1::ResumedChoice& choice = given.resume().choices(i);
    const std::string name = absl::StrCat("resume.choices[", i, "]");
    const std::string tokens = absl::StrCat(name, ".tokens");
    for (int j = 0; j < choice.tokens_size(); ++j) {
      if (choice.tokens(j) < 0 || choice.tokens(j) >= vocab_limit()) {
        return Invalid(absl::StrCat(tokens, "[", j, "]"), "token id ", choice.tokens(j),
                       " cannot have been written: ids end at ", vocab_limit());
      }
    }
    ResumeState::Choice& had = state.choices.emplace_back();
    had.tokens = ToVector(choice.tokens());
    had.finished = choice.finished();
    TextOutput text(tokenizer_, request.stop_strings, request.min_tokens);
    const absl::StatusOr<std::optional<v1::Finished>> end = ReplayOutput(request, had.tokens, text);
    if (!end.ok()) return Invalid(tokens, end.status().message());
    if (had.finished && !end->has_value()) {
      return Invalid(absl::StrCat(name, ".finished"),
                     "is set, but its tokens do not end the choice");
    }
  }
  request.resume = std::move(state);
  return absl::OkStatus();
}

absl::StatusOr<Alignment> RequestValidator::ResolveAlignment(v1::Alignment given,
                                                             Alignment otherwise) const {
  switch (given) {
    case v1::ALIGNMENT_UNSPECIFIED:
      return otherwise;
    case v1::ALIGNMENT_END:
      return Alignment::kEnd;
    case v1::ALIGNMENT_START:
      return Alignment::kStart;
    case v1::ALIGNMENT_NONE:
      return Alignment::kNone;
    default:
      return Invalid("alignment", "unknown value ", int{given});
  }
}

absl::Status RequestValidator::CheckPositions(absl::string_view field, Alignment alignment,
                                              int64_t layout_tokens, int64_t more_tokens) const {
  if (options_.allow_beyond_positions) return absl::OkStatus();
  const int64_t block_length = config_.block_length;
  const int64_t pads = NumPads(config_, alignment, layout_tokens);
  // The last block is written by the token decoder and never embedded.
  const int64_t blocks = (pads + layout_tokens + more_tokens + block_length - 1) / block_length - 1;
  if (blocks <= config_.block.max_positions) return absl::OkStatus();
  return ContextLengthExceeded(
      absl::StrCat(field, ": ", layout_tokens, " tokens and ", more_tokens, " after them need ",
                   blocks, " positions of the block decoder (alignment ", AlignmentName(alignment),
                   ", blocks of ", block_length, "), which has ", config_.block.max_positions),
      MaxTokens());
}

absl::StatusOr<GenerationRequest> RequestValidator::Generation(const v1::GenerateRequest& request,
                                                               absl::string_view served_model_id,
                                                               absl::Time deadline) const {
  GenerationRequest out;
  // A stream that goes on is the same request, also where most workers are of another model now.
  const v1::Started& started = request.resume().started();
  const bool named = !request.request_id().empty() || !request.has_resume();
  const bool names_its_model = request.has_resume() && request.model() == started.model_id();
  if (absl::Status status = Head(request, named ? request.request_id() : started.request_id(),
                                 names_its_model ? started.model_id() : served_model_id, out);
      !status.ok()) {
    return status;
  }
  absl::StatusOr<Alignment> alignment =
      ResolveAlignment(request.alignment(), config_.default_alignment);
  if (!alignment.ok()) return alignment.status();
  out.alignment = *alignment;
  absl::StatusOr<v1::SamplingParameters> sampling = Sampling(request.sampling());
  if (!sampling.ok()) return sampling.status();
  out.sampling = *std::move(sampling);
  if (absl::Status status = Stop(request.stop(), out); !status.ok()) return status;
  out.stream_interval =
      request.has_stream_interval() ? request.stream_interval() : options_.stream_interval;
  if (absl::Status status =
          CheckRange("stream_interval", out.stream_interval, 1, kMaxStreamInterval);
      !status.ok()) {
    return status;
  }
  out.n = request.has_n() ? request.n() : 1;
  if (absl::Status status = CheckRange("n", out.n, 1, kMaxChoices); !status.ok()) return status;
  if (request.has_logprobs()) {
    out.logprobs = request.logprobs();
    if (absl::Status status = CheckRange("logprobs", *out.logprobs, 0, kMaxRequestLogprobs);
        !status.ok()) {
      return status;
    }
    // A vocabulary smaller than that has no more to show.
    out.logprobs = std::min(*out.logprobs, config_.vocab_size);
  }

  out.seed = request.has_seed() ? request.seed() : RandomBits();
  out.deadline = deadline;

  if (request.prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET) {
    return Invalid("prompt", "must be given, as text or as tokens");
  }
  const absl::string_view field = request.has_text() ? "prompt.text" : "prompt.tokens";
  absl::StatusOr<std::vector<int32_t>> prompt = request.has_text()
                                                    ? TokensOfText(field, request.text())
                                                    : TokensOfIds(field, request.tokens());
  if (!prompt.ok()) return prompt.status();
  out.prompt = *std::move(prompt);
  if (out.prompt.empty()) out.prompt = {config_.bos_token_id};
  if (request.has_resume()) {
    if (absl::Status status = Resume(request, out); !status.ok()) return status;
  }
  const int64_t prompt_tokens = static_cast<int64_t>(out.prompt.size());
  // Names the prompt where it is too long by itself, and max_tokens where that makes it so.
  if (absl::Status status = CheckPositions(field, out.alignment, prompt_tokens, 1); !status.ok()) {
    return status;
  }
  if (absl::Status status =
          CheckPositions("stop.max_tokens", out.alignment, prompt_tokens, out.max_tokens);
      !status.ok()) {
    return status;
  }
  return out;
}

absl::StatusOr<ScoringRequest> RequestValidator::Scoring(const v1::ScoreRequest& request,
                                                         absl::string_view served_model_id,
                                                         absl::Time deadline) const {
  ScoringRequest out;
  if (absl::Status status = Head(request, request.request_id(), served_model_id, out);
      !status.ok()) {
    return status;
  }
  const bool has_context = request.context_case() != v1::ScoreRequest::CONTEXT_NOT_SET;
  absl::StatusOr<Alignment> alignment = ResolveAlignment(
      request.alignment(), has_context ? config_.default_alignment : Alignment::kStart);
  if (!alignment.ok()) return alignment.status();
  out.alignment = *alignment;
  if (absl::Status status =
          CheckRange("top_logprobs", request.top_logprobs(), 0, kMaxRequestLogprobs);
      !status.ok()) {
    return status;
  }
  out.top_logprobs = std::min(request.top_logprobs(), config_.vocab_size);

  if (has_context) {
    absl::StatusOr<std::vector<int32_t>> context =
        request.has_context_text() ? TokensOfText("context_text", request.context_text())
                                   : TokensOfIds("context_tokens", request.context_tokens());
    if (!context.ok()) return context.status();
    out.tokens = *std::move(context);
    if (out.tokens.empty()) out.tokens = {config_.bos_token_id};
    out.first_scored = static_cast<int32_t>(out.tokens.size());
  }

  if (request.continuation_case() == v1::ScoreRequest::CONTINUATION_NOT_SET) {
    return Invalid("continuation", "must be given, as text or as tokens");
  }
  const bool is_text = request.has_continuation_text();
  const absl::string_view field = is_text ? "continuation_text" : "continuation_tokens";
  absl::StatusOr<std::vector<int32_t>> continuation =
      is_text ? TokensOfText(field, request.continuation_text())
              : TokensOfIds(field, request.continuation_tokens());
  if (!continuation.ok()) return continuation.status();
  if (continuation->empty()) {
    if (has_context) return Invalid(field, "must have at least one token");
    continuation->push_back(config_.bos_token_id);
  }
  const int64_t continuation_tokens = static_cast<int64_t>(continuation->size());
  if (absl::Status status =
          has_context ? CheckPositions(field, out.alignment, out.first_scored, continuation_tokens)
                      : CheckPositions(field, out.alignment, continuation_tokens, 0);
      !status.ok()) {
    return status;
  }
  out.tokens.insert(out.tokens.end(), continuation->begin(), continuation->end());
  out.deadline = deadline;
  return out;
}

absl::StatusOr<v1::TokenizeResponse> RequestValidator::Tokenize(
    const v1::TokenizeRequest& request, absl::string_view served_model_id) const {
  if (absl::Status status = Model(request.model(), served_model_id); !status.ok()) return status;
  if (tokenizer_ == nullptr) return absl::FailedPreconditionError("this model has no tokenizer");
  absl::StatusOr<std::vector<int32_t>> ids = Encode("text", request.text());
  if (!ids.ok()) return ids.status();
  v1::TokenizeResponse response;
  response.mutable_tokens()->Add(ids->begin(), ids->end());
  return response;
}

absl::StatusOr<v1::DetokenizeResponse> RequestValidator::Detokenize(
    const v1::DetokenizeRequest& request, absl::string_view served_model_id) const {
  if (absl::Status status = Model(request.model(), served_model_id); !status.ok()) return status;
  if (tokenizer_ == nullptr) return absl::FailedPreconditionError("this model has no tokenizer");
  const std::vector<int32_t> ids = ToVector(request.tokens());
  if (absl::Status status = CheckIds("tokens", ids); !status.ok()) return status;
  // Some tokens are hundreds of bytes: a request that is short may have a text that is not.
  size_t bytes = 0;
  for (const int32_t id : ids) bytes += tokenizer_->TokenBytes(id).size();
  if (bytes > kMaxDetokenizedBytes) {
    return Invalid("tokens", "the text may have ", kMaxDetokenizedBytes, " bytes, not ", bytes);
  }
  absl::StatusOr<std::string> text = tokenizer_->Decode(ids, request.skip_special_tokens());
  if (!text.ok()) return Invalid("tokens", text.status().message());
  v1::DetokenizeResponse response;
  response.set_text(*std::move(text));
  return response;
}

void RequestValidator::FillModel(v1::GetModelResponse& response) const {
  response.set_name(options_.model_name);
  response.set_kind(config_.kind == ModelKind::kVanilla ? "gpt_neox" : "block_transformer");
  response.set_block_length(config_.block_length);
  response.set_vocab_size(config_.vocab_size);
  response.set_max_tokens(options_.allow_beyond_positions ? 0 : MaxTokens());
  response.set_bos_token_id(config_.bos_token_id);
  response.set_eos_token_id(config_.eos_token_id);
  response.set_pad_token_id(config_.pad_token_id);
  response.set_default_alignment(ToProto(config_.default_alignment));
  response.set_has_tokenizer(tokenizer_ != nullptr);
}

}  // namespace blockserve
