#include "gateway/http/chat_format.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/read_file.h"
#include "gateway/http/json_fields.h"
#include "gateway/validate.h"

namespace blockserve {
namespace {

bool HasJinjaTemplate(const std::filesystem::path& folder) {
  std::error_code ignored;
  if (std::filesystem::exists(folder / "chat_template.jinja", ignored)) return true;
  absl::StatusOr<std::string> text = ReadFile(folder / "tokenizer_config.json");
  if (!text.ok()) return false;
  const nlohmann::json config = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  return config.is_object() && config.contains("chat_template") &&
         !config["chat_template"].is_null();
}

}  // namespace

absl::StatusOr<ChatFormat> ChatFormat::Parse(absl::string_view json, absl::string_view source) {
  const auto bad = [&](const absl::Status& status) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": ", status.message()));
  };
  absl::StatusOr<nlohmann::json> parsed = ParseJsonObject(json);
  if (!parsed.ok()) return bad(parsed.status());
  ChatFormat format;
  JsonFields fields(*parsed);
  format.begin_ = fields.String("begin").value_or("");
  format.answer_ = fields.String("answer").value_or("");
  if (const nlohmann::json* roles = fields.Find("roles"); roles != nullptr && roles->is_object()) {
    for (const auto& [role, around] : roles->items()) {
      if (!around.is_object()) {
        fields.Fail(absl::StrCat("roles.", role), "must be an object with before and after");
        break;
      }
      JsonFields texts(around, absl::StrCat("roles.", role, "."));
      Around& entry = format.roles_[role];
      entry.before = texts.String("before").value_or("");
      entry.after = texts.String("after").value_or("");
      if (!texts.status().ok()) return bad(texts.status());
      if (const auto unknown = texts.Unknown(); !unknown.empty()) {
        return bad(FieldError(unknown[0], "is not known"));
      }
    }
  }
  if (const nlohmann::json* stop = fields.Find("stop"); stop != nullptr) {
    if (!stop->is_array() || stop->size() > static_cast<size_t>(kMaxStopStrings)) {
      fields.Fail("stop", absl::StrCat("must be a list of at most ", kMaxStopStrings, " strings"));
    } else {
      for (const nlohmann::json& text : *stop) {
        if (!text.is_string() || text.get_ref<const std::string&>().empty() ||
            text.get_ref<const std::string&>().size() > static_cast<size_t>(kMaxStopStringBytes)) {
          fields.Fail("stop", absl::StrCat("must be a list of strings of 1 to ",
                                           kMaxStopStringBytes, " bytes"));
          break;
        }
        format.stop_.push_back(text.get<std::string>());
      }
    }
  }
  if (fields.status().ok() && format.roles_.empty()) {
    fields.Fail("roles", "must be an object with at least one role");
  }
  if (!fields.status().ok()) return bad(fields.status());
  if (const auto unknown = fields.Unknown(); !unknown.empty()) {
    return bad(FieldError(unknown[0], "is not known"));
  }
  return format;
}

absl::StatusOr<ChatFormat> ChatFormat::Load(const std::string& model_directory) {
  const std::filesystem::path folder(model_directory);
  const std::string path = folder / kChatFormatFile;
  absl::StatusOr<std::string> text = ReadFile(path);
  if (text.ok()) return Parse(*text, path);
  if (!absl::IsNotFound(text.status())) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", text.status().message()));
  }
  if (HasJinjaTemplate(folder)) {
    return absl::NotFoundError(
        absl::StrCat("messages: this model has a chat template in Jinja, which blockserve does not "
                     "run; whoever serves it can put the same roles into ",
                     kChatFormatFile));
  }
  return absl::NotFoundError(
      absl::StrCat("messages: this model has no chat format (", kChatFormatFile,
                   " in its folder); it continues text: use /v1/completions"));
}

absl::StatusOr<std::string> ChatFormat::Render(absl::Span<const ChatMessage> messages,
                                               ChatEnd end) const {
  std::string text = begin_;
  for (size_t i = 0; i < messages.size(); ++i) {
    auto found = roles_.find(messages[i].role);
    if (found == roles_.end() && messages[i].role == "developer") found = roles_.find("system");
    if (found == roles_.end()) {
      return FieldError(absl::StrCat("messages[", i, "].role"), "must be one of ",
                        absl::StrJoin(roles_, ", ", [](std::string* out, const auto& entry) {
                          *out += entry.first;
                        }));
    }
    absl::StrAppend(&text, found->second.before, messages[i].content);
    if (end == ChatEnd::kWithinLastMessage && i + 1 == messages.size()) return text;
    text += found->second.after;
  }
  if (end == ChatEnd::kAnswer) text += answer_;
  return text;
}

}  // namespace blockserve
