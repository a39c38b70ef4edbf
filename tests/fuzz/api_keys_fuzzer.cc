// A file of API keys and a key, of any bytes: the first line is the key.
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "gateway/api_keys.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\n');
  if (end == absl::string_view::npos) return 0;
  const auto table = blockserve::ApiKeyTable::Parse(input.substr(end + 1));
  if (!table.ok()) return 0;
  // Nobody finds a preimage of SHA-256.
  if (table->Find(input.substr(0, end)).ok()) __builtin_trap();
  return 0;
}
