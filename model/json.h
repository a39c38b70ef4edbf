// Reading of JSON files from a model folder. Stricter than nlohmann-json's own parser where a
// lenient reading would hide a broken file: a key that stands twice in an object is an error, and
// so is deep nesting, which no file of a model has.
#ifndef BLOCKSERVE_MODEL_JSON_H_
#define BLOCKSERVE_MODEL_JSON_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace blockserve {

// Deepest nesting of arrays and objects that ParseJson accepts.
inline constexpr int kMaxJsonDepth = 64;

// Parses `text` (UTF-8). Errors: INVALID_ARGUMENT with `source`, the file's name, in front, and the
// line and column.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view source);

// The whole of a regular file. Errors: NOT_FOUND when there is no such file, INVALID_ARGUMENT when
// it is no regular file or larger than `max_bytes`, INTERNAL when reading fails.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes);

// What kind of value this is, for messages: "a string", "an integer", …
absl::string_view JsonTypeName(const nlohmann::json& value);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_JSON_H_
