#include "model/tokenizer_file.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "model/tokenizer_byte_level.h"

namespace blockserve {
namespace {

using nlohmann::json;

std::string Quoted(absl::string_view text) {
  return absl::StrCat("\"", text.substr(0, 60), text.size() > 60 ? "..." : "", "\"");
}

// Fills the spec from the document; the first error stays in status().
class SpecReader {
 public:
  SpecReader(const json& document, absl::string_view source)
      : document_(document), source_(source) {}

  absl::StatusOr<TokenizerSpec> Read() {
    ReadNormalizer(Child(document_, "normalizer"), "normalizer");
    ReadPreTokenizer(Child(document_, "pre_tokenizer"));
    ReadDecoder(Child(document_, "decoder"));
    ReadModel(Child(document_, "model"));
    if (status_.ok()) ReadAddedTokens(Child(document_, "added_tokens"));
    if (!status_.ok()) return status_;
    return std::move(spec_);
  }

 private:
  // The member `name`, or null.
  static const json& Child(const json& object, const char* name) {
    static const json& kNull = *new json();
    if (!object.is_object()) return kNull;
    const auto found = object.find(name);
    return found == object.end() ? kNull : *found;
  }

  void Fail(absl::string_view field, absl::string_view what) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(absl::StrCat(source_, ": ", field, " ", what));
  }

  bool Boolean(const json& object, absl::string_view path, const char* name, bool absent) {
    const json& value = Child(object, name);
    if (value.is_null()) return absent;
    if (!value.is_boolean()) {
      Fail(absl::StrCat(path, ".", name),
           absl::StrCat("is ", JsonTypeName(value), "; true or false is needed"));
      return absent;
    }
    return value.get<bool>();
  }

  // The "type" of one stage; empty after an error.
  std::string TypeOf(const json& stage, absl::string_view path) {
    const json& type = Child(stage, "type");
    if (!type.is_string()) {
      Fail(absl::StrCat(path, ".type"), "is missing or not a string");
      return "";
    }
    return type.get<std::string>();
  }

  void ReadNormalizer(const json& stage, const std::string& path) {
    if (stage.is_null()) return;
    const std::string type = TypeOf(stage, path);
    if (!status_.ok()) return;
    if (type == "NFC") {
      spec_.normalize_nfc = true;
    } else if (type == "Sequence" && Child(stage, "normalizers").is_array()) {
      for (const json& member : Child(stage, "normalizers")) {
        ReadNormalizer(member, path + ".normalizers");
      }
    } else {
      Fail(path + ".type", absl::StrCat("is ", Quoted(type), "; only NFC is supported"));
    }
  }

  // `stage`, or the only member of the Sequence that it is.
  const json& OnlyMember(const json& stage, absl::string_view path, const char* members) {
    const json& list = Child(stage, members);
    if (TypeOf(stage, path) != "Sequence" || !list.is_array() || list.size() != 1) return stage;
    return list[0];
  }

  void ReadPreTokenizer(const json& stage) {
    const json& byte_level = OnlyMember(stage, "pre_tokenizer", "pretokenizers");
    const std::string type = TypeOf(byte_level, "pre_tokenizer");
    if (!status_.ok()) return;
    if (type != "ByteLevel") {
      Fail("pre_tokenizer.type",
           absl::StrCat("is ", Quoted(type), "; only ByteLevel, by itself, is supported"));
      return;
    }
    // Hugging Face's own defaults.
    spec_.add_prefix_space = Boolean(byte_level, "pre_tokenizer", "add_prefix_space", true);
    spec_.split_words = Boolean(byte_level, "pre_tokenizer", "use_regex", true);
  }

  void ReadDecoder(const json& stage) {
    const json& byte_level = OnlyMember(stage, "decoder", "decoders");
    const std::string type = TypeOf(byte_level, "decoder");
    if (status_.ok() && type != "ByteLevel") {
      Fail("decoder.type",
           absl::StrCat("is ", Quoted(type), "; only ByteLevel, by itself, is supported"));
    }
  }

  void ReadModel(const json& model) {
    if (!model.is_object()) {
      Fail("model", absl::StrCat("is ", model.is_null() ? "missing" : JsonTypeName(model),
                                 "; an object is needed"));
      return;
    }
    // GPT-2's own file is older than the field.
    if (!Child(model, "type").is_null()) {
      const std::string type = TypeOf(model, "model");
      if (status_.ok() && type != "BPE") {
        Fail("model.type", absl::StrCat("is ", Quoted(type), "; only BPE is supported"));
      }
    }
    const json& dropout = Child(model, "dropout");
    if (!dropout.is_null() && dropout != 0.0) {
      Fail("model.dropout", "is set; encoding with dropout is not supported");
    }
    for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const json& value = Child(model, name);
      if (!value.is_null() && value != "") {
        Fail(absl::StrCat("model.", name), "is set; only byte-level BPE without it is supported");
      }
    }
    if (Boolean(model, "model", "byte_fallback", false)) {
      Fail("model.byte_fallback", "is true; only byte-level BPE without it is supported");
    }
    spec_.ignore_merges = Boolean(model, "model", "ignore_merges", false);
    if (status_.ok()) ReadVocabulary(Child(model, "vocab"));
    if (status_.ok()) CheckUnknownToken(Child(model, "unk_token"));
    if (status_.ok()) ReadMerges(Child(model, "merges"));
  }

  void ReadVocabulary(const json& vocab) {
    if (!vocab.is_object() || vocab.empty()) {
      Fail("model.vocab", "is missing, empty or not an object");
      return;
    }
    int64_t largest = 0;
    for (const auto& [token, id] : vocab.items()) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t{kMaxTokenizerIds}) {
        Fail("model.vocab",
             absl::StrCat("gives token ", Quoted(token), " an id that is no integer ", "from 0 to ",
                          kMaxTokenizerIds - 1));
        return;
      }
      if (token.empty()) {
        Fail("model.vocab", "holds an empty token");
        return;
      }
      largest = std::max(largest, id.get<int64_t>());
    }
    spec_.tokens.resize(static_cast<size_t>(largest) + 1);
    id_by_token_.reserve(vocab.size());
    for (const auto& [token, id] : vocab.items()) {
      std::string& slot = spec_.tokens[id.get<size_t>()];
      if (!slot.empty()) {
        Fail("model.vocab", absl::StrCat("gives id ", id.get<int64_t>(), " to both ", Quoted(slot),
                                         " and ", Quoted(token)));
        return;
      }
      slot = token;
      id_by_token_.emplace(token, id.get<int32_t>());
    }
  }

  // An unknown token is harmless where nothing can be unknown: every byte has a token.
  void CheckUnknownToken(const json& unknown) {
    if (unknown.is_null() || unknown == "") return;
    for (const std::string& character : ByteAlphabet()) {
      if (!id_by_token_.contains(character)) {
        Fail("model.unk_token",
             "is set, and not every byte has a token of its own; only byte-level "
             "BPE without unknown tokens is supported");
        return;
      }
    }
  }

  void ReadMerges(const json& merges) {
    if (!merges.is_array()) {
      Fail("model.merges", "is missing or not an array");
      return;
    }
    spec_.merges.reserve(merges.size());
    std::string merged;
    for (size_t i = 0; i < merges.size() && status_.ok(); ++i) {
      const json& entry = merges[i];
      absl::string_view left;
      absl::string_view right;
      if (entry.is_string()) {
        const absl::string_view text = entry.get_ref<const std::string&>();
        if (absl::StartsWith(text, "#version")) continue;
        const size_t space = text.find(' ');
        if (space != absl::string_view::npos) {
          left = text.substr(0, space);
          right = text.substr(space + 1);
        }
      } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
                 entry[1].is_string()) {
        left = entry[0].get_ref<const std::string&>();
        right = entry[1].get_ref<const std::string&>();
      }
      const std::string path = absl::StrCat("model.merges[", i, "]");
      if (left.empty() || right.empty() || right.find(' ') != absl::string_view::npos) {
        Fail(path, "is neither two tokens with a space between nor a pair of tokens");
        return;
      }
      merged.assign(left.data(), left.size());
      merged.append(right.data(), right.size());
      MergeRule rule;
      rule.left = IdOf(left, path);
      rule.right = IdOf(right, path);
      rule.merged = IdOf(merged, path);
      spec_.merges.push_back(rule);
    }
  }

  int32_t IdOf(absl::string_view token, absl::string_view path) {
    const auto found = id_by_token_.find(token);
    if (found != id_by_token_.end()) return found->second;
    Fail(path, absl::StrCat("needs token ", Quoted(token), ", which is not in model.vocab"));
    return 0;
  }

  void ReadAddedTokens(const json& list) {
    if (list.is_null()) return;
    if (!list.is_array()) {
      Fail("added_tokens", absl::StrCat("is ", JsonTypeName(list), "; an array is needed"));
      return;
    }
    absl::flat_hash_set<std::string> contents;
    absl::flat_hash_set<int32_t> ids;
    for (size_t i = 0; i < list.size() && status_.ok(); ++i) {
      const std::string path = absl::StrCat("added_tokens[", i, "]");
      const json& id = Child(list[i], "id");
      const json& content = Child(list[i], "content");
      if (!content.is_string()) {
        Fail(path + ".content", "is missing or not a string");
        return;
      }
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t{kMaxTokenizerIds}) {
        Fail(path + ".id", absl::StrCat("is no integer from 0 to ", kMaxTokenizerIds - 1));
        return;
      }
      AddedToken token;
      token.id = id.get<int32_t>();
      token.content = content.get<std::string>();
      token.special = Boolean(list[i], path, "special", false);
      token.normalized = Boolean(list[i], path, "normalized", !token.special);
      token.lstrip = Boolean(list[i], path, "lstrip", false);
      token.rstrip = Boolean(list[i], path, "rstrip", false);
      token.single_word = Boolean(list[i], path, "single_word", false);
      if (token.content.empty()) continue;  // Hugging Face's skips it too
      if (!contents.insert(token.content).second || !ids.insert(token.id).second) {
        Fail(path,
             absl::StrCat("repeats the content ", Quoted(token.content), " or the id ", token.id));
        return;
      }
      CheckAgainstVocabulary(token, path);
      spec_.added_tokens.push_back(std::move(token));
    }
  }

  void CheckAgainstVocabulary(const AddedToken& token, const std::string& path) {
    const auto found = id_by_token_.find(token.content);
    if (found != id_by_token_.end()) {
      if (found->second != token.id) {
        Fail(path + ".id", absl::StrCat("is ", token.id, ", but model.vocab gives ",
                                        Quoted(token.content), " the id ", found->second));
      }
      return;
    }
    if (static_cast<size_t>(token.id) < spec_.tokens.size() &&
        !spec_.tokens[static_cast<size_t>(token.id)].empty()) {
      Fail(path + ".id", absl::StrCat("is ", token.id, ", which model.vocab gives to ",
                                      Quoted(spec_.tokens[static_cast<size_t>(token.id)])));
    }
  }

  const json& document_;
  absl::string_view source_;
  absl::Status status_;
  TokenizerSpec spec_;
  absl::flat_hash_map<std::string, int32_t> id_by_token_;  // of model.vocab
};

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTokenizerFile(absl::string_view text, absl::string_view source) {
  absl::StatusOr<json> document = ParseJson(text, source);
  if (!document.ok()) return document.status();
  if (!document->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(source, ": is ", JsonTypeName(*document), "; an object is needed"));
  }
  return SpecReader(*document, source).Read();
}

}  // namespace blockserve
