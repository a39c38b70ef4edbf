// What clients of OpenAI's interface send to be completed: from JSON to the fields of the public
// proto. Values are checked here for what JSON can get wrong, and for their ranges where every
// front's are (gateway/validate.h).
#ifndef BLOCKSERVE_GATEWAY_HTTP_OPENAI_REQUEST_H_
#define BLOCKSERVE_GATEWAY_HTTP_OPENAI_REQUEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "blockserve/v1/generation.pb.h"
#include "gateway/http/chat_format.h"

namespace blockserve {

// Of one HTTP request: each becomes a generation of its own.
inline constexpr size_t kMaxHttpPrompts = 128;
inline constexpr size_t kMaxHttpMessages = 1024;

struct HttpPrompt {
  std::optional<std::string> text;
  std::vector<int32_t> ids;  // where there is no text
};

struct HttpCompletion {
  bool chat = false;
  std::vector<HttpPrompt> prompts;    // at least one; not for chat
  std::vector<ChatMessage> messages;  // chat alone
  // Everything but the prompt and max_tokens.
  v1::GenerateRequest request;
  std::optional<int32_t> max_tokens;  // 0 with echo alone
  bool echo = false;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool per_block = false;       // one event per block, or what is sent together, not per token
  bool include_worker = false;  // events say which token worker wrote them
  bool return_token_ids = false;
  std::vector<std::string> unknown_fields;
};

// INVALID_ARGUMENT, the message beginning with the field's name as the client knows it.
absl::StatusOr<HttpCompletion> ParseCompletion(absl::string_view body, bool chat);

// The field's name in a message of the validator ("stop.max_tokens: …") as OpenAI's clients know it
// ("max_tokens: …").
std::string WithHttpFieldName(absl::string_view message);
// The field that such a message begins with; empty where it begins with none.
std::string FieldOfMessage(absl::string_view message);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_OPENAI_REQUEST_H_
