#include "model/tokenizer_unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

namespace blockserve {
namespace {

uint8_t ByteAt(absl::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

// Characters below this are their own composed form and combine with nothing before them.
constexpr char32_t kFirstThatMayChange = 0x300;

// A vowel that stands right before the trailing consonants of Hangul. utf8proc takes it for one of
// them and loses it after a syllable. It composes with nothing before it.
constexpr utf8proc_int32_t kLastBeforeTrailingConsonants = 0x11A7;

bool MayChangeUnderNfc(absl::string_view text) {
  // The lead byte of U+0300 is 0xCC; smaller lead bytes begin smaller characters.
  return std::any_of(text.begin(), text.end(),
                     [](char byte) { return static_cast<uint8_t>(byte) >= 0xCC; });
}

int CombiningClass(utf8proc_int32_t character) {
  if (character < static_cast<utf8proc_int32_t>(kFirstThatMayChange)) return 0;
  return utf8proc_get_property(character)->combining_class;
}

// Canonical ordering. utf8proc's own sorts by exchanging neighbours, which takes quadratic time on
// long runs of marks.
void OrderMarks(std::vector<utf8proc_int32_t>& characters) {
  auto begin = characters.begin();
  while (begin != characters.end()) {
    if (CombiningClass(*begin) == 0) {
      ++begin;
      continue;
    }
    const auto end = std::find_if(begin, characters.end(), [](utf8proc_int32_t character) {
      return CombiningClass(character) == 0;
    });
    std::stable_sort(begin, end, [](utf8proc_int32_t a, utf8proc_int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    begin = end;
  }
}

}  // namespace

Utf8Step NextCharacter(absl::string_view text) {
  const uint8_t lead = ByteAt(text, 0);
  if (lead < 0x80) return {Utf8Step::Kind::kCharacter, 1, lead};
  size_t size = 0;
  char32_t character = 0;
  // The second byte's range is narrower than the later ones' after some leads.
  uint8_t low = 0x80;
  uint8_t high = 0xBF;
  if (lead >= 0xC2 && lead <= 0xDF) {
    size = 2;
    character = lead & 0x1F;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    size = 3;
    character = lead & 0x0F;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    size = 4;
    character = lead & 0x07;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  } else {
    return {Utf8Step::Kind::kInvalid, 1, 0};
  }
  for (size_t i = 1; i < size; ++i) {
    if (i == text.size()) return {Utf8Step::Kind::kIncomplete, i, 0};
    const uint8_t byte = ByteAt(text, i);
    if (byte < low || byte > high) return {Utf8Step::Kind::kInvalid, i, 0};
    low = 0x80;
    high = 0xBF;
    character = (character << 6) | (byte & 0x3F);
  }
  return {Utf8Step::Kind::kCharacter, size, character};
}

void AppendUtf8(char32_t character, std::string& out) {
  if (character < 0x80) {
    out.push_back(static_cast<char>(character));
  } else if (character < 0x800) {
    out.push_back(static_cast<char>(0xC0 | (character >> 6)));
    out.push_back(static_cast<char>(0x80 | (character & 0x3F)));
  } else if (character < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | (character >> 12)));
    out.push_back(static_cast<char>(0x80 | ((character >> 6) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (character & 0x3F)));
  } else {
    out.push_back(static_cast<char>(0xF0 | (character >> 18)));
    out.push_back(static_cast<char>(0x80 | ((character >> 12) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | ((character >> 6) & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (character & 0x3F)));
  }
}

size_t FindInvalidUtf8(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = NextCharacter(text.substr(at));
    if (step.kind != Utf8Step::Kind::kCharacter) return at;
    at += step.size;
  }
  return absl::string_view::npos;
}

void TakeCharacters(std::string& bytes, std::string& out) {
  absl::string_view rest = bytes;
  while (!rest.empty()) {
    const Utf8Step step = NextCharacter(rest);
    if (step.kind == Utf8Step::Kind::kIncomplete) break;
    const absl::string_view piece =
        step.kind == Utf8Step::Kind::kCharacter ? rest.substr(0, step.size) : kReplacement;
    out.append(piece.data(), piece.size());
    rest.remove_prefix(step.size);
  }
  bytes.erase(0, bytes.size() - rest.size());
}

std::string NormalizeNfc(absl::string_view text) {
  if (!MayChangeUnderNfc(text)) return std::string(text);
  constexpr auto kOptions = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  while (!text.empty()) {
    const Utf8Step step = NextCharacter(text);
    text.remove_prefix(step.size);
    if (step.character < 0xC0) {  // nothing below decomposes
      characters.push_back(static_cast<utf8proc_int32_t>(step.character));
      continue;
    }
    // No canonical decomposition is longer than 4 characters.
    utf8proc_int32_t decomposed[32];
    int last_boundclass = UTF8PROC_BOUNDCLASS_START;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        static_cast<utf8proc_int32_t>(step.character), decomposed, 32, kOptions, &last_boundclass);
    if (count < 0 || count > 32) {
      characters.push_back(static_cast<utf8proc_int32_t>(step.character));
      continue;
    }
    characters.insert(characters.end(), decomposed, decomposed + count);
  }
  OrderMarks(characters);
  std::string normalized;
  normalized.reserve(characters.size());
  for (auto begin = characters.begin(); begin != characters.end();) {
    const auto end = std::find(begin + 1, characters.end(), kLastBeforeTrailingConsonants);
    const utf8proc_ssize_t count = utf8proc_normalize_utf32(&*begin, end - begin, kOptions);
    for (utf8proc_ssize_t i = 0; i < count; ++i) {
      AppendUtf8(static_cast<char32_t>(begin[i]), normalized);
    }
    begin = end;
  }
  return normalized;
}

bool IsWhiteSpace(char32_t character) {
  return (character >= 0x09 && character <= 0x0D) || character == 0x20 || character == 0x85 ||
         character == 0xA0 || character == 0x1680 || (character >= 0x2000 && character <= 0x200A) ||
         character == 0x2028 || character == 0x2029 || character == 0x202F || character == 0x205F ||
         character == 0x3000;
}

bool IsWordCharacter(char32_t character) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(character))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      break;
  }
  // Joiners, and the letters in circles and squares: symbols by category, alphabetic by property.
  return character == 0x200C || character == 0x200D ||
         (character >= 0x24B6 && character <= 0x24E9) ||
         (character >= 0x1F130 && character <= 0x1F149) ||
         (character >= 0x1F150 && character <= 0x1F169) ||
         (character >= 0x1F170 && character <= 0x1F189);
}

Utf8Step LastCharacter(absl::string_view text) {
  size_t begin = text.size() - 1;
  while (begin > 0 && (ByteAt(text, begin) & 0xC0) == 0x80) --begin;
  return NextCharacter(text.substr(begin));
}

}  // namespace blockserve
