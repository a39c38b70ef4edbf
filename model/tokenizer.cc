#include "model/tokenizer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/read_file.h"
#include "model/tokenizer_added.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_byte_level.h"
#include "model/tokenizer_file.h"
#include "model/tokenizer_unicode.h"

namespace blockserve {
namespace {

constexpr int64_t kWholeToken = int64_t{1} << 32;

}  // namespace

struct Tokenizer::Parts {
  AddedTokenMatcher in_given_text;
  AddedTokenMatcher in_normalized_text;
  BytePairEncoder encoder;
  WordSplitter splitter;
  bool normalize_nfc;
  bool add_prefix_space;
  bool split_words;

  // Plain text, normalized, in which no added token stands.
  absl::Status EncodePlain(absl::string_view text, std::vector<int32_t>& ids) const {
    std::string with_space;
    if (add_prefix_space && text[0] != ' ') {
      with_space = absl::StrCat(" ", text);
      text = with_space;
    }
    if (!split_words) return encoder.Encode(text, ids);
    return splitter.Split(text, [&](absl::string_view word) { return encoder.Encode(word, ids); });
  }

  // Text as given, in which no added token of the first kind stands.
  absl::Status EncodeGiven(absl::string_view text, std::vector<int32_t>& ids) const {
    std::string normalized;
    if (normalize_nfc) {
      normalized = NormalizeNfc(text);
      text = normalized;
    }
    return in_normalized_text.Split(text, [&](AddedTokenMatcher::Piece piece) {
      if (piece.id < 0) return EncodePlain(piece.text, ids);
      ids.push_back(piece.id);
      return absl::OkStatus();
    });
  }
};

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Parse(absl::string_view json,
                                                            absl::string_view source) {
  absl::StatusOr<TokenizerSpec> spec = ParseTokenizerFile(json, source);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<WordSplitter> splitter = WordSplitter::Create();
  if (!splitter.ok()) return splitter.status();

  std::vector<AddedToken> given;
  std::vector<AddedToken> normalized;
  size_t num_ids = spec->tokens.size();
  for (const AddedToken& token : spec->added_tokens) {
    num_ids = std::max(num_ids, static_cast<size_t>(token.id) + 1);
    if (token.normalized) {
      normalized.push_back(token);
      if (spec->normalize_nfc) normalized.back().content = NormalizeNfc(token.content);
    } else {
      given.push_back(token);
    }
  }
  // Some become equal only when they are normalized. Of those a special one counts.
  std::stable_partition(normalized.begin(), normalized.end(),
                        [](const AddedToken& token) { return !token.special; });

  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  std::vector<const std::string*> written(num_ids, nullptr);
  tokenizer->special_.resize(num_ids, false);
  for (size_t id = 0; id < spec->tokens.size(); ++id) written[id] = &spec->tokens[id];
  for (const AddedToken& token : spec->added_tokens) {
    written[static_cast<size_t>(token.id)] = &token.content;
    tokenizer->special_[static_cast<size_t>(token.id)] = token.special;
  }
  tokenizer->offsets_.reserve(num_ids + 1);
  tokenizer->offsets_.push_back(0);
  for (const std::string* token : written) {
    if (token != nullptr) tokenizer->bytes_ += BytesOfToken(*token);
    tokenizer->offsets_.push_back(static_cast<uint32_t>(tokenizer->bytes_.size()));
  }
  std::array<size_t, 256> longest = {};  // token that has the byte
  const auto look_at = [&longest](absl::string_view token) {
    for (const char c : token) {
      size_t& length = longest[static_cast<unsigned char>(c)];
      length = std::max(length, token.size());
    }
  };
  for (size_t id = 0; id < num_ids; ++id) look_at(tokenizer->TokenBytes(static_cast<int32_t>(id)));
  for (const AddedToken& token : normalized) look_at(token.content);
  // Not white space, of which added tokens may take any amount with them, nor what NFC may change.
  for (size_t byte = 0x21; byte < 0x80; ++byte) {
    if (longest[byte] > 0) {
      tokenizer->least_part_[byte] = kWholeToken / static_cast<int64_t>(longest[byte]);
    }
  }
  tokenizer->parts_.reset(
      new Parts{AddedTokenMatcher(std::move(given)), AddedTokenMatcher(std::move(normalized)),
                BytePairEncoder(*spec), *std::move(splitter), spec->normalize_nfc,
                spec->add_prefix_space, spec->split_words});
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxTokenizerFileBytes);
  if (!text.ok()) return text.status();
  return Parse(*text, path);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory) {
  return Tokenizer::Load(absl::StrCat(directory, "/", kTokenizerFileName));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text) const {
  if (const size_t invalid = FindInvalidUtf8(text); invalid != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("text is not valid UTF-8 at byte ", invalid, " of ", text.size()));
  }
  std::vector<int32_t> ids;
  const absl::Status status =
      parts_->in_given_text.Split(text, [&](AddedTokenMatcher::Piece piece) {
        if (piece.id < 0) return parts_->EncodeGiven(piece.text, ids);
        ids.push_back(piece.id);
        return absl::OkStatus();
      });
  if (!status.ok()) return status;
  return ids;
}

int64_t Tokenizer::LeastTokens(absl::string_view text) const {
  int64_t parts = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    // A mark that follows may become one character with it.
    const bool stays = i + 1 == text.size() || static_cast<unsigned char>(text[i + 1]) < 0x80;
    if (stays) parts += least_part_[static_cast<unsigned char>(text[i])];
  }
  return parts / kWholeToken;
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  const uint32_t begin = offsets_[static_cast<size_t>(id)];
  return absl::string_view(bytes_).substr(begin, offsets_[static_cast<size_t>(id) + 1] - begin);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && special_[static_cast<size_t>(id)];
}

absl::StatusOr<std::string> Tokenizer::Decode(absl::Span<const int32_t> ids,
                                              bool skip_special_tokens) const {
  std::string bytes;
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", ids[i], " at index ", i,
                                                     " lies outside of the tokenizer's ",
                                                     vocab_size(), " ids"));
    }
    if (skip_special_tokens && IsSpecial(ids[i])) continue;
    const absl::string_view token = TokenBytes(ids[i]);
    bytes.append(token.data(), token.size());
  }
  std::string text;
  text.reserve(bytes.size());
  TakeCharacters(bytes, text);
  if (!bytes.empty()) text.append(kReplacement.data(), kReplacement.size());
  return text;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens,
                             absl::Span<const int32_t> already_decoded)
    : tokenizer_(&tokenizer), skip_special_tokens_(skip_special_tokens) {
  // A lead byte begins a character whatever came before it, so an incomplete character is found in
  // the last 3 bytes alone.
  constexpr size_t kLongestPending = 3;
  std::string tail;
  for (size_t i = already_decoded.size(); i > 0 && tail.size() < kLongestPending; --i) {
    const int32_t id = already_decoded[i - 1];
    if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) continue;
    const absl::string_view token = tokenizer_->TokenBytes(id);
    tail.insert(0, token.data(), token.size());
  }
  // Without the bytes before it, the tail may begin inside a character; that makes invalid steps,
  // whose text is dropped like all of what has been emitted.
  std::string emitted;
  TakeCharacters(tail, emitted);
  pending_ = std::move(tail);
}

std::string StreamDecoder::Push(int32_t id) {
  std::string text;
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return text;
  const absl::string_view token = tokenizer_->TokenBytes(id);
  pending_.append(token.data(), token.size());
  TakeCharacters(pending_, text);
  return text;
}

std::string StreamDecoder::Flush() {
  if (pending_.empty()) return {};
  pending_.clear();
  return std::string(kReplacement);
}

}  // namespace blockserve
