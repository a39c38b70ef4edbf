// What a row must hold, whichever engine decodes it.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "model/engine.h"

namespace blockserve {
namespace {

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

// Beyond any use, and far enough from overflow that no logit becomes NaN.
constexpr float kMaxLogitChange = 1e6f;
constexpr int32_t kMaxTokenCount = 1 << 30;

bool IsLogitChange(float value) {
  return std::isfinite(value) && std::abs(value) <= kMaxLogitChange;
}

absl::Status ValidateSampling(const SamplingParameters& sampling) {
  if (!std::isfinite(sampling.temperature) || sampling.temperature < 0) {
    return Invalid("temperature", absl::StrCat(sampling.temperature, " is not a number >= 0"));
  }
  if (sampling.top_k < 0) return Invalid("top_k", absl::StrCat(sampling.top_k, " is negative"));
  if (!(sampling.top_p > 0 && sampling.top_p <= 1)) {
    return Invalid("top_p", absl::StrCat(sampling.top_p, " is not in (0, 1]"));
  }
  if (!(sampling.min_p >= 0 && sampling.min_p <= 1)) {
    return Invalid("min_p", absl::StrCat(sampling.min_p, " is not in [0, 1]"));
  }
  if (!std::isfinite(sampling.repetition_penalty) || sampling.repetition_penalty <= 0) {
    return Invalid("repetition_penalty",
                   absl::StrCat(sampling.repetition_penalty, " is not a number > 0"));
  }
  if (!IsLogitChange(sampling.presence_penalty)) {
    return Invalid("presence_penalty",
                   absl::StrCat(sampling.presence_penalty, " is not in [-1e6, 1e6]"));
  }
  if (!IsLogitChange(sampling.frequency_penalty)) {
    return Invalid("frequency_penalty",
                   absl::StrCat(sampling.frequency_penalty, " is not in [-1e6, 1e6]"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateTokenRow(const ModelConfig& config, const TokenRow& row) {
  const auto in_vocabulary = [&config](int32_t token) {
    return token >= 0 && token < config.vocab_size;
  };
  const auto outside = [&config](absl::string_view field, int32_t token) {
    return Invalid(field,
                   absl::StrCat("id ", token, " is outside the vocabulary of ", config.vocab_size));
  };
  if (static_cast<int64_t>(row.context.size()) != config.block.hidden_size) {
    return Invalid("context", absl::StrCat(row.context.size(), " values, the model's are ",
                                           config.block.hidden_size));
  }
  const int64_t forced = static_cast<int64_t>(row.forced.size());
  if (row.limit < 1 || row.limit > config.block_length) {
    return Invalid("limit", absl::StrCat(row.limit, " is not in [1, ", config.block_length, "]"));
  }
  if (forced > row.limit) {
    return Invalid("forced", absl::StrCat(forced, " tokens, more than the limit of ", row.limit));
  }
  for (const int32_t token : row.forced) {
    if (!in_vocabulary(token)) return outside("forced", token);
  }
  if (row.forced_in_prompt < 0 || row.forced_in_prompt > forced) {
    return Invalid("forced_in_prompt",
                   absl::StrCat(row.forced_in_prompt, " of ", forced, " forced tokens"));
  }
  if (row.position < 0) return Invalid("position", "is negative");
  if (row.sampling == nullptr) return Invalid("sampling", "is missing");
  absl::Status status = ValidateSampling(*row.sampling);
  if (!status.ok()) return status;
  for (const int32_t token : row.stop_ids) {
    if (!in_vocabulary(token)) return outside("stop_ids", token);
  }
  for (const LogitBias& bias : row.logit_bias) {
    if (!in_vocabulary(bias.token)) return outside("logit_bias", bias.token);
    if (!IsLogitChange(bias.bias)) {
      return Invalid("logit_bias", absl::StrCat("bias of id ", bias.token, " is ", bias.bias,
                                                ", not in [-1e6, 1e6]"));
    }
  }
  for (const TokenCount& count : row.counts) {
    if (!in_vocabulary(count.token)) return outside("counts", count.token);
    if (count.in_prompt < 0 || count.in_output < 0 || count.in_prompt > kMaxTokenCount ||
        count.in_output > kMaxTokenCount) {
      return Invalid("counts", absl::StrCat("count of id ", count.token, " is not in [0, 2^30]"));
    }
  }
  std::vector<int32_t> counted;
  counted.reserve(row.counts.size());
  for (const TokenCount& count : row.counts) counted.push_back(count.token);
  std::sort(counted.begin(), counted.end());
  const auto repeated = std::adjacent_find(counted.begin(), counted.end());
  if (repeated != counted.end()) {
    return Invalid("counts", absl::StrCat("id ", *repeated, " is there twice"));
  }
  if (row.vocab_limit < 0 || row.vocab_limit > config.vocab_size) {
    return Invalid("vocab_limit",
                   absl::StrCat(row.vocab_limit, " is not in [0, ", config.vocab_size, "]"));
  }
  const int32_t most_top_logprobs = std::min(kMaxTopLogprobs, config.vocab_size);
  if (row.top_logprobs < 0 || row.top_logprobs > most_top_logprobs) {
    return Invalid("top_logprobs",
                   absl::StrCat(row.top_logprobs, " is not in [0, ", most_top_logprobs, "]"));
  }
  if (!row.logits.empty() &&
      static_cast<int64_t>(row.logits.size()) != int64_t{row.limit} * config.vocab_size) {
    return Invalid("logits", "room for limit x V values is needed");
  }
  return absl::OkStatus();
}

}  // namespace blockserve
