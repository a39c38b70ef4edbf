#include "model/kv_store.h"

#include <cstring>
#include <limits>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/memory_limit.h"

namespace blockserve {

absl::StatusOr<KvStore> KvStore::Allocate(const StackConfig& stack, Arithmetic arithmetic,
                                          int64_t num_pages, int32_t page_blocks) {
  if (num_pages < 1 || page_blocks < 1 || num_pages > std::numeric_limits<int32_t>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV of ", num_pages, " pages of ", page_blocks, " blocks"));
  }
  KvStore store;
  store.num_layers_ = stack.num_layers;
  store.num_pages_ = num_pages;
  store.layout_.num_heads = stack.num_heads;
  store.layout_.head_size = stack.head_size();
  store.layout_.page_blocks = page_blocks;
  store.layout_.bf16 = StoresBf16(arithmetic);
  const double bytes = static_cast<double>(store.num_layers_) * static_cast<double>(num_pages) *
                       static_cast<double>(store.layout_.page_bytes());
  const int64_t limit = MemoryLimitBytes();
  if (bytes <= static_cast<double>(limit)) {
    store.data_ = AlignedBuffer(store.num_layers_ * num_pages * store.layout_.page_bytes());
  }
  if (store.data_.data() == nullptr && bytes > 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for ", static_cast<int64_t>(bytes / (1 << 20)), " MiB of KV: ", num_pages,
        " pages of ", page_blocks, " blocks, where this process may have ", limit >> 20, " MiB"));
  }
  return store;
}

void KvStore::CopyPage(int32_t from, int32_t to) {
  const int64_t bytes = layout_.page_bytes();
  for (int32_t i = 0; i < num_layers_; ++i) {
    std::memcpy(layer(i) + to * bytes, layer(i) + from * bytes, bytes);
  }
}

}  // namespace blockserve
