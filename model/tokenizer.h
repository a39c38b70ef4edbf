// Byte-level BPE tokenizer: text to ids and back, equal to Hugging Face's `tokenizers` on the
// tokenizer.json files of the GPT-NeoX and GPT-2 family. No special tokens are added to a text;
// those that stand in it are recognised.
#ifndef BLOCKSERVE_MODEL_TOKENIZER_H_
#define BLOCKSERVE_MODEL_TOKENIZER_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace blockserve {

// Immutable and thread-safe.
class Tokenizer {
 public:
  // Reads the file `path`. Errors: NOT_FOUND when there is none, INVALID_ARGUMENT naming file and
  // field for what is broken or not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& path);
  // The same from the file's text; `source` stands in front of messages.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(absl::string_view json,
                                                          absl::string_view source);
  ~Tokenizer();

  // Errors: INVALID_ARGUMENT when `text` is not valid UTF-8 (with the offset), or holds a byte for
  // which the vocabulary has no token.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const;

  // A number of tokens that Encode cannot stay below, found without encoding: a token has no more
  // bytes than the longest that has one of them. ASCII alone counts, so it may be 0.
  int64_t LeastTokens(absl::string_view text) const;

  // The text of `ids`. Bytes that make no character become U+FFFD as in Hugging Face's (one for
  // each longest prefix of a character). Errors: INVALID_ARGUMENT naming an id outside of [0,
  // vocab_size).
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special_tokens) const;

  // Ids up to and including the largest of vocabulary and added tokens. At most the model's V,
  // whose table may be padded.
  int32_t vocab_size() const { return static_cast<int32_t>(offsets_.size()) - 1; }

  // The bytes that `id` stands for, not necessarily whole characters; those of special tokens too.
  // Empty for ids that name no token or lie outside of [0, vocab_size). Valid as long as this.
  absl::string_view TokenBytes(int32_t id) const;
  bool IsSpecial(int32_t id) const;

 private:
  struct Parts;  // the stages of Encode

  Tokenizer();

  std::unique_ptr<const Parts> parts_;
  std::string bytes_;              // of all tokens, end to end
  std::vector<uint32_t> offsets_;  // [vocab_size + 1] where a token's bytes begin
  std::vector<bool> special_;      // [vocab_size]
  // By byte, for LeastTokens: the part of a token that it is at least, in 2^-32.
  std::array<int64_t, 256> least_part_ = {};
};

// `directory`/tokenizer.json. Errors: NOT_FOUND when the folder has none, which is legal for a
// model (it then takes and gives ids only); else as Tokenizer::Load.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& directory);

// Decodes tokens as they come. Emits whole characters only: the bytes of one that is not complete
// yet are held back. What all Push calls and a last Flush return, laid end to end, is what
// Tokenizer::Decode gives for all the ids. Copying is cheap; at most 3 bytes of state.
class StreamDecoder {
 public:
  // `tokenizer` must outlive this. `already_decoded`: the tokens before the first one to be pushed,
  // for going on where another decoder stopped; what they complete has been emitted, so only the
  // last few are looked at.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens,
                absl::Span<const int32_t> already_decoded = {});
  // Goes on with a character whose beginning another decoder holds back.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens, std::string held_back)
      : tokenizer_(&tokenizer),
        skip_special_tokens_(skip_special_tokens),
        pending_(std::move(held_back)) {}

  // The text that `id` completes, perhaps empty. An id outside of [0, vocab_size) has no text.
  std::string Push(int32_t id);

  // The end: U+FFFD for what is held back, if anything is.
  std::string Flush();

  // The bytes of an incomplete character; empty where the text ends with a whole one.
  const std::string& held_back() const { return pending_; }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string pending_;  // a proper prefix of a character's bytes
};

}  // namespace blockserve

#endif  // BLOCKSERVE_MODEL_TOKENIZER_H_
