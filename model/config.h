// The shape of a model, read from the `config.json` of a checkpoint folder.
//
// Two kinds are known: `block_transformer` (arXiv 2406.02657) and plain `gpt_neox`. The second is
// read as the case L = 1 whose token decoder is the head alone, so that it takes the same way
// through engine and tiers.
#ifndef BLOCKSERVE_MODEL_CONFIG_H_
#define BLOCKSERVE_MODEL_CONFIG_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

enum class ModelKind { kBlockTransformer, kVanilla };
// How L token embeddings become one vector of width D.
enum class Projection { kConcat, kSum, kProjectionLayer };
// How the token decoder is fed; kHeadOnly is the vanilla model's.
enum class DecodingStrategy { kPrefix, kSummation, kHeadOnly };
// Where block boundaries fall in a text.
enum class Alignment { kEnd, kStart, kNone };

// One GPT-NeoX stack.
struct StackConfig {
  int32_t hidden_size = 0;
  int32_t num_heads = 0;
  int32_t num_layers = 0;
  int32_t intermediate_size = 0;
  int64_t max_positions = 0;  // positions of this stack: blocks for the block decoder
  double rotary_pct = 0.25;
  double rotary_base = 10000.0;
  double layer_norm_eps = 1e-5;
  bool parallel_residual = true;

  int32_t head_size() const { return hidden_size / num_heads; }
  // Dimensions of a head that are rotated: int(head_size * rotary_pct).
  int32_t rotary_dims() const { return static_cast<int32_t>(head_size() * rotary_pct); }
};

struct ModelConfig {
  ModelKind kind = ModelKind::kBlockTransformer;
  int32_t block_length = 1;  // L, tokens
  int32_t vocab_size = 0;    // V, rows of the tables, padding of the table included
  int32_t bos_token_id = 0;
  int32_t eos_token_id = 0;
  int32_t pad_token_id = 0;
  Projection projection = Projection::kConcat;
  int32_t embedding_width = 0;  // width of a row of the embedder's table
  StackConfig block;
  // For kHeadOnly: hidden_size is the block stack's, num_layers 0.
  StackConfig token;
  int32_t expansion_ratio = 0;  // r, prefix vectors; 0 for kHeadOnly
  DecodingStrategy strategy = DecodingStrategy::kPrefix;
  Alignment default_alignment = Alignment::kEnd;
  std::string torch_dtype;  // as written in the file: "float32", "float16", "bfloat16"
};

// Positions of the token decoder that each block takes; 0 for kHeadOnly.
int64_t TokenPositions(const ModelConfig& config);

// Parses the text of a config.json. Errors: INVALID_ARGUMENT naming the field (and `source`, the
// file's name, put in front).
absl::StatusOr<ModelConfig> ParseModelConfig(absl::string_view json, absl::string_view source);

// Reads `directory`/config.json. Errors: NOT_FOUND when the folder or file is missing, else as
// above.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& directory);

// "end", "start", "none". Parse errors: INVALID_ARGUMENT.
absl::string_view AlignmentName(Alignment alignment);
absl::StatusOr<Alignment> ParseAlignment(absl::string_view name);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CONFIG_H_
