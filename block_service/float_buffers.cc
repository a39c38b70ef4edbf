#include "block_service/float_buffers.h"

#include <utility>
#include <vector>

#include "common/mutex.h"

namespace blockserve {

struct FloatBuffers::Spare {
  struct Buffer {
    std::unique_ptr<float[]> values;
    size_t size = 0;
  };
  Mutex mutex;
  std::vector<Buffer> buffers ABSL_GUARDED_BY(mutex);
};

FloatBuffers::FloatBuffers() : spare_(std::make_shared<Spare>()) {}

std::shared_ptr<float[]> FloatBuffers::Take(size_t size) {
  Spare::Buffer buffer;
  {
    MutexLock lock(&spare_->mutex);
    if (!spare_->buffers.empty()) {
      // The latest: what is left of it in the caches is overwritten there.
      buffer = std::move(spare_->buffers.back());
      spare_->buffers.pop_back();
    }
  }
  // One that is too small is replaced: there are never more of them than were used at a time.
  if (buffer.size < size || buffer.values == nullptr) {
    buffer.values.reset();
    buffer.values.reset(new float[size]);
    buffer.size = size;
  }
  float* const values = buffer.values.release();
  return std::shared_ptr<float[]>(values, [spare = spare_, full = buffer.size](float* values) {
    MutexLock lock(&spare->mutex);
    spare->buffers.push_back({std::unique_ptr<float[]>(values), full});
  });
}

}  // namespace blockserve
