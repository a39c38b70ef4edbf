// Is a string what protobuf, JSON and the tokenizer take for text?
#ifndef BLOCKSERVE_COMMON_UTF8_H_
#define BLOCKSERVE_COMMON_UTF8_H_

#include "absl/strings/string_view.h"

namespace blockserve {

// Well-formed UTF-8 as Unicode defines it (table 3-7): no overlong forms, no surrogates, nothing
// above U+10FFFF.
bool IsValidUtf8(absl::string_view text);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_UTF8_H_
