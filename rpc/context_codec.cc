#include "rpc/context_codec.h"

#include <bit>
#include <cstdint>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace blockserve {

static_assert(std::endian::native == std::endian::little, "messages are little endian");

namespace {

uint16_t ToBfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  // The upper half of a NaN may be an infinity's: keep it a (quiet) NaN. Both are computed, since a
  // loop with a choice can be made of vectors, and one with a branch cannot.
  const uint32_t nan = (bits >> 16) | 0x0040u;
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

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
    for (size_t i = 0; i < values.size(); ++i) {
      const uint16_t half = ToBfloat16(values[i]);
      std::memcpy(out + i * sizeof(half), &half, sizeof(half));
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
  const char* in = bytes.data();
  for (float& value : values) {
    uint16_t half;
    std::memcpy(&half, in, sizeof(half));
    in += sizeof(half);
    value = std::bit_cast<float>(uint32_t{half} << 16);
  }
  return absl::OkStatus();
}

}  // namespace blockserve
