#include "model/block_engine_cpu.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"
#include "model/block_chunks.h"

namespace blockserve {
namespace {

// Rows that a thread embeds at a time.
constexpr int64_t kEmbedGrain = 8;

}  // namespace

absl::StatusOr<std::unique_ptr<BlockEngine>> CpuBlockEngine::Load(const Checkpoint& checkpoint,
                                                                  const EngineOptions& options,
                                                                  const CpuKernels& kernels) {
  std::unique_ptr<CpuBlockEngine> engine(new CpuBlockEngine(checkpoint.config(), options, kernels));
  absl::Status status = engine->LoadWeights(checkpoint, options.max_rows);
  if (!status.ok()) return status;
  return engine;
}

absl::Status CpuBlockEngine::LoadWeights(const Checkpoint& checkpoint, int64_t max_rows) {
  ThreadPool::Turn turn(pool_);
  LoadProgress progress("the block decoder", StoredBytes(checkpoint, CheckpointPart::kBlock),
                        std::chrono::steady_clock::now());
  const LoadContext context{checkpoint, arithmetic_, pool_, &progress};
  const bool vanilla = config_.kind == ModelKind::kVanilla;
  const int64_t width = config_.block.hidden_size;

  absl::StatusOr<EmbeddingTable> table = EmbeddingTable::Load(
      context, vanilla ? "gpt_neox.embed_in.weight" : "embedder.embeddings.weight",
      config_.vocab_size, config_.embedding_width);
  if (!table.ok()) return table.status();
  table_ = *std::move(table);

  if (config_.projection == Projection::kProjectionLayer) {
    const int64_t gathered = int64_t{config_.embedding_width} * config_.block_length;
    absl::StatusOr<PackedMatrix> projection = LoadMatrix(
        context, "embedder.projection_layer", width, gathered, true, config_.block_length);
    if (!projection.ok()) return projection.status();
    projection_ = *std::move(projection);
    gathered_ = AlignedBuffer(max_rows * RowStride(gathered) * sizeof(float));
    quantized_ = QuantizedRows(arithmetic_, max_rows, gathered);
  }

  absl::StatusOr<DecoderStack> stack =
      DecoderStack::Load(context, vanilla ? "gpt_neox." : "block_decoder.gpt_neox.", config_.block,
                         kernels_, max_rows);
  if (!stack.ok()) return stack.status();
  stack_ = *std::move(stack);
  x_ = AlignedBuffer(max_rows * stack_.stride() * sizeof(float));
  if (x_.data() == nullptr || !quantized_.has_memory() ||
      (config_.projection == Projection::kProjectionLayer && gathered_.data() == nullptr)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no memory for activations of ", max_rows, " rows"));
  }
  batch_.reserve(max_rows);
  rows_.reserve(max_rows);
  wanted_.reserve(max_rows);
  return absl::OkStatus();
}

absl::Status CpuBlockEngine::AllocateKv(int64_t num_pages, int32_t page_blocks) {
  if (arithmetic_ == Arithmetic::kBf16Dot && page_blocks % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("pages of ", page_blocks,
                     " blocks: arithmetic bf16dot, whose attention adds "
                     "them in pairs, needs an even number"));
  }
  absl::StatusOr<KvStore> kv =
      KvStore::Allocate(config_.block, arithmetic_, num_pages, page_blocks);
  if (!kv.ok()) return kv.status();
  kv_ = *std::move(kv);
  return absl::OkStatus();
}

int64_t CpuBlockEngine::KvBytesPerPage(int32_t page_blocks) const {
  KvLayout layout;
  layout.num_heads = config_.block.num_heads;
  layout.head_size = config_.block.head_size();
  layout.page_blocks = page_blocks;
  layout.bf16 = StoresBf16(arithmetic_);
  return config_.block.num_layers * layout.page_bytes();
}

void CpuBlockEngine::CopyPage(int32_t from, int32_t to, int32_t blocks) {
  // Keys of neighbouring blocks are interleaved, so the whole page is copied; what lies after
  // `blocks` is never read before it is written.
  if (from != to && blocks > 0) kv_.CopyPage(from, to);
}

absl::Status CpuBlockEngine::Start(absl::Span<const BlockChunk> chunks,
                                   absl::Span<float> contexts) {
  absl::Status status =
      ValidateBlockChunks(config_, kv_.num_pages(), kv_.layout().page_blocks, chunks, contexts);
  if (!status.ok()) return status;
  ThreadPool::Turn turn(pool_);
  if (timer_ != nullptr) timer_->Begin(StepTimer::kBlockStep);
  float* out = contexts.data();
  batch_.clear();
  rows_.clear();
  for (const BlockChunk& chunk : chunks) {
    const int64_t blocks = static_cast<int64_t>(chunk.tokens.size()) / config_.block_length;
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t position = chunk.first_block + i;
      batch_.push_back(
          {chunk.tokens.data() + i * config_.block_length, position >= chunk.first_context});
      rows_.push_back({chunk.pages.data(), position});
      // A batch may end inside a chunk: its keys and values are in the pages for the next one.
      if (static_cast<int64_t>(batch_.size()) == stack_.max_rows()) {
        out += RunBatch(out) * config_.block.hidden_size;
      }
    }
  }
  if (!batch_.empty()) RunBatch(out);
  return absl::OkStatus();
}

void CpuBlockEngine::Embed() {
  const int64_t length = config_.block_length;
  const int64_t width = table_.width();
  const bool projected = config_.projection == Projection::kProjectionLayer;
  const int64_t stride = projected ? RowStride(projection_.k()) : stack_.stride();
  float* rows = projected ? gathered_.as<float>() : x_.as<float>();
  const int64_t count = static_cast<int64_t>(batch_.size());
  // Rows of the table lie anywhere in memory: threads wait for them side by side.
  pool_.ParallelFor((count + kEmbedGrain - 1) / kEmbedGrain, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * kEmbedGrain);
    for (int64_t r = task * kEmbedGrain; r < end; ++r) {
      float* row = rows + r * stride;
      const int32_t* tokens = batch_[r].tokens;
      // A row of non-finite values leaves its mark in the padding: clear it for the next one.
      std::fill(row + (projected ? projection_.k() : config_.block.hidden_size), row + stride,
                0.0f);
      if (config_.projection == Projection::kSum) {
        table_.CopyRow(tokens[0], row);
        for (int64_t j = 1; j < length; ++j) table_.AddRow(tokens[j], row);
      } else {
        for (int64_t j = 0; j < length; ++j) table_.CopyRow(tokens[j], row + j * width);
      }
    }
  });
  Lap(timer_, StepTimer::kRows);
  if (!projected) return;
  MatmulArgs args;
  args.x = rows;
  args.x_stride = stride;
  args.rows = static_cast<int64_t>(batch_.size());
  args.weights = &projection_;
  args.y = x_.as<float>();
  args.y_stride = stack_.stride();
  RunMatmul(kernels_, pool_, quantized_, args);
  Lap(timer_, StepTimer::kMatmul);
}

int64_t CpuBlockEngine::RunBatch(float* contexts) {
  Embed();
  const int64_t stride = stack_.stride();
  const int64_t width = config_.block.hidden_size;
  float* x = x_.as<float>();
  wanted_.clear();
  for (size_t r = 0; r < batch_.size(); ++r) {
    if (batch_[r].wants_context) wanted_.push_back(static_cast<int32_t>(r));
  }
  stack_.Run(pool_, rows_, wanted_, kv_, x, timer_);
  const int64_t wanted = static_cast<int64_t>(wanted_.size());
  stack_.FinalNorm(pool_, wanted, x, x);
  for (int64_t r = 0; r < wanted; ++r) {
    float* out = contexts + r * width;
    std::memcpy(out, x + r * stride, width * sizeof(float));
    if (StoresBf16(arithmetic_)) {
      for (int64_t i = 0; i < width; ++i) out[i] = RoundToBf16(out[i]);
    }
  }
  batch_.clear();
  rows_.clear();
  Lap(timer_, StepTimer::kRows);
  return wanted;
}

}  // namespace blockserve
