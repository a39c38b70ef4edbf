// A safetensors file of any bytes: an error or views that lie within it.
#include <cstddef>
#include <cstdint>

#include "model/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto views =
      blockserve::ParseSafetensors(absl::MakeConstSpan(data, size), "model.safetensors");
  if (!views.ok()) return 0;
  uint64_t total = 0;
  for (const auto& view : *views) {
    if (view.data.data() < data || view.data.data() + view.data.size() > data + size) {
      __builtin_trap();
    }
    const int64_t element_bytes = blockserve::DTypeBytes(view.dtype);
    if (element_bytes > 0 &&
        static_cast<uint64_t>(view.num_elements() * element_bytes) != view.data.size()) {
      __builtin_trap();
    }
    total += view.data.size();
  }
  if (total > size) __builtin_trap();
  return 0;
}
