// The two engines that the compute tiers run: one interface each, CPU or CUDA chosen once at load.
//
// Both obey the determinism contract: a row's result is bitwise the same whatever else is in the
// batch, and a block's context row and KV are bitwise the same whether it was prefilled in a chunk
// of any size or decoded by itself, for any split into pages.
#ifndef BLOCKSERVE_MODEL_ENGINE_H_
#define BLOCKSERVE_MODEL_ENGINE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/thread_pool.h"
#include "kernels/cpu/kernel_target.h"
#include "model/arithmetic.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/sampling.h"
#include "model/step_timer.h"

namespace blockserve {

// ---------------------------------------------------------------------------------------------------
// Block decoder

// One sequence's share of a step: consecutive blocks to run, of any number (1 when decoding).
struct BlockChunk {
  absl::Span<const int32_t> tokens;  // [num_blocks, L] token ids
  int64_t first_block = 0;           // position of the first block of `tokens`, counted from 0
  // Page table of the sequence: pages[i] holds blocks [i * page_blocks, (i + 1) * page_blocks).
  // Covers at least first_block + num_blocks blocks.
  absl::Span<const int32_t> pages;
  // Context rows are wanted of the blocks at positions >= first_context (absolute positions).
  int64_t first_context = 0;
};

class BlockEngine {
 public:
  virtual ~BlockEngine() = default;

  virtual const ModelConfig& config() const = 0;
  virtual Arithmetic arithmetic() const = 0;

  // KV pages are allocated once: `num_pages` pages of `page_blocks` blocks each.
  // Errors: RESOURCE_EXHAUSTED naming the bytes needed; INVALID_ARGUMENT for a page of an odd
  // number of blocks with bf16dot.
  virtual absl::Status AllocateKv(int64_t num_pages, int32_t page_blocks) = 0;
  // What AllocateKv takes for each page of so many blocks.
  virtual int64_t KvBytesPerPage(int32_t page_blocks) const = 0;
  // What KV may take where nobody says: on a device half of what is free now; 0: the host's memory
  // decides.
  virtual int64_t DefaultKvBytes() const { return 0; }
  // Copies the first `blocks` blocks of page `from` to page `to`.
  virtual void CopyPage(int32_t from, int32_t to, int32_t blocks) = 0;

  // Runs all chunks as one step. Rows of context embeddings, in the order of chunks and of blocks
  // in a chunk, go to `contexts` [wanted rows, D] float32. With bf16 arithmetics the values are
  // rounded to bfloat16, so that sending them as bfloat16 loses nothing. A chunk of non-finite
  // values does not harm the others. Not thread-safe.
  absl::Status Step(absl::Span<const BlockChunk> chunks, absl::Span<float> contexts) {
    absl::Status status = Start(chunks, contexts);
    return status.ok() ? Finish() : status;
  }

  // The same in two halves, for what an engine computes beside the host: so many steps may be under
  // way at a time. They run in the order of their starts, and CopyPage runs where it is called
  // among them. Where that is 1, Start computes. Step must not be called while one is under way.
  virtual int32_t max_in_flight() const { return 1; }
  // Begins a step. `chunks`, and what they point at, may change as soon as it returns; `contexts`
  // stay until its Finish. Unless it returns OK, no step was begun.
  virtual absl::Status Start(absl::Span<const BlockChunk> chunks, absl::Span<float> contexts) = 0;
  // Waits for the step that was started first of those under way: its contexts are there, unless
  // it returns an error.
  virtual absl::Status Finish() { return absl::OkStatus(); }

  // OK, or why no later step can succeed: the device is lost until the process is started anew.
  virtual absl::Status Lost() const { return absl::OkStatus(); }
};

// ---------------------------------------------------------------------------------------------------
// Token decoder

// One block to write.
struct TokenRow {
  absl::Span<const float> context;   // [D] context embedding of the block before
  absl::Span<const int32_t> forced;  // the block's first tokens, given; at most L
  int32_t forced_in_prompt = 0;      // of `forced`, so many (the first) belong to the prompt
  int32_t limit = 0;     // tokens in the block when it is done, forced ones included; <= L
  int64_t position = 0;  // text position of the token at index forced.size()
  uint64_t seed = 0;
  uint32_t choice = 0;
  const SamplingParameters* sampling = nullptr;
  absl::Span<const int32_t> stop_ids;  // generating one of these ends the row (it is returned)
  int64_t min_tokens_position = 0;     // before this position the stop ids cannot be drawn
  absl::Span<const LogitBias> logit_bias;
  absl::Span<const TokenCount> counts;  // each id once; only where a penalty is not neutral
  int32_t vocab_limit = 0;              // ids >= this cannot be drawn; 0: the whole vocabulary
  int32_t top_logprobs = 0;             // best ids reported beside each token
  bool score_forced = false;            // report log-probabilities of the forced tokens too
  absl::Span<float> logits;  // tests: empty, or [limit, V], raw logits of each position run
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;  // natural, raw, over the whole vocabulary
};

struct TokenRowResult {
  // INTERNAL: non-finite logits, for this row alone. INVALID_ARGUMENT: no id is left to draw.
  absl::Status status;
  std::vector<int32_t> tokens;  // the tokens after the forced ones
  bool stopped = false;         // the last of `tokens` is a stop id
  // One entry per reported token: the forced ones first when score_forced, then `tokens`.
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> top;  // empty unless top_logprobs > 0; best first
};

class TokenEngine {
 public:
  virtual ~TokenEngine() = default;

  virtual const ModelConfig& config() const = 0;
  virtual Arithmetic arithmetic() const = 0;
  // Rows of one Decode call beyond which nothing is gained.
  virtual int32_t max_rows() const = 0;

  // Writes every row's block; results [rows.size()]. Inputs were validated by the caller
  // (ValidateTokenRow). Not thread-safe.
  virtual void Decode(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) = 0;

  // The same in two halves, for what an engine computes beside the host: so many batches may be
  // under way at a time, of so many rows each, so that it has the next one when one is done. Where
  // that is 1, Start computes.
  virtual int32_t max_in_flight() const { return 1; }
  virtual int32_t batch_rows() const { return max_rows(); }
  // Begins a batch. `rows`, what they point at and `results` stay until its Finish. Decode must not
  // be called while a batch is under way.
  virtual void Start(absl::Span<const TokenRow> rows, absl::Span<TokenRowResult> results) {
    Decode(rows, results);
  }
  // Waits for the batch that was started first of those under way: its results are there.
  virtual void Finish() {}

  // As of the block engine.
  virtual absl::Status Lost() const { return absl::OkStatus(); }
};

// Best ids that a row can ask for beside each token.
inline constexpr int32_t kMaxTopLogprobs = 100;

// Names the field of a row that this model cannot take (INVALID_ARGUMENT).
absl::Status ValidateTokenRow(const ModelConfig& config, const TokenRow& row);

struct EngineOptions {
  Arithmetic arithmetic = Arithmetic::kF32;
  int32_t cuda_device = -1;    // of the CUDA arithmetics (ChooseEngine in model/device.h)
  ThreadPool* pool = nullptr;  // not owned; may be shared: engines take turns by ThreadPool::Turn
  int32_t max_rows = 256;      // largest batch that activations are allocated for
  // Instruction set of the kernels; the machine's best when absent. All give the same bits.
  std::optional<KernelTarget> kernel_target;
  // On a CUDA device of compute capability 9.0 or newer: cuda::KernelLaunch::kEarly. The same bits.
  bool early_launch = false;
  StepTimer* timer = nullptr;  // not owned; told where the time of each step went
};

absl::StatusOr<std::unique_ptr<BlockEngine>> LoadBlockEngine(const Checkpoint& checkpoint,
                                                             const EngineOptions& options);
absl::StatusOr<std::unique_ptr<TokenEngine>> LoadTokenEngine(const Checkpoint& checkpoint,
                                                             const EngineOptions& options);

// The numeric id of a tier: arithmetic name and a hash of the outputs of a fixed probe, e.g.
// "f32-9a3c…". Equal ids compute equal bits. UNAVAILABLE where the device failed,
// FAILED_PRECONDITION where outputs are not finite.
// The block engine's probe overwrites the first KV pages: it belongs between AllocateKv (of at
// least kNumericProbeBlocks blocks, else an error) and the first sequence.
inline constexpr int32_t kNumericProbeBlocks = 41;
absl::StatusOr<std::string> ProbeNumericId(BlockEngine& engine);
absl::StatusOr<std::string> ProbeNumericId(TokenEngine& engine);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_ENGINE_H_
