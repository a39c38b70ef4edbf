// Rows between the messages of token_decoder.proto and what the engine takes and gives.
#ifndef BLOCKSERVE_TOKEN_SERVICE_ROW_CODEC_H_
#define BLOCKSERVE_TOKEN_SERVICE_ROW_CODEC_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "blockserve/v1/token_decoder.pb.h"
#include "model/config.h"
#include "token_service/decode_row.h"
#include "token_service/token_worker.h"

namespace blockserve {

// Longest lists that a row may carry.
inline constexpr int kMaxRowStopIds = 1024;
inline constexpr int kMaxRowLogitBias = 1024;

// The row's share of a batch's `contexts`: its D values in bytes of `type`.
struct RowContext {
  absl::string_view bytes;
  v1::ContextType type;
};

// Checks everything and moves it into `row`. INVALID_ARGUMENT naming the field.
absl::Status ParseRow(const ModelConfig& config, const v1::TokenRowRequest& request,
                      const RowContext& context, DecodeRow& row);

// Splits the contexts of a batch: `contexts` [rows] gets each row's share. INVALID_ARGUMENT, which
// is then every row's answer, where their type is not known or their size does not fit.
absl::Status SplitContexts(const ModelConfig& config, const v1::TokenRequestBatch& batch,
                           std::vector<RowContext>& contexts);

// The reply to a row.
void FillReply(const RowAnswer& answer, v1::TokenRowReply& reply);

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_ROW_CODEC_H_
