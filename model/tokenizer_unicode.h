// UTF-8 and the character properties that tokenizing needs.
#ifndef BLOCKSERVE_MODEL_TOKENIZER_UNICODE_H_
#define BLOCKSERVE_MODEL_TOKENIZER_UNICODE_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

// What stands at the front of a byte string.
struct Utf8Step {
  enum class Kind {
    kCharacter,   // a whole character
    kInvalid,     // bytes that begin no character
    kIncomplete,  // the string ends inside a character
  };
  Kind kind = Kind::kInvalid;
  size_t size = 0;         // bytes of the character, or of the longest prefix of one (at least 1)
  char32_t character = 0;  // for kCharacter
};

// `text` must not be empty. Well-formed UTF-8 only (Unicode table 3-7): no surrogates, no overlong
// forms, nothing above U+10FFFF.
Utf8Step NextCharacter(absl::string_view text);

void AppendUtf8(char32_t character, std::string& out);

// Offset of the first byte that is not part of well-formed UTF-8, or npos.
size_t FindInvalidUtf8(absl::string_view text);

// Moves whole characters from the front of `bytes` to `out`, with U+FFFD for each invalid step, and
// leaves an incomplete character at the end in `bytes`.
void TakeCharacters(std::string& bytes, std::string& out);

// U+FFFD in UTF-8.
inline constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";

// Unicode normalization form C of well-formed `text`, in time n log n also for endless runs of
// combining marks. With Unicode 15's tables; Hugging Face's are those of Unicode 9, so that marks
// which are newer than that keep their place there and are put in canonical order here.
std::string NormalizeNfc(absl::string_view text);

// Property White_Space: \s of Hugging Face's regular expressions.
bool IsWhiteSpace(char32_t character);
// \w of Hugging Face's: alphabetic, mark, decimal digit, connector or joiner.
bool IsWordCharacter(char32_t character);

// The last character of well-formed `text`, which must not be empty, and its bytes.
Utf8Step LastCharacter(absl::string_view text);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_TOKENIZER_UNICODE_H_
