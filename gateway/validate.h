// From what a client sends to what the core takes: every field checked, every default filled in.
//
// Both fronts use it (the HTTP front by way of the proto messages), so that they refuse the same
// things with the same words.
#ifndef BLOCKSERVE_GATEWAY_VALIDATE_H_
#define BLOCKSERVE_GATEWAY_VALIDATE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "blockserve/v1/generation.pb.h"
#include "gateway/generation.h"
#include "model/config.h"
#include "model/tokenizer.h"

namespace blockserve {

// Limits of the public interface (generation.proto tells clients of them).
inline constexpr int32_t kDefaultMaxTokens = 16;
inline constexpr int32_t kMaxChoices = 64;
inline constexpr int32_t kMaxRequestLogprobs = 20;
inline constexpr int32_t kMaxStopStrings = 16;
inline constexpr int32_t kMaxStopStringBytes = 256;
inline constexpr int32_t kMaxStopIds = 64;
inline constexpr int32_t kMaxLogitBias = 1024;   // entries
inline constexpr float kLargestLogitBias = 100;  // either way
inline constexpr int32_t kMaxRequestIdBytes = 128;
inline constexpr int32_t kMaxCacheSaltBytes = 256;
inline constexpr int32_t kMaxStreamInterval = 1024;
inline constexpr int32_t kMaxIdentityBytes = 256;  // of a model id or numeric id
inline constexpr size_t kMaxDetokenizedBytes = size_t{32} << 20;
inline constexpr absl::Duration kDefaultDeadline = absl::Minutes(10);

struct ValidatorOptions {
  std::string model_name;  // what requests may call the model, beside its id
  // Texts beyond the positions that the model was trained on are served: rotary positions go on.
  bool allow_beyond_positions = false;
  int32_t stream_interval = 1;  // of requests that name none
};

// Thread-safe: nothing changes after construction.
class RequestValidator {
 public:
  // `tokenizer` may be null; else it must outlive this.
  RequestValidator(const ModelConfig& config, const Tokenizer* tokenizer, ValidatorOptions options);

  // Errors of all: INVALID_ARGUMENT, the message beginning with the field's name (too long a text:
  // context_length.h); NOT_FOUND for
  // another model than the one served; FAILED_PRECONDITION where Tokenize and Detokenize find no
  // tokenizer. `served_model_id`: empty while it is not known, no worker being connected.
  absl::StatusOr<GenerationRequest> Generation(const v1::GenerateRequest& request,
                                               absl::string_view served_model_id,
                                               absl::Time deadline) const;
  absl::StatusOr<ScoringRequest> Scoring(const v1::ScoreRequest& request,
                                         absl::string_view served_model_id,
                                         absl::Time deadline) const;
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request,
                                                absl::string_view served_model_id) const;
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                    absl::string_view served_model_id) const;
  absl::Status Model(absl::string_view model, absl::string_view served_model_id) const;

  // Everything of GetModelResponse that configuration and tokenizer tell.
  void FillModel(v1::GetModelResponse& response) const;

  const ModelConfig& config() const { return config_; }
  const Tokenizer* tokenizer() const { return tokenizer_; }
  // Ids that may be generated lie below it: the tokenizer's size where there is one (what follows
  // is padding of the tables), else the vocabulary's.
  int32_t vocab_limit() const;

 private:
  // What the model can hold with any alignment.
  int64_t MaxTokens() const { return config_.block.max_positions * config_.block_length; }
  absl::Status CheckIds(absl::string_view field, absl::Span<const int32_t> ids) const;
  // Too long for the model whatever its tokens are: told before it is tokenized.
  absl::Status CheckLength(absl::string_view field, absl::string_view text) const;
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view field,
                                              absl::string_view text) const;
  // Of what is given as text, or as ids.
  absl::StatusOr<std::vector<int32_t>> TokensOfText(absl::string_view field,
                                                    absl::string_view text) const;
  absl::StatusOr<std::vector<int32_t>> TokensOfIds(absl::string_view field,
                                                   const v1::TokenIds& ids) const;
  // The fields that generations and scores have in common, but for their texts and alignment.
  template <class Request, class Validated>
  absl::Status Head(const Request& request, const std::string& request_id,
                    absl::string_view served_model_id, Validated& out) const;
  absl::StatusOr<v1::SamplingParameters> Sampling(const v1::SamplingParameters& given) const;
  absl::Status Stop(const v1::StopConditions& given, GenerationRequest& request) const;
  // The rest of `request` has been filled in.
  absl::Status Resume(const v1::GenerateRequest& given, GenerationRequest& request) const;
  absl::StatusOr<Alignment> ResolveAlignment(v1::Alignment given, Alignment otherwise) const;
  // `layout_tokens` of the text are laid out by `alignment` (the prompt), `more_tokens` follow
  // them.
  absl::Status CheckPositions(absl::string_view field, Alignment alignment, int64_t layout_tokens,
                              int64_t more_tokens) const;

  const ModelConfig config_;
  const Tokenizer* const tokenizer_;
  const ValidatorOptions options_;
};

// The request's deadline, by the core's clock, from what a gRPC call has left; infinite: it has no
// deadline.
absl::Time RequestDeadline(absl::Duration left, absl::Time core_now);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_VALIDATE_H_
