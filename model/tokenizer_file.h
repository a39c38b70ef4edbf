// Hugging Face's tokenizer.json, read and checked: the parts of it that make a byte-level BPE
// tokenizer, and a refusal by name of every part that would change ids or text and is not computed
// here.
#ifndef BLOCKSERVE_MODEL_TOKENIZER_FILE_H_
#define BLOCKSERVE_MODEL_TOKENIZER_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

inline constexpr char kTokenizerFileName[] = "tokenizer.json";
inline constexpr int64_t kMaxTokenizerFileBytes = int64_t{256} << 20;
// Ids lie below this: a bound on the memory that a broken file can ask for.
inline constexpr int32_t kMaxTokenizerIds = 1 << 22;

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;      // left out of text by skip_special
  bool normalized = false;   // looked for in normalized text rather than in the text as given
  bool lstrip = false;       // takes the white space on its left with it
  bool rstrip = false;       // the same on its right
  bool single_word = false;  // only where no word character touches it
};

struct MergeRule {
  int32_t left = 0;
  int32_t right = 0;
  int32_t merged = 0;
};

struct TokenizerSpec {
  // The vocabulary by id, in the byte-level alphabet (a printable character per byte). Ids that
  // name no token of it are empty. Without the added tokens that are not part of it.
  std::vector<std::string> tokens;
  std::vector<MergeRule> merges;         // best first
  std::vector<AddedToken> added_tokens;  // a content that is in `tokens` has its id
  bool normalize_nfc = false;
  bool add_prefix_space = false;
  bool split_words = true;     // "use_regex": GPT-2's pattern
  bool ignore_merges = false;  // a word that is in the vocabulary is not taken apart
};

// Errors: INVALID_ARGUMENT with `source`, the file's name, in front, naming the field. Settings
// that do not bear on Encode and Decode (truncation, padding, the post-processor's special tokens)
// are not read.
absl::StatusOr<TokenizerSpec> ParseTokenizerFile(absl::string_view json, absl::string_view source);

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_TOKENIZER_FILE_H_
