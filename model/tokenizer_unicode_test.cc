#include "model/tokenizer_unicode.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer_byte_level.h"

namespace blockserve {
namespace {

using ::testing::ElementsAre;

constexpr char kBad[] = "\xEF\xBF\xBD";

std::string Lossy(std::string bytes) {
  std::string text;
  TakeCharacters(bytes, text);
  return bytes.empty() ? text : text + kBad;
}

TEST(TakeCharacters, ReplacesEachLongestPrefixOfACharacter) {
  const std::string bad = kBad;
  EXPECT_EQ(Lossy("a\xC3\xA9z"), "a\xC3\xA9z");
  EXPECT_EQ(Lossy("\x80\x80"), bad + bad);
  EXPECT_EQ(Lossy("\xC0\x80"), bad + bad);                      // overlong
  EXPECT_EQ(Lossy("\xE0\x80\x80"), bad + bad + bad);            // overlong
  EXPECT_EQ(Lossy("\xED\xA0\x80"), bad + bad + bad);            // a surrogate
  EXPECT_EQ(Lossy("\xF4\x90\x80\x80"), bad + bad + bad + bad);  // above U+10FFFF
  EXPECT_EQ(Lossy("\xE2\x82z"), bad + "z");                     // one for the two bytes
  EXPECT_EQ(Lossy("\xF0\x9F\x99"), bad);                        // the same at the end
  EXPECT_EQ(Lossy("\xF0\x9F\xE2\x82\xAC"), bad + "\xE2\x82\xAC");
  EXPECT_EQ(Lossy("\xFF\xF4\x8F\xBF\xBF"), bad + "\xF4\x8F\xBF\xBF");
}

TEST(TakeCharacters, LeavesAnIncompleteCharacter) {
  std::string bytes = "ab\xF0\x9F\x99";
  std::string text;
  TakeCharacters(bytes, text);
  EXPECT_EQ(text, "ab");
  EXPECT_EQ(bytes, "\xF0\x9F\x99");
}

TEST(Utf8, GoesBothWaysForEveryCharacter) {
  for (char32_t character = 0; character < 0x110000; ++character) {
    if (character >= 0xD800 && character < 0xE000) continue;
    std::string bytes;
    AppendUtf8(character, bytes);
    const Utf8Step step = NextCharacter(bytes);
    ASSERT_EQ(step.kind, Utf8Step::Kind::kCharacter);
    ASSERT_EQ(step.size, bytes.size());
    ASSERT_EQ(step.character, character);
    ASSERT_EQ(LastCharacter("x" + bytes).character, character);
  }
}

TEST(NormalizeNfc, EqualsTheStandardsExamples) {
  const std::pair<const char*, const char*> cases[] = {
      {"plain", "plain"},
      {"e\xCC\x81", "\xC3\xA9"},                                 // e, acute
      {"\xE2\x84\xAB", "\xC3\x85"},                              // angstrom sign
      {"\xEF\xAC\x81", "\xEF\xAC\x81"},                          // the ligature fi stays
      {"\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"},              // excluded from composition
      {"\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", "\xED\x95\x9C"},  // Hangul
      // U+11A7 is no trailing consonant, though it stands right before them.
      {"\xEA\xB0\x80\xE1\x86\xA7", "\xEA\xB0\x80\xE1\x86\xA7"},
      {"\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA7\xE1\x86\xA7x",
       "\xEA\xB0\x80\xE1\x86\xA7\xE1\x86\xA7x"},
      {"\xE1\x86\xA7\xE1\x86\xA8", "\xE1\x86\xA7\xE1\x86\xA8"},
      {"s\xCC\x87\xCC\xA3", "\xE1\xB9\xA9"},  // marks in the other order
      {"a\xCC\xA3z\xCC\x81", "\xE1\xBA\xA1\xC5\xBA"},
      {"\xCC\x81", "\xCC\x81"},
  };
  for (const auto& [text, normalized] : cases) EXPECT_EQ(NormalizeNfc(text), normalized);
}

TEST(ByteAlphabet, GoesBothWays) {
  EXPECT_EQ(ByteAlphabet()[' '], "\xC4\xA0");
  EXPECT_EQ(ByteAlphabet()['a'], "a");
  for (size_t byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(BytesOfToken(ByteAlphabet()[byte]), std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(BytesOfToken("a b"), "a b");
}

std::vector<std::string> Words(absl::string_view text) {
  static const WordSplitter* splitter = new WordSplitter(*WordSplitter::Create());
  std::vector<std::string> words;
  const absl::Status status = splitter->Split(text, [&](absl::string_view word) {
    words.emplace_back(word);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  return words;
}

TEST(WordSplitter, CutsAsGpt2) {
  EXPECT_THAT(
      Words("Don't we'LL x  y\n\n z 12ab!?"),
      ElementsAre("Don", "'t", " we", "'", "LL", " x", " ", " y", "\n\n", " z", " 12", "ab", "!?"));
  EXPECT_THAT(Words("a  "), ElementsAre("a", "  "));
  EXPECT_THAT(Words("\xC2\xA0\xC2\x85x"), ElementsAre("\xC2\xA0", "\xC2\x85", "x"));
  // U+180E has not been white space since Unicode 6.3.
  EXPECT_THAT(Words("\xE1\xA0\x8E "), ElementsAre("\xE1\xA0\x8E", " "));
  EXPECT_THAT(Words(""), ElementsAre());
}

TEST(WordSplitter, StopsAtTheFirstError) {
  const auto splitter = WordSplitter::Create();
  ASSERT_TRUE(splitter.ok());
  int calls = 0;
  const absl::Status status = splitter->Split("a b c", [&](absl::string_view) {
    ++calls;
    return absl::InvalidArgumentError("no");
  });
  EXPECT_EQ(status.message(), "no");
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace blockserve
