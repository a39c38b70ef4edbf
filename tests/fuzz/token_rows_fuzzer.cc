// A batch of rows for a token worker, of any bytes: each row is refused by name or holds what the
// engine relies on.
#include <google/protobuf/stubs/logging.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "blockserve/v1/token_decoder.pb.h"
#include "rpc/tier_hello.h"
#include "token_service/row_codec.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace blockserve;  // NOLINT: the one function outside
  // Else every string that is no UTF-8 is a line of the log.
  static const google::protobuf::LogSilencer& silence = *new google::protobuf::LogSilencer;
  (void)silence;
  v1::TokenRequestBatch batch;
  if (!batch.ParseFromArray(data, static_cast<int>(size))) return 0;
  if (batch.has_hello()) CheckGatewayHello(batch.hello(), "config", "tokenizer").IgnoreError();
  ModelConfig config;
  config.block_length = 4;
  config.vocab_size = 64;
  config.block.hidden_size = 2;
  const auto require = [](bool holds) {
    if (!holds) __builtin_trap();
  };
  const auto in_vocabulary = [&](int32_t id) { return id >= 0 && id < config.vocab_size; };
  std::vector<RowContext> contexts;
  if (!SplitContexts(config, batch, contexts).ok()) return 0;
  require(contexts.size() == static_cast<size_t>(batch.rows_size()));
  for (int i = 0; i < batch.rows_size(); ++i) {
    DecodeRow row;
    const absl::Status status =
        ParseRow(config, batch.rows(i), contexts[static_cast<size_t>(i)], row);
    if (!status.ok()) {
      require(status.code() == absl::StatusCode::kInvalidArgument && !status.message().empty());
      continue;
    }
    require(row.context.size() == 2 && std::isfinite(row.context[0]) &&
            std::isfinite(row.context[1]));
    require(row.forced.size() <= 4 && row.limit <= 4 &&
            row.limit >= static_cast<int32_t>(row.forced.size()));
    require(row.forced_in_prompt >= 0 &&
            row.forced_in_prompt <= static_cast<int32_t>(row.forced.size()));
    for (const int32_t id : row.forced) require(in_vocabulary(id));
    for (const int32_t id : row.stop_ids) require(in_vocabulary(id));
    for (const LogitBias& bias : row.logit_bias) require(in_vocabulary(bias.token));
    for (const TokenCount& count : row.counts) require(in_vocabulary(count.token));
    require(row.top_logprobs >= 0 && row.top_logprobs <= config.vocab_size);
    require(row.vocab_limit >= 0 && row.vocab_limit <= config.vocab_size);
  }
  return 0;
}
