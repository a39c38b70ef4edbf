#include "kernels/aligned_buffer.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <cstdint>

namespace blockserve {
namespace {

// Where the system has larger pages, whole ones are a multiple of these.
constexpr size_t kPageBytes = size_t{1} << 16;
constexpr size_t kHugePageBytes = size_t{2} << 20;

size_t WholePages(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

}  // namespace

AlignedBuffer::AlignedBuffer(size_t size_bytes) {
  if (size_bytes == 0) return;
  // Weights are streamed: with 4 KiB pages every second load from memory misses the TLB. Huge pages
  // begin at their multiples, so more is mapped, and the ends given back.
  const bool huge = size_bytes >= kHugePageBytes;
  const size_t kept = WholePages(size_bytes);
  const size_t mapped_bytes = kept + (huge ? kHugePageBytes : 0);
  void* address =
      mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) return;
  uint8_t* begin = static_cast<uint8_t*>(address);
  if (huge) {
    const size_t past = reinterpret_cast<uintptr_t>(begin) % kHugePageBytes;
    const size_t before = past == 0 ? 0 : kHugePageBytes - past;
    if (before > 0) munmap(begin, before);
    begin += before;
    munmap(begin + kept, mapped_bytes - before - kept);
    madvise(begin, kept, MADV_HUGEPAGE);
  }
  data_ = begin;
  size_bytes_ = size_bytes;
  // In builds with ASan, which knows nothing of mapped pages; nothing elsewhere.
  ASAN_POISON_MEMORY_REGION(data_ + size_bytes, kept - size_bytes);
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ == nullptr) return;
  const size_t kept = WholePages(size_bytes_);
  ASAN_UNPOISON_MEMORY_REGION(data_ + size_bytes_, kept - size_bytes_);
  munmap(data_, kept);
}

}  // namespace blockserve
