// From the tokens of one choice to the text that its client sees: detokenising as tokens come, and
// stop strings across tokens and blocks.
#ifndef BLOCKSERVE_GATEWAY_TEXT_OUTPUT_H_
#define BLOCKSERVE_GATEWAY_TEXT_OUTPUT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "gateway/stop_matcher.h"
#include "model/tokenizer.h"

namespace blockserve {

// One choice. The result of a run of tokens does not depend on how they were cut into Append calls.
class TextOutput {
 public:
  // `tokenizer` may be null: then there is no text and `stop_strings` must be empty (validation
  // refuses them). Else it must outlive this. The text of the first `min_tokens` tokens is not
  // searched for stop strings. `text_before`: bytes of an incomplete character that the text goes
  // on from.
  TextOutput(const Tokenizer* tokenizer, std::vector<std::string> stop_strings, int32_t min_tokens,
             std::string text_before = {});

  struct Result {
    // Whole characters; without special tokens, the stop token, the stop string and what is held
    // back because it may begin a stop string or is part of a character.
    std::string text;
    // Of the tokens given, those that belong to the output: all, or through the one that completed
    // `stop_string`.
    int32_t tokens_kept = 0;
    std::optional<std::string> stop_string;
    std::vector<int32_t> ends;  // bytes of `text` with each of the tokens kept
  };

  // The next tokens of the output. `ends_with_stop_token`: the last of them is an end-of-text id or
  // a stop token of the request, which ends the text and has none itself. After a stop string or a
  // stop token only Flush may be called.
  Result Append(absl::Span<const int32_t> tokens, bool ends_with_stop_token);

  // What is held back and belongs to the text, at the end of the output: incomplete characters as
  // U+FFFD. Empty after a stop string.
  std::string Flush();

 private:
  std::optional<StreamDecoder> decoder_;  // none without a tokenizer
  StopMatcher matcher_;
  int32_t unsearched_tokens_;  // still to come, of the first min_tokens
  bool stopped_ = false;       // by a stop string
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TEXT_OUTPUT_H_
