// How much work a run needs: arithmetic and memory traffic, counted from the model's shape, not
// from what an engine happens to do. What measured times are set against.
#ifndef BLOCKSERVE_BENCH_WORK_H_
#define BLOCKSERVE_BENCH_WORK_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "model/arithmetic.h"
#include "model/config.h"

namespace blockserve {

struct Workload {
  int64_t prompt_tokens = 0;    // of each sequence, at least 1
  int64_t generate_tokens = 0;  // of each sequence, at least 1
  int64_t sequences = 0;        // at least 1
};

// Of all sequences together.
struct PartWork {
  double product_flop = 0;    // matrix products: two operations a weight and row
  double attention_flop = 0;  // over the real context: 4 x width a layer and position attended to
  double weight_bytes = 0;    // weights that must be read, once for each pass over at most max_rows
  double kv_bytes = 0;        // keys and values that must be read and written

  double flop() const { return product_flop + attention_flop; }
  double bytes() const { return weight_bytes + kv_bytes; }
};
PartWork operator+(const PartWork& a, const PartWork& b);

struct Work {
  PartWork prefill;      // block decoder over the prompts
  PartWork block_step;   // block decoder over what was generated, without each last block
  PartWork expansion;    // context rows to prefix vectors
  PartWork first_step;   // token decoder: the first pass of each block
  PartWork later_steps;  // token decoder: one position a step
  PartWork head;         // output head

  PartWork decode() const { return block_step + expansion + first_step + later_steps + head; }
  PartWork all() const { return prefill + decode(); }
};

// How the engines batch; changes how often weights are read, not the arithmetic.
struct Batching {
  int64_t prefill_blocks = 256;  // prompt positions of a step
  int64_t block_rows = 256;      // sequences that a block step decodes at once
  int64_t token_rows = 64;       // rows that the token decoder decodes at once
};

// Blocks of a prompt and of an output, padding included.
int64_t PromptBlocks(const ModelConfig& config, const Workload& workload);
int64_t GeneratedBlocks(const ModelConfig& config, const Workload& workload);

// Bytes of a weight of a matrix product, and of a number of the KV cache.
struct Storage {
  double weight_bytes = 4;
  double kv_bytes = 4;
};
// `bf16_file`: the checkpoint's tensors are BF16, which f32 keeps as they are.
Storage StorageOf(Arithmetic arithmetic, bool bf16_file);
// All weights, tables included.
double ModelBytes(const ModelConfig& config, const Storage& storage);
// KV cache of one token of text.
double KvBytesPerToken(const ModelConfig& config, const Storage& storage);

Work CountWork(const ModelConfig& config, const Storage& storage, const Workload& workload,
               const Batching& batching);

// The formula of shares of peak with this workload's numbers in it.
std::string FormulaText(const Work& work, const Workload& workload);
nlohmann::ordered_json FormulaJson(const Work& work, const Workload& workload);

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_WORK_H_
