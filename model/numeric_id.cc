// The numeric id of a tier: what tells machines apart whose bits differ.
#include <bit>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/engine.h"

namespace blockserve {
namespace {

// 64-bit FNV-1a over the bits of values.
uint64_t HashFloats(absl::Span<const float> values) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const float value : values) {
    uint32_t bits = std::bit_cast<uint32_t>(value);
    for (int i = 0; i < 4; ++i, bits >>= 8) hash = (hash ^ (bits & 0xffu)) * 0x100000001b3u;
  }
  return hash;
}

std::string Id(Arithmetic arithmetic, absl::Span<const float> values) {
  return absl::StrCat(ArithmeticName(arithmetic), "-",
                      absl::StrFormat("%016x", HashFloats(values)));
}

int32_t ProbeToken(const ModelConfig& config, int64_t i) {
  return static_cast<int32_t>((i * 7919 + 13) % config.vocab_size);
}

}  // namespace

absl::StatusOr<std::string> ProbeNumericId(BlockEngine& engine) {
  const ModelConfig& config = engine.config();
  std::vector<int32_t> tokens(int64_t{kNumericProbeBlocks} * config.block_length);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = ProbeToken(config, i);
  // All blocks but one in a step, longer than what kernels do at a time, then one as when decoding.
  // One page a block is enough whatever the page size.
  std::vector<int32_t> pages(kNumericProbeBlocks);
  for (int32_t i = 0; i < kNumericProbeBlocks; ++i) pages[i] = i;
  std::vector<float> contexts(int64_t{kNumericProbeBlocks} * config.block.hidden_size);
  const auto run = [&](int64_t first, int64_t count) {
    BlockChunk chunk;
    chunk.tokens = absl::MakeConstSpan(tokens).subspan(first * config.block_length,
                                                       count * config.block_length);
    chunk.first_block = first;
    chunk.pages = pages;
    return engine.Step({&chunk, 1},
                       absl::MakeSpan(contexts).subspan(first * config.block.hidden_size,
                                                        count * config.block.hidden_size));
  };
  if (absl::Status status = run(0, kNumericProbeBlocks - 1); !status.ok()) return status;
  if (absl::Status status = run(kNumericProbeBlocks - 1, 1); !status.ok()) return status;
  return Id(engine.arithmetic(), contexts);
}

absl::StatusOr<std::string> ProbeNumericId(TokenEngine& engine) {
  const ModelConfig& config = engine.config();
  // Small dyadic numbers: exact in every format.
  std::vector<float> context(config.block.hidden_size);
  for (size_t i = 0; i < context.size(); ++i) {
    context[i] = static_cast<float>(static_cast<int64_t>(i * 37 % 129) - 64) / 32.0f;
  }
  std::vector<int32_t> forced(config.block_length);
  for (size_t i = 0; i < forced.size(); ++i) forced[i] = ProbeToken(config, i);
  std::vector<float> logits(int64_t{config.block_length} * config.vocab_size);
  const SamplingParameters sampling;
  TokenRow row;
  row.context = context;
  row.forced = forced;
  row.limit = config.block_length;
  row.sampling = &sampling;
  row.logits = absl::MakeSpan(logits);
  TokenRowResult result;
  engine.Decode({&row, 1}, {&result, 1});
  // Logits that are not finite are bits like others.
  if (absl::IsUnavailable(result.status)) return result.status;
  return Id(engine.arithmetic(), logits);
}

}  // namespace blockserve
