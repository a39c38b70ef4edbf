#include "model/cuda/memory_plan.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/matmul.h"

namespace blockserve {
namespace {

using cuda::ElementBytes;
using cuda::PadElements;
using cuda::PadRows;

// What a kernel takes in a captured graph, with room to spare, and the workspaces of the libraries.
constexpr int64_t kGraphNodeBytes = 4096;
constexpr int64_t kLibraryBytes = int64_t{64} << 20;
// In the estimate's favour: one allocation of the device is a whole number of these.
constexpr int64_t kAllocation = int64_t{2} << 20;

int64_t Matrix(int64_t n, int64_t k, cuda::ElementType type) {
  return PadElements(n) * (PadElements(k) * ElementBytes(type) + ElementBytes(type));
}

int64_t StackWeights(const StackConfig& config, cuda::ElementType type) {
  const int64_t width = config.hidden_size;
  const int64_t inner = config.intermediate_size;
  const int64_t layer = Matrix(3 * width, width, type) + Matrix(width, width, type) +
                        Matrix(inner, width, type) + Matrix(width, inner, type) +
                        4 * PadElements(width) * 4;
  return config.num_layers * layer + 2 * PadElements(width) * 4;
}

}  // namespace

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

int64_t StackActivationBytes(const StackConfig& config, cuda::ElementType type, int64_t rows,
                             int64_t wanted, bool paged) {
  const int64_t width = PadElements(config.hidden_size);
  const int64_t element = ElementBytes(type);
  // The residual stream is float; norms for both branches, and attention's output.
  const int64_t row = width * (4 + 3 * element) +
                      PadElements(3 * int64_t{config.hidden_size}) * element +
                      PadElements(config.intermediate_size) * element;
  const int64_t wanted_row = width * (4 + 2 * element);
  const int64_t query_row =
      paged ? config.num_heads * ((config.head_size() + 7) / 8 * 8) * int64_t{4} : 0;
  return PadRows(rows) * (row + query_row) + PadRows(wanted) * wanted_row;
}

MemoryPlan PlanBlockEngine(const ModelConfig& config, cuda::ElementType type, int64_t max_rows,
                           int64_t graph_nodes) {
  MemoryPlan plan;
  const int64_t width = config.block.hidden_size;
  plan.weights = StackWeights(config.block, type) + int64_t{config.vocab_size} *
                                                        PadElements(config.embedding_width) *
                                                        ElementBytes(type);
  const int64_t gathered = int64_t{config.embedding_width} * config.block_length;
  plan.activations = StackActivationBytes(config.block, type, max_rows, max_rows, true);
  // Tokens, positions and wanted rows in, contexts out, of two batches in flight.
  plan.activations +=
      2 * max_rows *
      (4 * int64_t{config.block_length} + 12 + PadElements(width) * ElementBytes(type));
  if (config.projection == Projection::kProjectionLayer) {
    plan.weights += Matrix(width, gathered, type);
    plan.activations += PadRows(max_rows) * PadElements(gathered) * ElementBytes(type);
  }
  plan.graphs = kLibraryBytes + graph_nodes * kGraphNodeBytes;
  plan.weights = (plan.weights + kAllocation - 1) / kAllocation * kAllocation;
  return plan;
}

MemoryPlan PlanTokenEngine(const ModelConfig& config, cuda::ElementType type, int64_t lanes,
                           int64_t lane_rows, int64_t head_rows, int64_t graph_nodes) {
  MemoryPlan plan;
  const int64_t width = config.token.hidden_size;
  const int64_t vocab = config.vocab_size;
  plan.weights = Matrix(vocab, width, type);
  int64_t lane = PadRows(head_rows) * PadElements(vocab) * 4 +
                 PadRows(lane_rows) * PadElements(config.block.hidden_size) * ElementBytes(type);
  if (config.strategy != DecodingStrategy::kHeadOnly) {
    const int64_t vectors = config.expansion_ratio * PadElements(width);
    plan.weights += StackWeights(config.token, type) +
                    Matrix(vectors, config.block.hidden_size, type) +
                    vocab * PadElements(width) * ElementBytes(type);
    const bool prefix = config.strategy == DecodingStrategy::kPrefix;
    const int64_t lead = prefix ? config.expansion_ratio : 1;
    lane += PadRows(lane_rows) * vectors * 4 +
            StackActivationBytes(config.token, type, lane_rows * lead, lane_rows, false);
    const int64_t positions = lead + config.block_length - 1;
    plan.kv = lanes * lane_rows * positions * config.token.num_layers * 2 * config.token.num_heads *
              ((config.token.head_size() + 7) / 8 * 8) * ElementBytes(type);
  }
  plan.activations = lanes * lane;
  plan.graphs = kLibraryBytes + graph_nodes * kGraphNodeBytes;
  plan.weights = (plan.weights + kAllocation - 1) / kAllocation * kAllocation;
  return plan;
}

absl::Status CheckFits(const MemoryPlan& plan, const std::string& what,
                       const std::string& device_name, int64_t free_bytes) {
  if (plan.total() <= free_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(device_name, " has ", BytesText(free_bytes),
                                                   " free; ", what, " needs ", plan.Text()));
}

}  // namespace blockserve
