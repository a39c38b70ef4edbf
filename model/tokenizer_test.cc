#include "model/tokenizer.h"

#include <algorithm>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer_byte_level.h"
#include "nlohmann/json.hpp"

namespace blockserve {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class NeoxTokenizerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto tokenizer = Tokenizer::Load("tests/data/gpt_neox_20b.json");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = tokenizer->release();
  }
  static void TearDownTestSuite() { delete tokenizer_; }

  static std::vector<int32_t> Encode(absl::string_view text) {
    auto ids = tokenizer_->Encode(text);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return ids.ok() ? *std::move(ids) : std::vector<int32_t>();
  }
  static std::string Decode(absl::Span<const int32_t> ids, bool skip_special = false) {
    auto text = tokenizer_->Decode(ids, skip_special);
    EXPECT_TRUE(text.ok()) << text.status();
    return text.ok() ? *std::move(text) : std::string();
  }

  static Tokenizer* tokenizer_;
};
Tokenizer* NeoxTokenizerTest::tokenizer_ = nullptr;

TEST_F(NeoxTokenizerTest, EqualsHuggingFaceOnTheVectors) {
  std::ifstream file("tests/data/vectors.json");
  const auto document = nlohmann::json::parse(file);
  ASSERT_GT(document["vectors"].size(), 100u);
  for (const auto& vector : document["vectors"]) {
    const auto ids = vector["ids"].get<std::vector<int32_t>>();
    if (vector["text"].is_string()) {
      EXPECT_EQ(Encode(vector["text"].get<std::string>()), ids) << vector["text"];
    }
    EXPECT_EQ(Decode(ids, false), vector["decoded"].get<std::string>()) << vector["text"];
    EXPECT_EQ(Decode(ids, true), vector["decoded_skip_special"].get<std::string>())
        << vector["text"];
  }
}

TEST_F(NeoxTokenizerTest, StreamsTheVectorsAsDecodeGivesThem) {
  std::ifstream file("tests/data/vectors.json");
  const auto document = nlohmann::json::parse(file);
  for (const auto& vector : document["vectors"]) {
    const auto ids = vector["ids"].get<std::vector<int32_t>>();
    for (const bool skip_special : {false, true}) {
      StreamDecoder decoder(*tokenizer_, skip_special);
      std::string text;
      for (const int32_t id : ids) text += decoder.Push(id);
      text += decoder.Flush();
      EXPECT_EQ(text, Decode(ids, skip_special)) << vector["text"];
    }
  }
}

// Random ids are mostly broken characters, which no text gives.
TEST_F(NeoxTokenizerTest, StreamsRandomIdsAsDecodeGivesThemAndResumesAnywhere) {
  std::mt19937 random(7);
  // The ids of single bytes, and others.
  std::uniform_int_distribution<int32_t> byte_ids(2, 300);
  std::uniform_int_distribution<int32_t> any_ids(0, tokenizer_->vocab_size() - 1);
  for (int round = 0; round < 400; ++round) {
    std::vector<int32_t> ids;
    for (int i = 0; i < 24; ++i) {
      ids.push_back(random() % 4 == 0 ? any_ids(random) : byte_ids(random));
    }
    const std::string whole = Decode(ids, true);
    for (size_t cut = 0; cut <= ids.size(); ++cut) {
      StreamDecoder first(*tokenizer_, true);
      std::string text;
      for (size_t i = 0; i < cut; ++i) text += first.Push(ids[i]);
      StreamDecoder second(*tokenizer_, true, absl::MakeSpan(ids).first(cut));
      EXPECT_EQ(second.held_back(), first.held_back());
      for (size_t i = cut; i < ids.size(); ++i) text += second.Push(ids[i]);
      text += second.Flush();
      ASSERT_EQ(text, whole) << "cut at " << cut << " in round " << round;
    }
  }
}

// A letter before a mark may become one character with it, whatever its own tokens are.
TEST_F(NeoxTokenizerTest, LeastTokensCountsNoLetterThatAMarkFollows) {
  const auto least = [this](int letters, absl::string_view end) {
    std::string text;
    for (int i = 0; i < letters; ++i) absl::StrAppend(&text, "e", end);
    return tokenizer_->LeastTokens(text);
  };
  EXPECT_GT(least(1000, "e"), 0);
  EXPECT_EQ(least(1000, "\u0301"), tokenizer_->LeastTokens("\u0301"));
}

TEST_F(NeoxTokenizerTest, LeastTokensIsNeverMoreThanThereAre) {
  const auto check = [](const std::string& text) {
    EXPECT_LE(tokenizer_->LeastTokens(text), static_cast<int64_t>(Encode(text).size()))
        << text.substr(0, 100);
  };
  for (int32_t id = 0; id < tokenizer_->vocab_size(); id += 7) {
    const std::string token(tokenizer_->TokenBytes(id));
    // Parts of characters make no text.
    if (std::any_of(token.begin(), token.end(), [](char c) { return (c & 0x80) != 0; })) continue;
    std::string text;
    for (int i = 0; i < 3; ++i) text += token;
    check(text);
    check(absl::StrCat(" ", text, "\n"));
  }
  // NFC makes fewer bytes of these.
  check("e\u0301a\u0300\u212A\u1FEF\u037E");
  check(std::string(2000, ' ') + std::string(3000, '-') + std::string(1000, '='));
  std::string words, letters;
  for (int i = 0; i < 10'000; ++i) {
    words += "Once upon a time there was a dog. ";
    letters += "the";
  }
  check(words);
  check(letters);
  // Texts that are far too long are found out.
  EXPECT_GT(tokenizer_->LeastTokens(words), 10'000);
  EXPECT_GT(tokenizer_->LeastTokens(letters), 1'000);
}

TEST_F(NeoxTokenizerTest, HoldsBackTheBytesOfAnIncompleteCharacter) {
  const std::vector<int32_t> ids = Encode("\xF0\x9F\x99\x82");  // U+1F642, two tokens
  ASSERT_EQ(ids.size(), 2u);
  StreamDecoder decoder(*tokenizer_, true);
  EXPECT_EQ(decoder.Push(ids[0]), "");
  EXPECT_FALSE(decoder.held_back().empty());
  StreamDecoder another(*tokenizer_, true, decoder.held_back());
  EXPECT_EQ(another.Push(ids[1]), "\xF0\x9F\x99\x82");
  EXPECT_EQ(decoder.Push(ids[1]), "\xF0\x9F\x99\x82");
  EXPECT_TRUE(decoder.held_back().empty());
  EXPECT_EQ(decoder.Flush(), "");
  decoder.Push(ids[0]);
  EXPECT_EQ(decoder.Flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(decoder.Flush(), "");
}

TEST_F(NeoxTokenizerTest, KeepsASpecialTokenBetweenTheHalvesOfACharacterOutOfSkippedText) {
  std::vector<int32_t> ids = Encode("\xF0\x9F\x99\x82");
  ids.insert(ids.begin() + 1, 0);
  EXPECT_EQ(Decode(ids, true), "\xF0\x9F\x99\x82");
  StreamDecoder decoder(*tokenizer_, true, absl::MakeSpan(ids).first(2));
  EXPECT_EQ(decoder.Push(ids[2]), "\xF0\x9F\x99\x82");
}

TEST_F(NeoxTokenizerTest, RefusesInvalidUtf8WithItsOffset) {
  for (const absl::string_view tail :
       {"\x80", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x82", "\xFF"}) {
    const auto ids = tokenizer_->Encode(absl::StrCat("abc", tail));
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(ids.status().message()), HasSubstr("UTF-8 at byte 3"));
  }
}

TEST_F(NeoxTokenizerTest, RefusesIdsOutOfRangeByName) {
  const int32_t size = tokenizer_->vocab_size();
  EXPECT_EQ(size, 50277);
  for (const int32_t id : {-1, size, 2147483647}) {
    const auto text = tokenizer_->Decode(std::vector<int32_t>{5, id}, false);
    EXPECT_EQ(text.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(text.status().message()),
                HasSubstr(absl::StrCat("token id ", id, " at index 1")));
    EXPECT_EQ(tokenizer_->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer_->IsSpecial(id));
    StreamDecoder decoder(*tokenizer_, false);
    EXPECT_EQ(decoder.Push(id), "");
  }
}

TEST_F(NeoxTokenizerTest, KnowsBytesAndSpecialTokens) {
  EXPECT_TRUE(tokenizer_->IsSpecial(0));
  EXPECT_TRUE(tokenizer_->IsSpecial(1));
  EXPECT_FALSE(tokenizer_->IsSpecial(50276));
  EXPECT_EQ(tokenizer_->TokenBytes(0), "<|endoftext|>");
  EXPECT_EQ(tokenizer_->TokenBytes(50276), "  ");
  EXPECT_EQ(tokenizer_->TokenBytes(209), " ");
}

// Words this long would take hours if merging were quadratic: the test ends or times out.
TEST_F(NeoxTokenizerTest, EncodesAMegabyteOfOneWord) {
  constexpr size_t kBytes = 1 << 20;
  std::string random_word;
  std::mt19937 random(3);
  for (size_t i = 0; i < kBytes; ++i) random_word.push_back(static_cast<char>('a' + random() % 26));
  for (const std::string& text :
       {std::string(kBytes, 'a'), std::string(kBytes, ' '), random_word}) {
    EXPECT_EQ(Decode(Encode(text)), text);
  }
}

// Canonical ordering by exchanging neighbours would be quadratic here.
TEST_F(NeoxTokenizerTest, NormalizesAMegabyteOfCombiningMarks) {
  std::string text = "a";
  for (int i = 0; i < (1 << 18); ++i) text += i % 2 == 0 ? "\xCC\x81" : "\xCC\xA3";
  const std::vector<int32_t> ids = Encode(text);
  // The lower marks come first, and the letter takes one of them and one upper mark.
  EXPECT_THAT(Decode(ids), ::testing::StartsWith("\xE1\xBA\xA1\xCC\xA3\xCC\xA3"));
}

// ---- Small tokenizers, changed in one place each ----

nlohmann::json SmallTokenizer() {
  nlohmann::json vocab = nlohmann::json::object();
  for (const std::string& character : ByteAlphabet()) {
    const int32_t id = static_cast<int32_t>(vocab.size());
    vocab[character] = id;
  }
  vocab["ab"] = 256;
  vocab["abc"] = 257;
  vocab["bc"] = 258;
  return {{"added_tokens", nlohmann::json::array()},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", {"a b", "ab c", "b c"}}}}};
}

nlohmann::json Added(int32_t id, std::string content) {
  return {{"id", id},        {"content", content}, {"special", false},    {"normalized", false},
          {"lstrip", false}, {"rstrip", false},    {"single_word", false}};
}

std::unique_ptr<Tokenizer> MakeTokenizer(const nlohmann::json& document) {
  auto tokenizer = Tokenizer::Parse(document.dump(), "tokenizer.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

std::vector<std::string> Pieces(const Tokenizer& tokenizer, absl::string_view text) {
  const auto ids = tokenizer.Encode(text);
  EXPECT_TRUE(ids.ok()) << ids.status();
  std::vector<std::string> pieces;
  for (const int32_t id : *ids) pieces.emplace_back(tokenizer.TokenBytes(id));
  return pieces;
}

TEST(Tokenizer, TakesTheBestMergeFirst) {
  const auto tokenizer = MakeTokenizer(SmallTokenizer());
  EXPECT_THAT(Pieces(*tokenizer, "abcbc"), ElementsAre("abc", "bc"));
  EXPECT_EQ(tokenizer->vocab_size(), 259);
}

TEST(Tokenizer, GivesTheSameForShortAndLongWords) {
  const auto tokenizer = MakeTokenizer(SmallTokenizer());
  std::string text;
  std::vector<std::string> expected;
  for (int i = 0; i < 40; ++i) {
    for (const std::string& piece : Pieces(*tokenizer, "abcbcb")) expected.push_back(piece);
    text += "abcbcb";
  }
  EXPECT_EQ(Pieces(*tokenizer, text), expected);
}

TEST(Tokenizer, ReadsMergesAsPairs) {
  nlohmann::json document = SmallTokenizer();
  document["model"]["merges"] = nlohmann::json::parse(R"([["a", "b"], ["ab", "c"], ["b", "c"]])");
  EXPECT_THAT(Pieces(*MakeTokenizer(document), "abcbc"), ElementsAre("abc", "bc"));
}

TEST(Tokenizer, LeavesWordsWholeWhenMergesAreIgnored) {
  nlohmann::json document = SmallTokenizer();
  document["model"]["vocab"]["xyz"] = 259;
  EXPECT_THAT(Pieces(*MakeTokenizer(document), "xyz"), ElementsAre("x", "y", "z"));
  document["model"]["ignore_merges"] = true;
  EXPECT_THAT(Pieces(*MakeTokenizer(document), "xyz xyz"), ElementsAre("xyz", " ", "x", "y", "z"));
}

TEST(Tokenizer, PutsASpaceBeforeEachPieceOfText) {
  nlohmann::json document = SmallTokenizer();
  document["pre_tokenizer"]["add_prefix_space"] = true;
  document["added_tokens"] = nlohmann::json::array({Added(259, "<s>")});
  const auto tokenizer = MakeTokenizer(document);
  EXPECT_THAT(Pieces(*tokenizer, "ab<s>ab<s> ab"),
              ElementsAre(" ", "ab", "<s>", " ", "ab", "<s>", " ", "ab"));
  EXPECT_THAT(Pieces(*tokenizer, ""), IsEmpty());
}

TEST(Tokenizer, KeepsTextInOneWordWithoutThePattern) {
  nlohmann::json document = SmallTokenizer();
  document["model"]["vocab"]["cĠ"] = 259;
  document["model"]["merges"] = nlohmann::json::array({"c Ġ"});
  EXPECT_THAT(Pieces(*MakeTokenizer(document), "c a"), ElementsAre("c", " ", "a"));
  document["pre_tokenizer"]["use_regex"] = false;
  EXPECT_THAT(Pieces(*MakeTokenizer(document), "c a"), ElementsAre("c ", "a"));
}

TEST(Tokenizer, OfAddedTokensThatNormalizationMakesEqualASpecialOneCounts) {
  nlohmann::json document = SmallTokenizer();
  document["normalizer"] = {{"type", "NFC"}};
  for (const bool special_first : {true, false}) {
    nlohmann::json composed = Added(259, "q\u00e9"), decomposed = Added(260, "qe\u0301");
    composed["normalized"] = decomposed["normalized"] = true;
    (special_first ? composed : decomposed)["special"] = true;
    document["added_tokens"] = nlohmann::json::array({composed, decomposed});
    const auto ids = MakeTokenizer(document)->Encode("aq\u00e9b");
    ASSERT_TRUE(ids.ok());
    EXPECT_THAT(*ids, Contains(special_first ? 259 : 260));
  }
}

TEST(Tokenizer, MatchesTheLongestAddedTokenAtTheLeftmostPlace) {
  nlohmann::json document = SmallTokenizer();
  document["added_tokens"] =
      nlohmann::json::array({Added(259, "<a"), Added(260, "<a>"), Added(261, "a>b")});
  EXPECT_THAT(Pieces(*MakeTokenizer(document), "x<a>b<ab"),
              ElementsAre("x", "<a>", "b", "<a", "b"));
}

TEST(Tokenizer, MatchesTokensThatAreNotNormalizedInTheTextAsGiven) {
  nlohmann::json document = SmallTokenizer();
  document["normalizer"] = {{"type", "NFC"}};
  const std::string decomposed = "e\xCC\x81";
  const std::string composed = "\xC3\xA9";
  document["added_tokens"] = nlohmann::json::array({Added(259, decomposed)});
  auto tokenizer = MakeTokenizer(document);
  EXPECT_THAT(*tokenizer->Encode(decomposed), ElementsAre(259));
  EXPECT_EQ(tokenizer->Encode(composed)->size(), 2u);
  document["added_tokens"][0]["normalized"] = true;
  tokenizer = MakeTokenizer(document);
  EXPECT_THAT(*tokenizer->Encode(decomposed), ElementsAre(259));
  EXPECT_THAT(*tokenizer->Encode(composed), ElementsAre(259));
}

TEST(Tokenizer, LetsAddedTokensTakeWhiteSpaceWithThem) {
  nlohmann::json document = SmallTokenizer();
  document["added_tokens"] = nlohmann::json::array({Added(259, "<l>"), Added(260, "<r>")});
  document["added_tokens"][0]["lstrip"] = true;
  document["added_tokens"][1]["rstrip"] = true;
  const auto tokenizer = MakeTokenizer(document);
  EXPECT_THAT(Pieces(*tokenizer, "a \t <l> b <r>\xE2\x80\x83 c"),
              ElementsAre("a", "<l>", " ", "b", " ", "<r>", "c"));
  // Both want the space between them: the first has it.
  EXPECT_THAT(Pieces(*tokenizer, "<r> <l>"), ElementsAre("<r>", "<l>"));
}

TEST(Tokenizer, DropsAnAddedTokenOfWhiteSpaceThatTheTokenBeforeTookWithIt) {
  nlohmann::json document = SmallTokenizer();
  document["added_tokens"] = nlohmann::json::array({Added(259, "<r>"), Added(260, "\n")});
  document["added_tokens"][0]["rstrip"] = true;
  document["added_tokens"][1]["lstrip"] = true;
  const auto tokenizer = MakeTokenizer(document);
  // Hugging Face's gives ids to what is left of a token, and of these nothing is left.
  EXPECT_THAT(Pieces(*tokenizer, "<r>\na"), ElementsAre("<r>", "a"));
  EXPECT_THAT(Pieces(*tokenizer, "<r>\n \na\n"), ElementsAre("<r>", "a", "\n"));
}

TEST(Tokenizer, MatchesSingleWordsOnlyBetweenOtherCharacters) {
  nlohmann::json document = SmallTokenizer();
  document["added_tokens"] = nlohmann::json::array({Added(259, "ab")});
  document["model"]["vocab"].erase("ab");
  document["model"]["vocab"].erase("abc");
  document["model"]["merges"] = nlohmann::json::array({"b c"});
  document["added_tokens"][0]["single_word"] = true;
  const auto tokenizer = MakeTokenizer(document);
  EXPECT_THAT(*tokenizer->Encode("ab"), ElementsAre(259));
  EXPECT_THAT(Pieces(*tokenizer, "-ab."), ElementsAre("-", "ab", "."));
  EXPECT_THAT(Pieces(*tokenizer, "xab"), ElementsAre("x", "a", "b"));
  EXPECT_THAT(Pieces(*tokenizer, "ab_"), ElementsAre("a", "b", "_"));
  EXPECT_EQ(tokenizer->Encode("ab\xC3\xA9")->size(), 4u);
}

TEST(Tokenizer, NamesAByteWithoutToken) {
  nlohmann::json document = SmallTokenizer();
  document["model"]["vocab"].erase("z");
  const auto ids = MakeTokenizer(document)->Encode("az");
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(ids.status().message()), HasSubstr("byte 0x7A"));
}

TEST(Tokenizer, AcceptsAnUnknownTokenOnlyWhereNothingIsUnknown) {
  nlohmann::json document = SmallTokenizer();
  document["model"]["unk_token"] = "ab";
  EXPECT_NE(MakeTokenizer(document), nullptr);
  document["model"]["vocab"].erase("z");
  const auto tokenizer = Tokenizer::Parse(document.dump(), "tokenizer.json");
  EXPECT_THAT(std::string(tokenizer.status().message()), HasSubstr("model.unk_token"));
}

TEST(Tokenizer, IdsWithoutATokenHaveNoText) {
  nlohmann::json document = SmallTokenizer();
  document["added_tokens"] = nlohmann::json::array({Added(270, "<s>")});
  const auto tokenizer = MakeTokenizer(document);
  EXPECT_EQ(tokenizer->vocab_size(), 271);
  EXPECT_EQ(*tokenizer->Decode(std::vector<int32_t>{256, 265, 270}, false), "ab<s>");
}

struct BadFile {
  const char* name;
  const char* patch;    // an RFC 7386 merge patch of SmallTokenizer
  const char* message;  // part of the error
};

class RefusedTokenizer : public ::testing::TestWithParam<BadFile> {};

TEST_P(RefusedTokenizer, IsNamed) {
  nlohmann::json document = SmallTokenizer();
  document.merge_patch(nlohmann::json::parse(GetParam().patch));
  const auto tokenizer = Tokenizer::Parse(document.dump(), "dir/tokenizer.json");
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(tokenizer.status().message()),
              testing::AllOf(HasSubstr("dir/tokenizer.json: "), HasSubstr(GetParam().message)));
}

INSTANTIATE_TEST_SUITE_P(
    Each, RefusedTokenizer,
    ::testing::Values(
        BadFile{"WordPiece", R"({"model": {"type": "WordPiece"}})", "model.type is \"WordPiece\""},
        BadFile{"NoModel", R"({"model": null})", "model is missing"},
        BadFile{"Normalizer", R"({"normalizer": {"type": "NFKC"}})", "normalizer.type is \"NFKC\""},
        BadFile{"NormalizerInSequence",
                R"({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}})",
                "\"Lowercase\""},
        BadFile{"NormalizerWithoutType", R"({"normalizer": {}})", "normalizer.type"},
        BadFile{"PreTokenizer", R"({"pre_tokenizer": {"type": "Metaspace"}})", "\"Metaspace\""},
        BadFile{"NoPreTokenizer", R"({"pre_tokenizer": null})", "pre_tokenizer.type"},
        BadFile{"PreTokenizerSequence",
                R"({"pre_tokenizer": {"type": "Sequence", "pretokenizers":
                    [{"type": "Digits"}, {"type": "ByteLevel"}]}})",
                "pre_tokenizer.type is \"Sequence\""},
        BadFile{"Decoder", R"({"decoder": {"type": "WordPiece"}})", "decoder.type"},
        BadFile{"NoDecoder", R"({"decoder": null})", "decoder.type"},
        BadFile{"Dropout", R"({"model": {"dropout": 0.1}})", "model.dropout"},
        BadFile{"Prefix", R"({"model": {"continuing_subword_prefix": "##"}})",
                "model.continuing_subword_prefix"},
        BadFile{"Suffix", R"({"model": {"end_of_word_suffix": "</w>"}})",
                "model.end_of_word_suffix"},
        BadFile{"ByteFallback", R"({"model": {"byte_fallback": true}})", "model.byte_fallback"},
        BadFile{"ByteFallbackType", R"({"model": {"byte_fallback": 1}})", "model.byte_fallback"},
        BadFile{"NoVocab", R"({"model": {"vocab": null}})", "model.vocab"},
        BadFile{"NegativeId", R"({"model": {"vocab": {"ab": -1}}})", "\"ab\""},
        BadFile{"HugeId", R"({"model": {"vocab": {"ab": 99999999999}}})", "\"ab\""},
        BadFile{"IdJustBeyondTheLast", R"({"model": {"vocab": {"ab": 4194304}}})", "\"ab\""},
        BadFile{"FractionId", R"({"model": {"vocab": {"ab": 1.5}}})", "\"ab\""},
        BadFile{"EqualIds", R"({"model": {"vocab": {"ab": 257}}})", "id 257"},
        BadFile{"EmptyToken", R"({"model": {"vocab": {"": 300}}})", "empty token"},
        BadFile{"NoMerges", R"({"model": {"merges": null}})", "model.merges"},
        BadFile{"MergeOfOne", R"({"model": {"merges": ["a b", "ab"]}})", "model.merges[1]"},
        BadFile{"MergeOfThree", R"({"model": {"merges": ["a b c"]}})", "model.merges[0]"},
        BadFile{"MergeOfNumbers", R"({"model": {"merges": [[1, 2]]}})", "model.merges[0]"},
        BadFile{"MergeWithoutResult", R"({"model": {"merges": ["a c"]}})", "\"ac\""},
        BadFile{"MergeOfUnknown", R"({"model": {"merges": ["ab q?"]}})", "\"q?\""},
        BadFile{"AddedType", R"({"added_tokens": {}})", "added_tokens"},
        BadFile{"AddedNoContent", R"({"added_tokens": [{"id": 1}]})", "added_tokens[0].content"},
        BadFile{"AddedNoId", R"({"added_tokens": [{"content": "<s>"}]})", "added_tokens[0].id"},
        BadFile{"AddedIdJustBeyondTheLast",
                R"({"added_tokens": [{"id": 4194304, "content": "<s>"}]})", "added_tokens[0].id"},
        BadFile{"AddedFlag", R"({"added_tokens": [{"id": 300, "content": "<s>", "lstrip": 1}]})",
                "added_tokens[0].lstrip"},
        BadFile{"AddedOtherId", R"({"added_tokens": [{"id": 300, "content": "ab"}]})",
                "added_tokens[0].id is 300"},
        BadFile{"AddedTakenId", R"({"added_tokens": [{"id": 256, "content": "<s>"}]})",
                "which model.vocab gives to \"ab\""},
        BadFile{"AddedTwice", R"({"added_tokens": [{"id": 300, "content": "<s>"},
                                                    {"id": 301, "content": "<s>"}]})",
                "added_tokens[1]"}),
    [](const auto& info) { return std::string(info.param.name); });

TEST(Tokenizer, RefusesFilesThatAreNoJson) {
  for (const absl::string_view text : {"", "{", "[]", "{\"model\": {}, \"model\": {}}"}) {
    const auto tokenizer = Tokenizer::Parse(text, "tokenizer.json");
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
}

TEST(Tokenizer, IsNotFoundInAFolderWithoutOne) {
  const auto tokenizer = LoadTokenizer("tests/golden/concat_l4");
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace blockserve
