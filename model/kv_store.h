// KV pages of a decoder stack.
#ifndef BLOCKSERVE_MODEL_KV_STORE_H_
#define BLOCKSERVE_MODEL_KV_STORE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/aligned_buffer.h"
#include "kernels/cpu/kv_layout.h"
#include "model/arithmetic.h"
#include "model/config.h"

namespace blockserve {

// [layers][pages] of KvLayout pages, in one allocation.
class KvStore {
 public:
  KvStore() = default;
  // Errors: RESOURCE_EXHAUSTED naming the bytes, INVALID_ARGUMENT for sizes that make no sense.
  static absl::StatusOr<KvStore> Allocate(const StackConfig& stack, Arithmetic arithmetic,
                                          int64_t num_pages, int32_t page_blocks);

  int64_t num_pages() const { return num_pages_; }
  const KvLayout& layout() const { return layout_; }
  uint8_t* layer(int32_t index) const {
    return data_.data() + index * num_pages_ * layout_.page_bytes();
  }
  void CopyPage(int32_t from, int32_t to);

 private:
  int32_t num_layers_ = 0;
  int64_t num_pages_ = 0;
  KvLayout layout_;
  AlignedBuffer data_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_KV_STORE_H_
