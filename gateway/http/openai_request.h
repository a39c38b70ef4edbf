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
#include "absl/types/span.h"
#include "blockserve/v1/generation.pb.h"
#include "gateway/http/chat_format.h"
#include "gateway/http/other_servers.h"

namespace blockserve {

// Of one HTTP request: each becomes a generation of its own.
inline constexpr size_t kMaxHttpPrompts = 128;
inline constexpr size_t kMaxHttpMessages = 1024;

struct HttpPrompt {
  std::optional<std::string> text;
  // Given where there is no text; beside a text those that it has been encoded to.
  std::optional<std::vector<int32_t>> ids;
};

struct HttpCompletion {
  bool chat = false;
  std::vector<HttpPrompt> prompts;    // at least one; not for chat
  std::vector<ChatMessage> messages;  // chat alone
  ChatEnd chat_end = ChatEnd::kAnswer;
  // Of each prompt the last so many tokens are taken; -1: as many as fit.
  std::optional<int32_t> truncate_prompt_tokens;
  // Everything but the prompt and max_tokens.
  v1::GenerateRequest request;
  std::optional<int32_t> max_tokens;  // 0 with echo alone
  bool echo = false;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  bool per_block = false;       // one event per block, or what is sent together, not per token
  bool include_worker = false;  // events say which token worker wrote them
  // Events have an `id:` line. Not unasked: OpenAI and vLLM have none, and clients that take every
  // line for data ("vllm bench serve", sglang.bench_serving) fail at it.
  bool include_event_id = false;
  bool return_token_ids = false;
  bool tokens_as_ids = false;  // in log-probabilities tokens are "token_id:17"
  std::vector<RenamedField> renamed;
  std::vector<std::string> unknown_fields;

  int32_t n() const { return request.has_n() ? request.n() : 1; }
};

// INVALID_ARGUMENT, the message beginning with the field's name as the client knows it.
absl::StatusOr<HttpCompletion> ParseCompletion(absl::string_view body, bool chat);

// The field's name in a message of the validator ("stop.max_tokens: …") as OpenAI's clients know it
// ("max_tokens: …").
std::string WithHttpFieldName(absl::string_view message);
// A status of prompt `index` of so many with the names that the client of `wanted` knows.
absl::Status NamedAsGiven(const absl::Status& status, const HttpCompletion& wanted, size_t index,
                          size_t prompts);
// The field that such a message begins with; empty where it begins with none.
std::string FieldOfMessage(absl::string_view message);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_OPENAI_REQUEST_H_
