#include "token_service/row_codec.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/finite.h"
#include "rpc/context_codec.h"
#include "rpc/status.h"

namespace blockserve {
namespace {

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

SamplingParameters ParseSampling(const v1::TokenRowRequest& request) {
  SamplingParameters sampling;
  if (!request.has_sampling()) {
    sampling.temperature = 0;
    return sampling;
  }
  const v1::SamplingParameters& from = request.sampling();
  if (from.has_temperature()) sampling.temperature = from.temperature();
  if (from.has_top_k()) sampling.top_k = from.top_k();
  if (from.has_top_p()) sampling.top_p = from.top_p();
  if (from.has_min_p()) sampling.min_p = from.min_p();
  if (from.has_repetition_penalty()) sampling.repetition_penalty = from.repetition_penalty();
  if (from.has_presence_penalty()) sampling.presence_penalty = from.presence_penalty();
  if (from.has_frequency_penalty()) sampling.frequency_penalty = from.frequency_penalty();
  return sampling;
}

absl::Status ParseContext(const ModelConfig& config, const RowContext& context,
                          std::vector<float>& values) {
  values.resize(config.block.hidden_size);
  absl::Status status = DecodeContexts(context.bytes, context.type, absl::MakeSpan(values));
  if (!status.ok()) return status;
  if (AllFinite(values)) return absl::OkStatus();
  const auto bad =
      std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
  return Invalid("contexts",
                 absl::StrCat("value ", bad - values.begin(), " of the row is not finite"));
}

}  // namespace

absl::Status SplitContexts(const ModelConfig& config, const v1::TokenRequestBatch& batch,
                           std::vector<RowContext>& contexts) {
  const v1::ContextType type = batch.context_type();
  const size_t value_bytes = ContextValueBytes(type);
  if (value_bytes == 0) {
    return Invalid("context_type", absl::StrCat(static_cast<int>(type), " is not known"));
  }
  const size_t row_bytes = value_bytes * config.block.hidden_size;
  const size_t rows = batch.rows_size();
  if (batch.contexts().size() != rows * row_bytes) {
    return Invalid("contexts",
                   absl::StrCat(batch.contexts().size(), " bytes; ", rows, " rows of ",
                                config.block.hidden_size, " values are ", rows * row_bytes));
  }
  contexts.resize(rows);
  for (size_t i = 0; i < rows; ++i) {
    contexts[i] = {absl::string_view(batch.contexts()).substr(i * row_bytes, row_bytes), type};
  }
  return absl::OkStatus();
}

absl::Status ParseRow(const ModelConfig& config, const v1::TokenRowRequest& request,
                      const RowContext& context, DecodeRow& row) {
  // Sizes first: nothing is copied of a row that is too long.
  if (request.forced_size() > config.block_length) {
    return Invalid("forced", absl::StrCat(request.forced_size(), " tokens, a block has ",
                                          config.block_length));
  }
  if (request.stop_ids_size() > kMaxRowStopIds) {
    return Invalid("stop_ids",
                   absl::StrCat(request.stop_ids_size(), " ids, at most ", kMaxRowStopIds));
  }
  if (request.sampling().logit_bias_size() > kMaxRowLogitBias) {
    return Invalid("sampling.logit_bias", absl::StrCat(request.sampling().logit_bias_size(),
                                                       " entries, at most ", kMaxRowLogitBias));
  }
  if (request.counts_size() % 3 != 0) {
    return Invalid("counts", absl::StrCat(request.counts_size(), " numbers; each id has three"));
  }
  if (request.counts_size() / 3 > config.vocab_size) {
    return Invalid("counts", absl::StrCat(request.counts_size() / 3, " ids, the vocabulary has ",
                                          config.vocab_size));
  }
  if (request.position() > std::numeric_limits<int64_t>::max() - config.block_length) {
    return Invalid("position", absl::StrCat(request.position(), " is too large"));
  }
  if (request.min_tokens_position() < 0) return Invalid("min_tokens_position", "is negative");
  absl::Status status = ParseContext(config, context, row.context);
  if (!status.ok()) return status;

  row.forced.assign(request.forced().begin(), request.forced().end());
  row.forced_in_prompt = request.forced_in_prompt();
  row.limit = request.limit();
  row.position = request.position();
  row.seed = request.seed();
  row.choice = request.choice();
  row.sampling = ParseSampling(request);
  row.stop_ids.assign(request.stop_ids().begin(), request.stop_ids().end());
  row.min_tokens_position = request.min_tokens_position();
  row.logit_bias.clear();
  for (const v1::LogitBias& bias : request.sampling().logit_bias()) {
    row.logit_bias.push_back({bias.token(), bias.bias()});
  }
  row.counts.clear();
  for (int i = 0; i < request.counts_size(); i += 3) {
    row.counts.push_back({request.counts(i), request.counts(i + 1), request.counts(i + 2)});
  }
  row.vocab_limit = request.vocab_limit();
  row.top_logprobs = request.top_logprobs();
  row.score_forced = request.score_forced();
  row.logprobs = request.logprobs() || request.top_logprobs() > 0;
  return ValidateTokenRow(config, row.View());
}

void FillReply(const RowAnswer& answer, v1::TokenRowReply& reply) {
  reply.set_id(answer.id);
  if (!answer.status.ok()) {
    *reply.mutable_status() = ToItemStatus(answer.status);
    return;
  }
  const TokenRowResult& result = answer.result;
  reply.mutable_tokens()->Add(result.tokens.begin(), result.tokens.end());
  reply.set_stopped(result.stopped);
  if (!answer.row->logprobs) return;
  reply.mutable_logprobs()->Add(result.logprobs.begin(), result.logprobs.end());
  for (const std::vector<TokenLogprob>& best : result.top) {
    for (const TokenLogprob& entry : best) {
      reply.add_top_tokens(entry.token);
      reply.add_top_logprobs(entry.logprob);
    }
  }
}

}  // namespace blockserve
