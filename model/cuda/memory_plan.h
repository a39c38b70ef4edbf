// What an engine will take of a device's memory, counted before anything is allocated: an engine
// that does not fit says at once what it needs.
#ifndef BLOCKSERVE_MODEL_CUDA_MEMORY_PLAN_H_
#define BLOCKSERVE_MODEL_CUDA_MEMORY_PLAN_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "kernels/cuda/element_type.h"
#include "kernels/cuda/kv_layout.h"
#include "model/checkpoint.h"
#include "model/config.h"

namespace blockserve {

// Bytes of device memory: what is allocated, to the byte, but for `graphs`.
struct MemoryPlan {
  int64_t weights = 0;      // matrices, tables, norms
  int64_t activations = 0;  // of all batches in flight, logits and copies in and out included
  int64_t kv = 0;           // the token decoder's; the block decoder's pages come later
  int64_t graphs = 0;       // captured graphs and what the libraries take, estimated

  int64_t total() const { return weights + activations + kv + graphs; }
  std::string Text() const;  // "3.21 GB (2.40 GB weights, 0.60 GB activations, …)"
};

// The page that a layer of the stack has for `page_blocks` positions.
cuda::KvLayout KvLayoutOf(const StackConfig& config, cuda::ElementType type, int32_t page_blocks);

// Of loading; AllocateKv counts what it takes. `graph_nodes`: kernels in all captured graphs
// together.
MemoryPlan PlanBlockEngine(const ModelConfig& config, cuda::ElementType type, int64_t max_rows,
                           int64_t graph_nodes);
// `lanes` batches in flight of `lane_rows` rows, logits for `head_rows` rows at a time.
MemoryPlan PlanTokenEngine(const ModelConfig& config, cuda::ElementType type, int64_t lanes,
                           int32_t lane_rows, int64_t head_rows, int64_t graph_nodes);

// RESOURCE_EXHAUSTED in one line: what `what` needs and what `device_name` has.
absl::Status CheckFits(const MemoryPlan& plan, const std::string& what,
                       const std::string& device_name, int64_t free_bytes);

// "3.21 GB", "14.0 MB".
std::string BytesText(int64_t bytes);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_CUDA_MEMORY_PLAN_H_
