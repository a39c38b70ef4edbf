// blockserve tokenize and detokenize: the tokenizer of a model folder or of a server.
#include <cstdio>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "app/command.h"
#include "app/source.h"
#include "client/client.h"
#include "common/program.h"
#include "common/utf8.h"
#include "model/tokenizer.h"

namespace blockserve {
namespace {

// No engine is loaded for a folder: only its tokenizer.json is read.
class TokenizerSource {
 public:
  void AddFlags(FlagTable& flags) {
    flags.Add("model", "folder of a model; its tokenizer.json is read", &model_);
    server_.AddFlags(flags);
  }
  absl::Status Validate() const {
    if (model_.has_value() == server_.addresses.has_value()) {
      return absl::InvalidArgumentError("give one of --model and --server");
    }
    return server_.Validate();
  }
  // `flag` is where the text is from.
  absl::StatusOr<std::vector<int32_t>> Encode(const std::string& text, absl::string_view flag) {
    if (server_.addresses.has_value()) {
      // Else protobuf complains on standard error, in words of its own.
      if (!IsValidUtf8(text)) {
        return absl::InvalidArgumentError(absl::StrCat(flag, " is not valid UTF-8"));
      }
      if (std::ssize(text) > kMostTextBytes) {
        return absl::InvalidArgumentError(
            absl::StrCat(flag, " has ", text.size(), " bytes; ", kMostTextBytes,
                         " are the most that a server tokenizes as one text"));
      }
      auto client = server_.Connect();
      if (!client.ok()) return client.status();
      auto ids = (*client)->Tokenize(text);
      return ids.ok() ? std::move(ids) : server_.Explain(ids.status());
    }
    auto tokenizer = LoadTokenizer(*model_);
    if (!tokenizer.ok()) return tokenizer.status();
    return (*tokenizer)->Encode(text);
  }
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) {
    if (server_.addresses.has_value()) {
      auto client = server_.Connect();
      if (!client.ok()) return client.status();
      auto text = (*client)->Detokenize(ids, skip_special_tokens);
      return text.ok() ? std::move(text) : server_.Explain(NamingTokens(text.status()));
    }
    auto tokenizer = LoadTokenizer(*model_);
    if (!tokenizer.ok()) return tokenizer.status();
    auto text = (*tokenizer)->Decode(ids, skip_special_tokens);
    return text.ok() ? std::move(text) : NamingTokens(text.status());
  }

 private:
  static absl::Status NamingTokens(const absl::Status& status) {
    if (!absl::IsInvalidArgument(status)) return status;
    return absl::InvalidArgumentError(absl::StrCat("--tokens: ", status.message()));
  }

  std::optional<std::string> model_;
  ServerFlags server_;
};

constexpr absl::string_view kTokenize = "blockserve tokenize";
constexpr absl::string_view kDetokenize = "blockserve detokenize";

}  // namespace

int RunTokenize(const Arguments& arguments) {
  TokenizerSource source;
  std::optional<std::string> text;
  std::optional<std::string> file;
  std::string format = "text";
  FlagTable flags;
  source.AddFlags(flags);
  flags.Add("text", "the text", &text);
  flags.Add("file", "or the file that holds it; -: standard input", &file);
  flags.AddChoice("format", "text (1,2,3) or json", {"text", "json"}, &format);
  if (std::optional<int> exit = flags.ParseCommandLine(
          kTokenize,
          "blockserve tokenize (--model DIR | --server ADDRESS) (--text TEXT | --file FILE)\n"
          "Prints the token ids of a text.",
          arguments)) {
    return *exit;
  }
  absl::Status status = source.Validate();
  if (status.ok() && text.has_value() == file.has_value()) {
    status = absl::InvalidArgumentError("give one of --text and --file");
  }
  if (!status.ok()) return ReportUsageError(kTokenize, status);
  std::string flag = "--text";
  if (file.has_value()) {
    absl::StatusOr<std::string> content = ReadInput("--file", *file);
    if (!content.ok()) return ReportFailure(kTokenize, content.status());
    text = *std::move(content);
    flag = absl::StrCat("--file ", *file);
  }
  absl::StatusOr<std::vector<int32_t>> ids = source.Encode(*text, flag);
  if (!ids.ok()) return ReportFailure(kTokenize, ids.status());
  if (format == "json") {
    std::puts(nlohmann::ordered_json{{"tokens", *ids}}.dump().c_str());
  } else {
    std::puts(absl::StrJoin(*ids, ",").c_str());
  }
  return ReportFailure(kTokenize, absl::OkStatus());
}

int RunDetokenize(const Arguments& arguments) {
  TokenizerSource source;
  std::optional<std::vector<int32_t>> tokens;
  bool skip_special_tokens = false;
  std::string format = "text";
  FlagTable flags;
  source.AddFlags(flags);
  flags.AddTokens("tokens", "token ids: 1,2,3", &tokens);
  flags.Add("skip_special_tokens", "leave out end-of-text and the like", &skip_special_tokens);
  flags.AddChoice("format", "text or json", {"text", "json"}, &format);
  if (std::optional<int> exit = flags.ParseCommandLine(
          kDetokenize,
          "blockserve detokenize (--model DIR | --server ADDRESS) --tokens 1,2,3\n"
          "Prints the text of token ids.",
          arguments)) {
    return *exit;
  }
  absl::Status status = source.Validate();
  if (status.ok() && !tokens.has_value()) {
    status = absl::InvalidArgumentError("--tokens is missing");
  }
  if (!status.ok()) return ReportUsageError(kDetokenize, status);
  absl::StatusOr<std::string> text = source.Decode(*tokens, skip_special_tokens);
  if (!text.ok()) return ReportFailure(kDetokenize, text.status());
  if (format == "json") {
    std::puts(nlohmann::ordered_json{{"text", *text}}.dump().c_str());
  } else {
    std::fwrite(text->data(), 1, text->size(), stdout);
    std::fputc('\n', stdout);
  }
  return ReportFailure(kDetokenize, absl::OkStatus());
}

}  // namespace blockserve
