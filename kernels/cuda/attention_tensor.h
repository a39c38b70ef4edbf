// BlockAttention on tensor cores.
#ifndef BLOCKSERVE_KERNELS_CUDA_ATTENTION_TENSOR_H_
#define BLOCKSERVE_KERNELS_CUDA_ATTENTION_TENSOR_H_

#include "absl/status/status.h"
#include "kernels/cuda/attention.h"

namespace blockserve::cuda {

// Whether BlockAttention of such keys and values runs on tensor cores: the same for all rows of a
// model, whose bits it decides.
bool HasTensorAttention(const KvLayout& layout);

// Of arguments that BlockAttention has checked, for at least one row.
absl::Status TensorAttention(const BlockAttentionArgs& args, StreamHandle stream);

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_ATTENTION_TENSOR_H_
