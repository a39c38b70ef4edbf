// The role format of a model: how a conversation becomes the one text that the model continues.
// docs/http_api.md describes the file.
#ifndef BLOCKSERVE_GATEWAY_HTTP_CHAT_FORMAT_H_
#define BLOCKSERVE_GATEWAY_HTTP_CHAT_FORMAT_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace blockserve {

inline constexpr char kChatFormatFile[] = "chat_format.json";

struct ChatMessage {
  std::string role;
  std::string content;
};

// Where the text ends that the model continues.
enum class ChatEnd {
  kAnswer,             // at the beginning of an answer
  kAfterLastMessage,   // before one would begin
  kWithinLastMessage,  // which is to be continued
};

class ChatFormat {
 public:
  // Errors: INVALID_ARGUMENT naming `source` and the field.
  static absl::StatusOr<ChatFormat> Parse(absl::string_view json, absl::string_view source);
  // The file of a model's folder. NOT_FOUND where there is none: the message is what a client is to
  // be told, which differs where there is a Jinja template instead.
  static absl::StatusOr<ChatFormat> Load(const std::string& model_directory);

  // INVALID_ARGUMENT naming messages[i].role where the format has no such role. What "system" says
  // newer clients have "developer" say: one stands for the other where there is none of it.
  absl::StatusOr<std::string> Render(absl::Span<const ChatMessage> messages,
                                     ChatEnd end = ChatEnd::kAnswer) const;
  // End the answer, beside what the request says.
  const std::vector<std::string>& stop() const { return stop_; }

 private:
  struct Around {
    std::string before;
    std::string after;
  };

  std::string begin_;
  std::map<std::string, Around> roles_;
  std::string answer_;
  std::vector<std::string> stop_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_CHAT_FORMAT_H_
