// JSON of files: of a model, and those that operators write. Stricter than nlohmann-json's own
// parser where a lenient reading would hide a broken file: a key that stands twice in an object is
// an error, and so is deep nesting, which no such file has.
#ifndef BLOCKSERVE_COMMON_JSON_H_
#define BLOCKSERVE_COMMON_JSON_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace blockserve {

// Deepest nesting of arrays and objects that ParseJson accepts.
inline constexpr int kMaxJsonDepth = 64;

// Parses `text` (UTF-8). Errors: INVALID_ARGUMENT with `source`, the file's name, in front unless
// it is empty, and where known the line and column.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view source);

// What kind of value this is, for messages: "a string", "an integer", …
absl::string_view JsonTypeName(const nlohmann::json& value);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_JSON_H_
