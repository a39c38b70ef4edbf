// Flags that describe a request, and the message made of them. Ranges are the server's to check: it
// says the same to every client.
#ifndef BLOCKSERVE_APP_REQUEST_FLAGS_H_
#define BLOCKSERVE_APP_REQUEST_FLAGS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "blockserve/v1/generation.pb.h"
#include "common/flag_table.h"

namespace blockserve {

struct GenerateFlags {
  std::optional<std::string> prompt;
  std::optional<std::vector<int32_t>> prompt_tokens;
  int32_t max_tokens = 64;
  int32_t min_tokens = 0;
  std::optional<float> temperature = 0.0f;
  std::optional<int32_t> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::vector<std::string> logit_bias;  // "ID:BIAS"
  std::optional<uint64_t> seed;
  int32_t n = 1;
  std::vector<std::string> stop;
  bool include_stop_string = false;
  std::optional<std::vector<int32_t>> stop_tokens;
  bool ignore_eos = false;
  std::optional<int32_t> logprobs;
  std::string priority;
  std::optional<std::string> cache_salt;
  std::string alignment;

  void AddFlags(FlagTable& flags);
  // INVALID_ARGUMENT naming the flag.
  absl::StatusOr<v1::GenerateRequest> Request() const;
};

struct ScoreFlags {
  std::optional<std::string> prompt;
  std::optional<std::vector<int32_t>> prompt_tokens;
  std::optional<std::string> continuation;
  std::optional<std::vector<int32_t>> continuation_tokens;
  std::optional<int32_t> top_logprobs;
  std::string priority;
  std::optional<std::string> cache_salt;
  std::string alignment;

  void AddFlags(FlagTable& flags);
  // A prompt without continuation is a text that is scored by itself. INVALID_ARGUMENT naming the
  // flag.
  absl::StatusOr<v1::ScoreRequest> Request() const;
};

// A server's INVALID_ARGUMENT with the flag ("--max-tokens: …") in the place of the field
// ("stop.max_tokens: …"); any other status as it is.
absl::Status NamingTheFlag(const absl::Status& status);

// "end", "start", "none"; unspecified for an empty name.
v1::Alignment AlignmentValue(const std::string& name);

}  // namespace blockserve

#endif  // BLOCKSERVE_APP_REQUEST_FLAGS_H_
