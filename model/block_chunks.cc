#include "model/block_chunks.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace blockserve {

absl::Status ValidateBlockChunks(const ModelConfig& config, int64_t num_pages, int32_t page_blocks,
                                 absl::Span<const BlockChunk> chunks, absl::Span<float> contexts) {
  if (num_pages == 0) return absl::FailedPreconditionError("Step before AllocateKv");
  const int64_t length = config.block_length;
  int64_t wanted = 0;
  for (size_t c = 0; c < chunks.size(); ++c) {
    const BlockChunk& chunk = chunks[c];
    const auto error = [c](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("chunk ", c, ": ", what));
    };
    const int64_t tokens = static_cast<int64_t>(chunk.tokens.size());
    if (tokens == 0 || tokens % length != 0) {
      return error(absl::StrCat("tokens: ", tokens, ", not whole blocks of ", length));
    }
    for (const int32_t token : chunk.tokens) {
      if (token < 0 || token >= config.vocab_size) {
        return error(absl::StrCat("tokens: id ", token, " is outside the vocabulary of ",
                                  config.vocab_size));
      }
    }
    if (chunk.first_block < 0) return error("first_block is negative");
    const int64_t end = chunk.first_block + tokens / length;
    const int64_t pages = (end + page_blocks - 1) / page_blocks;
    if (static_cast<int64_t>(chunk.pages.size()) < pages) {
      return error(absl::StrCat("pages: ", chunk.pages.size(), " of ", page_blocks,
                                " blocks do not cover ", end, " blocks"));
    }
    for (int64_t i = 0; i < pages; ++i) {
      if (chunk.pages[i] < 0 || chunk.pages[i] >= num_pages) {
        return error(absl::StrCat("pages: ", chunk.pages[i], " of ", num_pages));
      }
    }
    wanted += std::max<int64_t>(end - std::max(chunk.first_block, chunk.first_context), 0);
  }
  if (static_cast<int64_t>(contexts.size()) != wanted * config.block.hidden_size) {
    return absl::InvalidArgumentError(absl::StrCat("contexts: room for ", contexts.size(),
                                                   " values, ", wanted, " rows of ",
                                                   config.block.hidden_size, " are wanted"));
  }
  return absl::OkStatus();
}

}  // namespace blockserve
