#include "model/alignment.h"

#include <algorithm>

namespace blockserve {

PromptLayout LayoutPrompt(const ModelConfig& config, Alignment alignment,
                          absl::Span<const int32_t> prompt) {
  const int64_t block_length = config.block_length;
  const int32_t bos = config.bos_token_id;
  if (prompt.empty()) prompt = absl::MakeConstSpan(&bos, 1);
  const int64_t length = static_cast<int64_t>(prompt.size());

  int64_t pads = 0;
  switch (alignment) {
    case Alignment::kEnd:
      pads = (block_length - length % block_length) % block_length;
      break;
    case Alignment::kStart:
      pads = block_length - 1;
      break;
    case Alignment::kNone:
      pads = std::max<int64_t>(0, block_length - length);
      break;
  }
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
