#include "gateway/text_output.h"

#include <utility>

namespace blockserve {

TextOutput::TextOutput(const Tokenizer* tokenizer, std::vector<std::string> stop_strings,
                       int32_t min_tokens, std::string text_before)
    : matcher_(std::move(stop_strings)), unsearched_tokens_(min_tokens) {
  if (tokenizer != nullptr) {
    decoder_.emplace(*tokenizer, /*skip_special_tokens=*/true, std::move(text_before));
  }
}

TextOutput::Result TextOutput::Append(absl::Span<const int32_t> tokens, bool ends_with_stop_token) {
  Result result;
  result.tokens_kept = static_cast<int32_t>(tokens.size());
  result.ends.resize(tokens.size());
  if (!decoder_.has_value()) return result;
  if (ends_with_stop_token) tokens.remove_suffix(1);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string piece = decoder_->Push(tokens[i]);
    if (unsearched_tokens_ > 0) {
      --unsearched_tokens_;
      result.text += piece;
      result.ends[i] = static_cast<int32_t>(result.text.size());
      continue;
    }
    result.stop_string = matcher_.Push(piece, result.text);
    result.ends[i] = static_cast<int32_t>(result.text.size());
    if (result.stop_string.has_value()) {
      stopped_ = true;
      result.tokens_kept = static_cast<int32_t>(i) + 1;
      break;
    }
  }
  result.ends.resize(static_cast<size_t>(result.tokens_kept));
  // A stop token has no text of its own.
  if (ends_with_stop_token && !result.stop_string.has_value()) {
    result.ends.back() = static_cast<int32_t>(result.text.size());
  }
  return result;
}

std::string TextOutput::Flush() {
  if (!decoder_.has_value() || stopped_) return {};
  // A stop string of U+FFFD alone is not looked for in what an incomplete character leaves: the
  // output has already ended for another reason.
  std::string text = matcher_.Flush();
  text += decoder_->Flush();
  return text;
}

}  // namespace blockserve
