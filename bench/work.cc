#include "bench/work.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace blockserve {
namespace {

int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Weights of the matrix products of one position.
double StackWeights(const StackConfig& stack) {
  const double width = stack.hidden_size;
  return stack.num_layers * (4 * width * width + 2 * width * stack.intermediate_size);
}

// Positions [begin, end) of one sequence, each of which attends to itself and all before it.
double ContextSum(double begin, double end) {
  return end > begin ? (end * (end + 1) - begin * (begin + 1)) / 2 : 0;
}

// Positions [begin, end) of each of `sequences` sequences through a stack.
PartWork StackWork(const StackConfig& stack, double begin, double end, double sequences,
                   double kv_bytes) {
  PartWork work;
  if (end <= begin) return work;
  const double contexts = sequences * ContextSum(begin, end);
  const double width = stack.hidden_size;
  work.product_flop = 2 * StackWeights(stack) * sequences * (end - begin);
  work.attention_flop = 4 * width * stack.num_layers * contexts;
  work.kv_bytes = 2 * width * stack.num_layers * kv_bytes * (contexts + sequences * (end - begin));
  return work;
}

}  // namespace

PartWork operator+(const PartWork& a, const PartWork& b) {
  return {a.product_flop + b.product_flop, a.attention_flop + b.attention_flop,
          a.weight_bytes + b.weight_bytes, a.kv_bytes + b.kv_bytes};
}

int64_t PromptBlocks(const ModelConfig& config, const Workload& workload) {
  return DivideUp(workload.prompt_tokens, config.block_length);
}

int64_t GeneratedBlocks(const ModelConfig& config, const Workload& workload) {
  return DivideUp(workload.generate_tokens, config.block_length);
}

Storage StorageOf(Arithmetic arithmetic, bool bf16_file) {
  switch (arithmetic) {
    case Arithmetic::kF32:
      return {bf16_file ? 2.0 : 4.0, 4};
    case Arithmetic::kCudaF32:
      return {4, 4};
    case Arithmetic::kInt8:
      return {1, 2};
    case Arithmetic::kBf16:
    case Arithmetic::kBf16Dot:
    case Arithmetic::kCudaBf16:
    case Arithmetic::kCudaBf16Own:
    case Arithmetic::kCudaBf16Fast:
      break;
  }
  return {2, 2};
}

double ModelBytes(const ModelConfig& config, const Storage& storage) {
  const double vocab = config.vocab_size, width = config.block.hidden_size;
  double weights = StackWeights(config.block) + vocab * config.embedding_width +
                   vocab * config.token.hidden_size;
  if (config.projection == Projection::kProjectionLayer) {
    weights += width * config.embedding_width * config.block_length;
  }
  if (config.strategy != DecodingStrategy::kHeadOnly) {
    weights += StackWeights(config.token) + vocab * config.token.hidden_size +
               width * config.expansion_ratio * config.token.hidden_size;
  }
  return weights * storage.weight_bytes;
}

double KvBytesPerToken(const ModelConfig& config, const Storage& storage) {
  return 2.0 * config.block.hidden_size * config.block.num_layers * storage.kv_bytes /
         config.block_length;
}

Work CountWork(const ModelConfig& config, const Storage& storage, const Workload& workload,
               const Batching& batching) {
  Work work;
  const double weight = storage.weight_bytes, kv = storage.kv_bytes;
  const double sequences = static_cast<double>(workload.sequences);
  const int64_t prompt = PromptBlocks(config, workload);
  const int64_t generated = GeneratedBlocks(config, workload);
  const double length = config.block_length;

  // Embedder and block decoder.
  double block_weights = StackWeights(config.block);
  double embed_weights = 0;
  if (config.projection == Projection::kProjectionLayer) {
    embed_weights = length * config.embedding_width * config.block.hidden_size;
  }
  block_weights += embed_weights;
  work.prefill = StackWork(config.block, 0, static_cast<double>(prompt), sequences, kv);
  work.prefill.product_flop += 2 * embed_weights * sequences * static_cast<double>(prompt);
  // The rows of a step read the keys and values before them together.
  double read = 0;
  for (int64_t at = 0; at < prompt; at += batching.prefill_blocks) {
    read += static_cast<double>(std::min(prompt, at + batching.prefill_blocks));
  }
  work.prefill.kv_bytes = 2.0 * config.block.hidden_size * config.block.num_layers * kv *
                          sequences * (read + static_cast<double>(prompt));
  work.prefill.weight_bytes =
      static_cast<double>(DivideUp(prompt * workload.sequences, batching.prefill_blocks)) *
      block_weights * weight;
  // The last block is never appended.
  const int64_t end = prompt + generated - 1;
  work.block_step =
      StackWork(config.block, static_cast<double>(prompt), static_cast<double>(end), sequences, kv);
  work.block_step.product_flop += 2 * embed_weights * sequences * static_cast<double>(end - prompt);
  work.block_step.weight_bytes =
      static_cast<double>(end - prompt) *
      static_cast<double>(DivideUp(workload.sequences, batching.block_rows)) * block_weights *
      weight;

  // Token decoder. Its cache lives for one block and stays in the processor's: no memory traffic.
  const double passes = static_cast<double>(DivideUp(workload.sequences, batching.token_rows));
  const double blocks = sequences * static_cast<double>(generated);
  const double tokens = sequences * static_cast<double>(workload.generate_tokens);
  const double head_weights = static_cast<double>(config.token.hidden_size) * config.vocab_size;
  work.head.product_flop = 2 * head_weights * tokens;
  work.head.weight_bytes =
      static_cast<double>(workload.generate_tokens) * passes * head_weights * weight;
  if (config.strategy == DecodingStrategy::kHeadOnly) return work;

  const double expansion_weights = static_cast<double>(config.expansion_ratio) *
                                   config.token.hidden_size * config.block.hidden_size;
  work.expansion.product_flop = 2 * expansion_weights * blocks;
  work.expansion.weight_bytes =
      static_cast<double>(generated) * passes * expansion_weights * weight;
  const double lead = config.strategy == DecodingStrategy::kPrefix ? config.expansion_ratio : 1;
  const double token_weights = StackWeights(config.token);
  work.first_step = StackWork(config.token, 0, lead, blocks, 0);
  work.first_step.weight_bytes = static_cast<double>(generated) * passes * token_weights * weight;
  // Full blocks, and what the last one has.
  const double rest =
      static_cast<double>(workload.generate_tokens) - static_cast<double>(generated - 1) * length;
  work.later_steps = StackWork(config.token, lead, lead + length - 1,
                               sequences * static_cast<double>(generated - 1), 0) +
                     StackWork(config.token, lead, lead + rest - 1, sequences, 0);
  work.later_steps.weight_bytes =
      static_cast<double>(workload.generate_tokens - generated) * passes * token_weights * weight;
  return work;
}

std::string FormulaText(const Work& work, const Workload& workload) {
  const double prompt = static_cast<double>(workload.prompt_tokens * workload.sequences);
  const double generated = static_cast<double>(workload.generate_tokens * workload.sequences);
  return absl::StrFormat(
      "FLOP = %.1f M x %.0f prompt tokens + %.1f M x %.0f generated tokens\n"
      "       + attention %.1f G (prompts) + %.1f G (generated) = %.1f G",
      work.prefill.product_flop / prompt / 1e6, prompt,
      work.decode().product_flop / generated / 1e6, generated, work.prefill.attention_flop / 1e9,
      work.decode().attention_flop / 1e9, work.all().flop() / 1e9);
}

nlohmann::ordered_json FormulaJson(const Work& work, const Workload& workload) {
  const double prompt = static_cast<double>(workload.prompt_tokens * workload.sequences);
  const double generated = static_cast<double>(workload.generate_tokens * workload.sequences);
  return {{"flop", work.all().flop()},
          {"flop_per_prompt_token", work.prefill.product_flop / prompt},
          {"prompt_tokens", prompt},
          {"flop_per_generated_token", work.decode().product_flop / generated},
          {"generated_tokens", generated},
          {"attention_flop_of_prompts", work.prefill.attention_flop},
          {"attention_flop_of_generated", work.decode().attention_flop}};
}

}  // namespace blockserve
