#include "model/alignment.h"

#include <algorithm>

namespace blockserve {

int64_t NumPads(const ModelConfig& config, Alignment alignment, int64_t num_tokens) {
  const int64_t block_length = config.block_length;
  switch (alignment) {
    case Alignment::kEnd:
      return (block_length - num_tokens % block_length) % block_length;
    case Alignment::kStart:
      return block_length - 1;
    case Alignment::kNone:
      return std::max<int64_t>(0, block_length - num_tokens);
  }
  return 0;
}

PromptLayout LayoutPrompt(const ModelConfig& config, Alignment alignment,
                          absl::Span<const int32_t> prompt) {
  const int64_t block_length = config.block_length;
  const int32_t bos = config.bos_token_id;
  if (prompt.empty()) prompt = absl::MakeConstSpan(&bos, 1);
  const int64_t length = static_cast<int64_t>(prompt.size());

  const int64_t pads = NumPads(config, alignment, length);
  const int64_t in_blocks = (pads + length) / block_length * block_length;

  PromptLayout layout;
  layout.num_pads = static_cast<int32_t>(pads);
  layout.num_text_tokens = length;
  layout.block_tokens.reserve(in_blocks);
  layout.block_tokens.assign(pads, config.pad_token_id);
  const auto boundary = prompt.begin() + (in_blocks - pads);
  layout.block_tokens.insert(layout.block_tokens.end(), prompt.begin(), boundary);
  layout.forced.assign(boundary, prompt.end());
  return layout;
}

}  // namespace blockserve
