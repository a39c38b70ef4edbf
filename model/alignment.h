// Where block boundaries fall in a prompt: the step from token ids to the block decoder's input.
#ifndef BLOCKSERVE_MODEL_ALIGNMENT_H_
#define BLOCKSERVE_MODEL_ALIGNMENT_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/config.h"

namespace blockserve {

struct PromptLayout {
  // [num_blocks, L] ids of the full blocks, padding in front included. Never empty: generation
  // needs the context embedding of a block before it.
  std::vector<int32_t> block_tokens;
  // The prompt's tokens that did not fill a block, fewer than L: the forced beginning of the block
  // that the token decoder completes. Always empty with Alignment::kEnd.
  std::vector<int32_t> forced;
  int32_t num_pads = 0;  // pad ids at the front of block_tokens
  int64_t num_text_tokens =
      0;  // tokens of the text; 1 for an empty prompt, which becomes the BOS id

  int64_t num_blocks(const ModelConfig& config) const {
    return static_cast<int64_t>(block_tokens.size()) / config.block_length;
  }
};

// Pad ids that LayoutPrompt puts in front of a text of `num_tokens` > 0 tokens.
int64_t NumPads(const ModelConfig& config, Alignment alignment, int64_t num_tokens);

// `end` pads on the left to a multiple of L. `start` puts L - 1 pads in front, so that the first
// token ends the first block. `none` puts none, but pads a text shorter than L to one block. An
// empty prompt is the one token bos_token_id.
PromptLayout LayoutPrompt(const ModelConfig& config, Alignment alignment,
                          absl::Span<const int32_t> prompt);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_ALIGNMENT_H_
