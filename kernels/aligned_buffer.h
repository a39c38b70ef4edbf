// Memory for weights, KV and activations: page-aligned, zeroed, on huge pages where the system
// gives them.
#ifndef BLOCKSERVE_KERNELS_ALIGNED_BUFFER_H_
#define BLOCKSERVE_KERNELS_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <utility>

namespace blockserve {

class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  // Zeroed; physical memory is taken when it is touched. On failure data() is nullptr.
  explicit AlignedBuffer(size_t size_bytes);
  AlignedBuffer(AlignedBuffer&& other) noexcept { *this = std::move(other); }
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_bytes_, other.size_bytes_);
    return *this;
  }
  ~AlignedBuffer();

  size_t size_bytes() const { return size_bytes_; }
  uint8_t* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  uint8_t* data_ = nullptr;
  size_t size_bytes_ = 0;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_KERNELS_ALIGNED_BUFFER_H_
