// What `blockserve generate` prints: the events of a stream as one JSON object, or as text while
// they come.
#ifndef BLOCKSERVE_APP_GENERATION_OUTPUT_H_
#define BLOCKSERVE_APP_GENERATION_OUTPUT_H_

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "blockserve/v1/generation.pb.h"

namespace blockserve {

// Collects a stream.
class GenerationOutput {
 public:
  // `has_tokenizer`: the model has text; without it every `text` is null.
  explicit GenerationOutput(bool has_tokenizer) : has_tokenizer_(has_tokenizer) {}

  void Add(const v1::GenerateResponse& event);

  // {"choices": [{"index", "text", "tokens", "logprobs", "finish_reason", …}], "usage": {…}, …}.
  // `logprobs` is there when the stream had any, `top_logprobs` when it had best ids.
  nlohmann::ordered_json Json() const;

  int64_t completion_tokens() const;
  // [choices] in order; texts, or token ids with spaces between them.
  std::vector<std::string> Texts() const;

 private:
  struct Choice {
    std::string text;
    std::vector<int32_t> tokens;
    google::protobuf::RepeatedPtrField<v1::TokenLogprobs> logprobs;
    std::optional<v1::Finished> finished;
  };

  const bool has_tokenizer_;
  v1::Started started_;
  v1::Usage usage_;
  std::map<uint32_t, Choice> choices_;
};

// What an event adds to the text of the only choice: text, or token ids with a space after each.
std::string VisibleText(const v1::GenerateResponse& event, bool has_tokenizer);

// "stop", "length".
std::string FinishReasonName(v1::FinishReason reason);

// A log-probability each, null where there is none.
nlohmann::ordered_json LogprobsJson(
    const google::protobuf::RepeatedPtrField<v1::TokenLogprobs>& logprobs);
// [{"token", "logprob"}, …] for each token, or null when no token has any.
nlohmann::ordered_json TopLogprobsJson(
    const google::protobuf::RepeatedPtrField<v1::TokenLogprobs>& logprobs);
nlohmann::ordered_json UsageJson(const v1::Usage& usage);

}  // namespace blockserve

#endif  // BLOCKSERVE_APP_GENERATION_OUTPUT_H_
