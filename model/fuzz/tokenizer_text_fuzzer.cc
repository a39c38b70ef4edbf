// Text of any bytes through a tokenizer whose added tokens have every flag: valid UTF-8 is encoded,
// and what is streamed is what is decoded.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "model/tokenizer.h"
#include "model/tokenizer_byte_level.h"
#include "model/tokenizer_unicode.h"
#include "nlohmann/json.hpp"

namespace {

using nlohmann::json;

json AddedToken(int id, const char* content, const char* flag) {
  json token = {{"id", id}, {"content", content}, {"special", id % 2 == 0}, {"normalized", false}};
  token[flag] = true;
  return token;
}

const blockserve::Tokenizer& FuzzedTokenizer() {
  static const std::unique_ptr<blockserve::Tokenizer>& kTokenizer = *[] {
    json vocab = json::object();
    for (const std::string& character : blockserve::ByteAlphabet()) {
      const int id = static_cast<int>(vocab.size());
      vocab[character] = id;
    }
    vocab["ab"] = 256;
    vocab["abab"] = 257;
    vocab["ba"] = 258;
    const json document = {
        {"normalizer", {{"type", "NFC"}}},
        {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
        {"decoder", {{"type", "ByteLevel"}}},
        {"model",
         {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array({"a b", "ab ab", "b a"})}}},
        {"added_tokens",
         json::array({AddedToken(259, "<l>", "lstrip"), AddedToken(260, "<r>", "rstrip"),
                      AddedToken(261, "ww", "single_word"), AddedToken(262, "  ", "normalized"),
                      AddedToken(263, " <r", "rstrip"),
                      AddedToken(264, "e\xCC\x81", "normalized")})}};
    return new std::unique_ptr<blockserve::Tokenizer>(
        *blockserve::Tokenizer::Parse(document.dump(), "tokenizer.json"));
  }();
  return *kTokenizer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::string_view text(reinterpret_cast<const char*>(data), size);
  const blockserve::Tokenizer& tokenizer = FuzzedTokenizer();
  const auto ids = tokenizer.Encode(text);
  const bool valid = blockserve::FindInvalidUtf8(text) == absl::string_view::npos;
  if (ids.ok() != valid) __builtin_trap();

  // The bytes as ids: mostly broken characters.
  std::vector<int32_t> bytes(data, data + size);
  for (const bool skip_special : {false, true}) {
    for (const std::vector<int32_t>& tokens : {bytes, ids.ok() ? *ids : bytes}) {
      blockserve::StreamDecoder decoder(tokenizer, skip_special);
      std::string streamed;
      for (const int32_t id : tokens) streamed += decoder.Push(id);
      streamed += decoder.Flush();
      const auto decoded = tokenizer.Decode(tokens, skip_special);
      if (!decoded.ok() || *decoded != streamed) __builtin_trap();
      if (blockserve::FindInvalidUtf8(streamed) != absl::string_view::npos) __builtin_trap();
    }
  }
  return 0;
}
