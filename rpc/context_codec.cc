#include "rpc/context_codec.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "common/bf16.h"

namespace blockserve {

static_assert(std::endian::native == std::endian::little, "messages are little endian");

namespace {

// Values of messages may lie anywhere: they are copied to where 16-bit numbers can be.
constexpr size_t kGroup = 64;

}  // namespace

size_t ContextValueBytes(v1::ContextType type) {
  switch (type) {
    case v1::CONTEXT_TYPE_FLOAT32:
      return 4;
    case v1::CONTEXT_TYPE_BFLOAT16:
      return 2;
    default:
      return 0;
  }
}

void AppendContexts(absl::Span<const float> values, v1::ContextType type, std::string& bytes) {
  const size_t begin = bytes.size();
  bytes.resize(begin + values.size() * ContextValueBytes(type));
  char* out = bytes.data() + begin;
  if (type == v1::CONTEXT_TYPE_FLOAT32) {
    if (!values.empty()) std::memcpy(out, values.data(), values.size() * sizeof(float));
  } else if (type == v1::CONTEXT_TYPE_BFLOAT16) {
    uint16_t group[kGroup];
    for (size_t i = 0; i < values.size(); i += kGroup) {
      const size_t count = std::min(kGroup, values.size() - i);
      Bf16FromFloats(values.data() + i, static_cast<int64_t>(count), group);
      std::memcpy(out + i * sizeof(uint16_t), group, count * sizeof(uint16_t));
    }
  }
}

absl::Status DecodeContexts(absl::string_view bytes, v1::ContextType type,
                            absl::Span<float> values) {
  const size_t value_bytes = ContextValueBytes(type);
  if (value_bytes == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("context_type is ", static_cast<int>(type), ", which is not known"));
  }
  if (bytes.size() != values.size() * value_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("contexts holds ", bytes.size(),
                                                   " bytes, expected ", values.size(),
                                                   " values of ", value_bytes, " bytes"));
  }
  if (type == v1::CONTEXT_TYPE_FLOAT32) {
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return absl::OkStatus();
  }
  uint16_t group[kGroup];
  for (size_t i = 0; i < values.size(); i += kGroup) {
    const size_t count = std::min(kGroup, values.size() - i);
    std::memcpy(group, bytes.data() + i * sizeof(uint16_t), count * sizeof(uint16_t));
    FloatsFromBf16(group, static_cast<int64_t>(count), values.data() + i);
  }
  return absl::OkStatus();
}

}  // namespace blockserve
