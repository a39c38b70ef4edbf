// What a step of the block decoder must be given, whichever engine runs it.
#ifndef BLOCKSERVE_MODEL_BLOCK_CHUNKS_H_
#define BLOCKSERVE_MODEL_BLOCK_CHUNKS_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/config.h"
#include "model/engine.h"

namespace blockserve {

// `num_pages` 0: before AllocateKv. Errors: INVALID_ARGUMENT naming the chunk and its field.
absl::Status ValidateBlockChunks(const ModelConfig& config, int64_t num_pages, int32_t page_blocks,
                                 absl::Span<const BlockChunk> chunks, absl::Span<float> contexts);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_BLOCK_CHUNKS_H_
