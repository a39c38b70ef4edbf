#include "kernels/aligned_buffer.h"

#include <sys/mman.h>

namespace blockserve {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

}  // namespace

AlignedBuffer::AlignedBuffer(size_t size_bytes) {
  if (size_bytes == 0) return;
  void* address =
      mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return;
  // Weights are streamed: with 4 KiB pages every second load from memory misses the TLB.
  if (size_bytes >= kHugePageBytes) madvise(address, size_bytes, MADV_HUGEPAGE);
  data_ = static_cast<uint8_t*>(address);
  size_bytes_ = size_bytes;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) munmap(data_, size_bytes_);
}

}  // namespace blockserve
