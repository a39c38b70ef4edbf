// The numeric id of a tier: what tells machines apart whose bits differ.
#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/packed_matrix.h"
#include "model/engine.h"
#include "model/sampler.h"

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

// Whoever computes nothing else is not to be given requests.
absl::Status CheckFinite(absl::Span<const float> values, absl::string_view what,
                         Arithmetic arithmetic) {
  if (std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); })) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat(what, " of a probe are not finite: weights of the model are broken, or beyond ",
                   ArithmeticName(arithmetic)));
}

std::string Id(Arithmetic arithmetic, uint64_t hash) {
  return absl::StrCat(ArithmeticName(arithmetic), "-", absl::StrFormat("%016x", hash));
}

// What is drawn from logits, and log-probabilities, are bits as well: of a sampler by itself, the
// same for every model and machine.
uint64_t HashOfDraws() {
  constexpr int32_t kVocab = 1000;
  const CpuKernels& kernels = GetCpuKernels(SupportedKernelTargets().front());
  std::vector<float> logits(PadToPanel(kVocab));
  for (int32_t i = 0; i < kVocab; ++i) {
    logits[i] = static_cast<float>(i * 7919 % 509 - 254) / 32.0f;  // ties too
  }
  const LogitStatistics statistics = StatisticsOf(kernels, logits.data(), kVocab);
  const TokenCount counts[] = {{.token = 3, .in_prompt = 1, .in_output = 2},
                               {.token = 500, .in_prompt = 0, .in_output = 1}};
  const LogitBias bias[] = {{.token = 7, .bias = 6.0f}};
  const SamplingParameters kinds[] = {
      {},
      {.temperature = 0.7f, .top_k = 40},
      {.top_p = 0.9f},
      {.temperature = 1.5f, .min_p = 0.05f},
      {.top_k = 200, .top_p = 0.8f},
      {.repetition_penalty = 1.3f, .presence_penalty = 0.5f, .frequency_penalty = 0.25f}};
  Sampler sampler(kernels, kVocab);
  std::vector<float> drawn;
  for (const SamplingParameters& sampling : kinds) {
    TokenRow row;
    row.seed = 17;
    row.choice = 1;
    row.sampling = &sampling;
    row.logit_bias = bias;
    if (HasPenalties(sampling)) row.counts = counts;
    for (int64_t position = 0; position < 32; ++position) {
      const int32_t token =
          sampler.Draw(logits.data(), statistics, row, {}, position).value_or(kVocab - 1);
      drawn.push_back(static_cast<float>(token));
      drawn.push_back(RawLogprob(statistics, logits[token]));
    }
  }
  return HashFloats(drawn);
}

// HashOfDraws of the first sampler, whose ids are those of the logits alone.
constexpr uint64_t kFirstDraws = 0x1936c8c4939cc71du;

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
  const absl::Status finite =
      CheckFinite(contexts, "the block decoder's context rows", engine.arithmetic());
  if (!finite.ok()) return finite;
  return Id(engine.arithmetic(), HashFloats(contexts));
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
  if (absl::IsUnavailable(result.status)) return result.status;
  const absl::Status finite =
      CheckFinite(logits, "the token decoder's logits", engine.arithmetic());
  if (!finite.ok()) return finite;
  return Id(engine.arithmetic(), HashFloats(logits) ^ HashOfDraws() ^ kFirstDraws);
}

}  // namespace blockserve
