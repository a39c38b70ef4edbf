// Buffers for the results of steps: large, all of about one size, and given back by another thread.
#ifndef BLOCKSERVE_BLOCK_SERVICE_FLOAT_BUFFERS_H_
#define BLOCKSERVE_BLOCK_SERVICE_FLOAT_BUFFERS_H_

#include <cstddef>
#include <memory>

namespace blockserve {

// Thread-safe.
class FloatBuffers {
 public:
  FloatBuffers();

  // At least `size` values, which are not set to anything. The memory is used again when the last
  // owner lets go of it; that may be later than the end of this object.
  std::shared_ptr<float[]> Take(size_t size);

 private:
  struct Spare;
  const std::shared_ptr<Spare> spare_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_FLOAT_BUFFERS_H_
