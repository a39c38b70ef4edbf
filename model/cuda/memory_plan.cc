#include "model/cuda/memory_plan.h"

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/matmul.h"
#include "model/cuda/token_batch.h"

namespace blockserve {
namespace {

using cuda::ElementBytes;
using cuda::PadElements;
using cuda::PadRows;

constexpr cuda::ElementType kF32 = cuda::ElementType::kF32;
// What a kernel takes in a captured graph, with room to spare, and the workspaces of the libraries.
constexpr int64_t kGraphNodeBytes = 4096;
constexpr int64_t kLibraryBytes = int64_t{64} << 20;

int64_t Matrix(int64_t n, int64_t k, cuda::ElementType type,
               std::optional<cuda::ElementType> bias = std::nullopt) {
  return PadElements(n) * (PadElements(k) * ElementBytes(type) + (bias ? ElementBytes(*bias) : 0));
}

int64_t Table(int64_t rows, int64_t width, cuda::ElementType type) {
  return rows * PadElements(width) * ElementBytes(type);
}

int64_t LayerNorm(int64_t width) { return 2 * PadElements(width) * ElementBytes(kF32); }

int64_t StackWeights(const StackConfig& config, cuda::ElementType type) {
  const int64_t width = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t layer = 2 * LayerNorm(width) + Matrix(3 * width, width, type, type) +
                        Matrix(width, width, type, kF32) + Matrix(inner, width, type, type) +
                        Matrix(width, inner, type, kF32);
  return config.num_layers * layer + LayerNorm(width);
}

// For batches of `rows` positions, of which at most `wanted` go on after the last layer.
int64_t StackActivationBytes(const StackConfig& config, cuda::ElementType type, int64_t rows,
                             int64_t wanted) {
  const int64_t width = PadElements(config.hidden_size);
  const int64_t element = ElementBytes(type);
  // The residual stream is float; norms for both branches, and attention's output.
  const int64_t row = width * (ElementBytes(kF32) + 3 * element) +
                      PadElements(3 * int64_t{config.hidden_size}) * element +
                      PadElements(config.intermediate_size) * element;
  const int64_t wanted_row = width * (ElementBytes(kF32) + 2 * element);
  return PadRows(rows) * row + PadRows(wanted) * wanted_row;
}

}  // namespace

cuda::KvLayout KvLayoutOf(const StackConfig& config, cuda::ElementType type, int32_t page_blocks) {
  cuda::KvLayout layout;
  layout.num_heads = config.num_heads;
  layout.head_size = config.head_size();
  layout.page_blocks = page_blocks;
  layout.type = type;
  return layout;
}

std::string BytesText(int64_t bytes) {
  const double value = static_cast<double>(bytes);
  return bytes >= 1'000'000'000 ? absl::StrFormat("%.2f GB", value / 1e9)
                                : absl::StrFormat("%.1f MB", value / 1e6);
}

std::string MemoryPlan::Text() const {
  std::string text = absl::StrCat(BytesText(total()), " (", BytesText(weights), " of weights, ",
                                  BytesText(activations), " of activations");
  if (kv > 0) absl::StrAppend(&text, ", ", BytesText(kv), " of KV");
  return absl::StrCat(text, ", about ", BytesText(graphs), " of graphs and libraries)");
}

MemoryPlan PlanBlockEngine(const ModelConfig& config, cuda::ElementType type, int64_t max_rows,
                           int64_t graph_nodes) {
  MemoryPlan plan;
  const int64_t queries =
      config.block.num_heads * KvLayoutOf(config.block, type, 1).head_stride() * ElementBytes(kF32);
  plan.weights =
      StackWeights(config.block, type) + Table(config.vocab_size, config.embedding_width, type);
  plan.activations =
      StackActivationBytes(config.block, type, max_rows, max_rows) + PadRows(max_rows) * queries;
  if (config.projection == Projection::kProjectionLayer) {
    const int64_t gathered = int64_t{config.embedding_width} * config.block_length;
    plan.weights += Matrix(config.block.hidden_size, gathered, type, kF32);
    plan.activations += Table(PadRows(max_rows), gathered, type);
  }
  plan.graphs = kLibraryBytes + graph_nodes * kGraphNodeBytes;
  return plan;
}

MemoryPlan PlanTokenEngine(const ModelConfig& config, cuda::ElementType type, int64_t lanes,
                           int32_t lane_rows, int64_t head_rows, int64_t graph_nodes) {
  MemoryPlan plan;
  const int64_t width = config.token.hidden_size;
  const int64_t vocab = config.vocab_size;
  const int64_t context_width = config.block.hidden_size;
  plan.weights = Matrix(vocab, width, type);
  const int64_t lists = TokenListCapacity(config, lane_rows);
  const int64_t tops = int64_t{lane_rows} * config.block_length *
                       std::min<int64_t>(kMaxTopLogprobs, vocab);  // ids, and their values
  int64_t lane = TokenIoLayout(config, type, lane_rows).end +
                 Table(cuda::kMatmulRowTile, context_width, type) + lists +
                 TokenSavedFloats(config, lane_rows, lists) * 4 + 2 * tops * 4 +
                 Table(PadRows(head_rows), vocab, kF32);
  if (config.strategy != DecodingStrategy::kHeadOnly) {
    const int64_t vectors = config.expansion_ratio * PadElements(width);
    const int32_t lead = config.strategy == DecodingStrategy::kPrefix ? config.expansion_ratio : 1;
    const int32_t positions = lead + config.block_length - 1;
    const int64_t rotary =
        std::max<int64_t>(int64_t{positions} * config.token.rotary_dims() / 2 * 4, 16);
    plan.weights += StackWeights(config.token, type) + Matrix(vectors, context_width, type, kF32) +
                    Table(vocab, width, type) + 2 * rotary + int64_t{lane_rows} * 4;
    lane += Table(PadRows(lane_rows), vectors, kF32) +
            StackActivationBytes(config.token, type, int64_t{lane_rows} * lead, lane_rows);
    plan.kv = lanes * lane_rows * config.token.num_layers *
              KvLayoutOf(config.token, type, positions).page_bytes();
  }
  plan.activations = lanes * lane;
  plan.graphs = kLibraryBytes + graph_nodes * kGraphNodeBytes;
  return plan;
}

absl::Status CheckFits(const MemoryPlan& plan, const std::string& what,
                       const std::string& device_name, int64_t free_bytes) {
  if (plan.total() <= free_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(device_name, " has ", BytesText(free_bytes),
                                                   " free; ", what, " needs ", plan.Text()));
}

}  // namespace blockserve
