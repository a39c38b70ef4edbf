// config.json of any bytes: an error or a configuration whose tensor list can be made.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/fingerprint.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const auto config = blockserve::ParseModelConfig(text, "config.json");
  if (!config.ok()) return 0;
  for (const auto& tensor : blockserve::RequiredTensors(*config)) {
    int64_t elements = 1;
    for (const int64_t dimension : tensor.shape) {
      // The bounds of config.cc exist so that this holds.
      if (dimension <= 0 || __builtin_mul_overflow(elements, dimension, &elements))
        __builtin_trap();
    }
  }
  blockserve::ConfigHash(*config);
  return 0;
}
