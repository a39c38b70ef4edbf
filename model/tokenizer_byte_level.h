// The "ByteLevel" stage: the alphabet that writes each byte as a printable character, and the
// cutting of text into words by GPT-2's pattern.
#ifndef BLOCKSERVE_MODEL_TOKENIZER_BYTE_LEVEL_H_
#define BLOCKSERVE_MODEL_TOKENIZER_BYTE_LEVEL_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace blockserve {

// The character that stands for each byte in vocabulary and merges, in UTF-8.
const std::array<std::string, 256>& ByteAlphabet();

// The bytes that `token` stands for; false when it holds a character that is not of the alphabet.
bool ReadAlphabet(absl::string_view token, std::string& bytes);

// The same as a decoder reads it: a token with any character outside of
// the alphabet (an added token with spaces, say) stands for its own UTF-8 bytes.
std::string BytesOfToken(absl::string_view token);

// Cuts text into words. Thread-safe.
class WordSplitter {
 public:
  // Errors: INTERNAL when the pattern library refuses.
  static absl::StatusOr<WordSplitter> Create();
  WordSplitter(WordSplitter&&) noexcept;
  WordSplitter& operator=(WordSplitter&&) noexcept;
  ~WordSplitter();

  // Calls `word` with each word of `text` (well-formed UTF-8) in order; together they are the text.
  // Stops at the first error of `word` and returns it.
  absl::Status Split(absl::string_view text,
                     absl::FunctionRef<absl::Status(absl::string_view)> word) const;

 private:
  struct Pattern;
  explicit WordSplitter(std::unique_ptr<Pattern> pattern);
  std::unique_ptr<Pattern> pattern_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_TOKENIZER_BYTE_LEVEL_H_
