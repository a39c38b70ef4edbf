#define PCRE2_CODE_UNIT_WIDTH 8

#include "model/tokenizer_byte_level.h"

#include <pcre2.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "model/tokenizer_unicode.h"

namespace blockserve {
namespace {

// White_Space is written out: PCRE2's \s also takes U+180E, which is no white space since
// Unicode 6.3, and a tokenizer must not depend on that.
#define BLOCKSERVE_SPACES                                                                          \
  "\\t-\\r\\x20\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{" \
  "3000}"
constexpr char kWordPattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d"
    "| ?\\p{L}+| ?\\p{N}+"
    "| ?[^" BLOCKSERVE_SPACES
    "\\p{L}\\p{N}]+"
    "|[" BLOCKSERVE_SPACES "]+(?![^" BLOCKSERVE_SPACES
    "])"
    "|[" BLOCKSERVE_SPACES "]+";
#undef BLOCKSERVE_SPACES

std::string PatternError(int code) {
  PCRE2_UCHAR message[160];
  pcre2_get_error_message(code, message, sizeof(message));
  return reinterpret_cast<const char*>(message);
}

struct MatchDataFree {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

// Character of the alphabet for each byte, as GPT-2's encoder defines them: printable Latin-1
// stands for itself, the other bytes for U+0100 onwards in order.
std::array<char32_t, 256> AlphabetCharacters() {
  std::array<char32_t, 256> characters;
  char32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    characters[static_cast<size_t>(byte)] = printable ? static_cast<char32_t>(byte) : next++;
  }
  return characters;
}

// Inverse of AlphabetCharacters over U+0000 to U+0143; -1 outside of the alphabet.
std::array<int16_t, 0x144> AlphabetBytes() {
  std::array<int16_t, 0x144> bytes;
  bytes.fill(-1);
  const std::array<char32_t, 256> characters = AlphabetCharacters();
  for (int16_t byte = 0; byte < 256; ++byte) bytes[characters[static_cast<size_t>(byte)]] = byte;
  return bytes;
}

}  // namespace

const std::array<std::string, 256>& ByteAlphabet() {
  static const std::array<std::string, 256>& kAlphabet = *[] {
    auto* alphabet = new std::array<std::string, 256>();
    const std::array<char32_t, 256> characters = AlphabetCharacters();
    for (size_t byte = 0; byte < 256; ++byte) AppendUtf8(characters[byte], (*alphabet)[byte]);
    return alphabet;
  }();
  return kAlphabet;
}

bool ReadAlphabet(absl::string_view token, std::string& bytes) {
  static const std::array<int16_t, 0x144> kBytes = AlphabetBytes();
  bytes.clear();
  while (!token.empty()) {
    const Utf8Step step = NextCharacter(token);
    if (step.kind != Utf8Step::Kind::kCharacter || step.character >= kBytes.size() ||
        kBytes[step.character] < 0) {
      return false;
    }
    bytes.push_back(static_cast<char>(kBytes[step.character]));
    token.remove_prefix(step.size);
  }
  return true;
}

std::string BytesOfToken(absl::string_view token) {
  std::string bytes;
  return ReadAlphabet(token, bytes) ? bytes : std::string(token);
}

struct WordSplitter::Pattern {
  pcre2_code* code = nullptr;
  bool jit = false;
  ~Pattern() { pcre2_code_free(code); }
};

WordSplitter::WordSplitter(std::unique_ptr<Pattern> pattern) : pattern_(std::move(pattern)) {}
WordSplitter::WordSplitter(WordSplitter&&) noexcept = default;
WordSplitter& WordSplitter::operator=(WordSplitter&&) noexcept = default;
WordSplitter::~WordSplitter() = default;

absl::StatusOr<WordSplitter> WordSplitter::Create() {
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto pattern = std::make_unique<Pattern>();
  pattern->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(kWordPattern), PCRE2_ZERO_TERMINATED,
                                PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
  if (pattern->code == nullptr) {
    return absl::InternalError(
        absl::StrCat("word pattern, at ", offset, ": ", PatternError(error)));
  }
  // Where the machine allows no generated code the interpreter does the same, slower.
  pattern->jit = pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE) == 0;
  return WordSplitter(std::move(pattern));
}

absl::Status WordSplitter::Split(absl::string_view text,
                                 absl::FunctionRef<absl::Status(absl::string_view)> word) const {
  const std::unique_ptr<pcre2_match_data, MatchDataFree> match(
      pcre2_match_data_create_from_pattern(pattern_->code, nullptr));
  if (match == nullptr) return absl::ResourceExhaustedError("no memory to cut text into words");
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match.get());
  for (size_t at = 0; at < text.size();) {
    const int found = pattern_->jit ? pcre2_jit_match(pattern_->code, subject, text.size(), at, 0,
                                                      match.get(), nullptr)
                                    : pcre2_match(pattern_->code, subject, text.size(), at,
                                                  PCRE2_NO_UTF_CHECK, match.get(), nullptr);
    if (found < 0) {
      return absl::InternalError(
          absl::StrCat("word pattern, at byte ", at, " of the text: ", PatternError(found)));
    }
    // Every character is of one of the pattern's classes, so that a match begins where the last
    // ended.
    if (bounds[0] != at || bounds[1] <= at) {
      return absl::InternalError(absl::StrCat("word pattern left a gap at byte ", at));
    }
    const absl::Status status = word(text.substr(at, bounds[1] - at));
    if (!status.ok()) return status;
    at = bounds[1];
  }
  return absl::OkStatus();
}

}  // namespace blockserve
