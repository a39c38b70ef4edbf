// Element types of device buffers, and the padding that all of them share.
#ifndef BLOCKSERVE_KERNELS_CUDA_ELEMENT_TYPE_H_
#define BLOCKSERVE_KERNELS_CUDA_ELEMENT_TYPE_H_

#include <cstdint>

namespace blockserve::cuda {

// What weights, keys, values and the inputs of products are stored as. Arithmetic is float32.
enum class ElementType { kF32, kBf16 };

inline int64_t ElementBytes(ElementType type) { return type == ElementType::kF32 ? 4 : 2; }

// Rows of activations and weights are padded to a multiple of so many elements. Padding of a weight
// or bias is zero; that of an activation is zero too, except where a kernel's contract allows other
// values.
inline constexpr int64_t kElementPadding = 16;
inline int64_t PadElements(int64_t count) {
  return (count + kElementPadding - 1) / kElementPadding * kElementPadding;
}

}  // namespace blockserve::cuda

#endif  // BLOCKSERVE_KERNELS_CUDA_ELEMENT_TYPE_H_
