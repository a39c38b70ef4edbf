// tokenizer.json of any bytes: an error or a tokenizer that encodes and decodes.
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view json(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = blockserve::Tokenizer::Parse(json, "tokenizer.json");
  if (!tokenizer.ok()) return 0;
  for (const absl::string_view text : {"ab abc  bc<s>", "e\xCC\x81\xC3\xA9 \xF0\x9F\x99\x82"}) {
    const auto ids = (*tokenizer)->Encode(text);
    if (ids.ok() && !(*tokenizer)->Decode(*ids, false).ok()) __builtin_trap();
  }
  return 0;
}
