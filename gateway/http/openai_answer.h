// What clients of OpenAI's interface get: whole answers, and the events of a stream.
#ifndef BLOCKSERVE_GATEWAY_HTTP_OPENAI_ANSWER_H_
#define BLOCKSERVE_GATEWAY_HTTP_OPENAI_ANSWER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "blockserve/v1/generation.pb.h"
#include "model/tokenizer.h"
#include "rpc/http/message.h"

namespace blockserve {

// {"error": {"message", "type", "param", "code"}}.
HttpResponse OpenAiError(int status, absl::string_view message, absl::string_view param = "",
                         absl::string_view code = "");
// With the status code's HTTP status (common/status_catalogue.h), and Retry-After where trying
// again may help, X-Should-Retry where it must not be tried. The field's name at the beginning of
// the message becomes `param`.
HttpResponse OpenAiError(const absl::Status& status);

// A token as text: its own where that is whole characters, else "bytes:\xE2\x80"; "token_id:17"
// where it has none.
std::string TokenText(const Tokenizer* tokenizer, int32_t id);

// What an answer's parts have in common.
struct OpenAiHead {
  bool chat = false;
  std::string id;  // "cmpl-…" or "chatcmpl-…"
  int64_t created = 0;
  std::string model;
  std::string fingerprint;
};

// Collects the log-probabilities of consecutive tokens in OpenAI's form for completions or chat.
class OpenAiLogprobs {
 public:
  // `tokenizer` may be null. `tokens_as_ids`: every token is written "token_id:17".
  OpenAiLogprobs(const Tokenizer* tokenizer, bool chat, bool tokens_as_ids = false);

  // What is added from now on was generated: special tokens have no text, and the first one comes
  // after so many characters, of which one may be for it to complete.
  void BeginOutput(int64_t characters_before);
  void Add(int32_t id, const v1::TokenLogprobs& logprobs);
  // The JSON object of what was added since the last call.
  std::string Take();

 private:
  void AddCompletion(int32_t id, const v1::TokenLogprobs& logprobs);
  void AddChat(int32_t id, const v1::TokenLogprobs& logprobs);

  // Where the token begins, in characters; the next one begins after its text.
  int64_t Advance(int32_t id);
  std::string Name(int32_t id) const { return TokenText(names_, id); }

  const Tokenizer* tokenizer_;
  const Tokenizer* names_;  // null: tokens have none
  bool chat_;
  std::optional<StreamDecoder> decoder_;
  int64_t offset_ = 0;  // characters before the next token
  // Elements of the lists, with commas between them.
  std::string tokens_;
  std::string values_;
  std::string best_;
  std::string offsets_;
};

struct OpenAiUsage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;
};
void AppendUsage(std::string& out, const OpenAiUsage& usage);

// The fields of a choice in a stream's event or in a whole answer.
struct OpenAiChoice {
  size_t index = 0;
  absl::string_view text;
  std::string logprobs;  // JSON; empty: null
  const v1::Finished* finished = nullptr;
  bool first = false;  // of the choice's events: names the role
  std::optional<absl::Span<const int32_t>> token_ids;
  std::optional<absl::Span<const int32_t>> prompt_token_ids;
  std::optional<absl::string_view> worker;
};

// One event of a stream, in server-sent form. `event_id`: of its `id:` line, of which there is none
// where it is empty; `usage`: null where the events have none.
class OpenAiEvents {
 public:
  explicit OpenAiEvents(OpenAiHead head, bool usage_field);
  void AppendChoice(std::string& out, absl::string_view event_id, const OpenAiChoice& choice,
                    const OpenAiUsage* usage) const;
  // The last one before [DONE], without choices.
  void AppendUsageOnly(std::string& out, absl::string_view event_id,
                       const OpenAiUsage& usage) const;

 private:
  void Begin(std::string& out, absl::string_view event_id) const;

  const OpenAiHead head_;
  const bool usage_field_;
  std::string beginning_;  // of every event's data, up to "choices":[
};

inline constexpr absl::string_view kSseDone = "data: [DONE]\n\n";
// An error in the middle of a stream.
std::string OpenAiErrorEvent(const absl::Status& status);

// A whole answer.
std::string OpenAiAnswer(const OpenAiHead& head, absl::Span<const OpenAiChoice> choices,
                         const OpenAiUsage& usage);

// Characters (code points) of valid UTF-8.
int64_t CountCharacters(absl::string_view text);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_OPENAI_ANSWER_H_
