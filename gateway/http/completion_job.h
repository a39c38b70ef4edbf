// From an HTTP request to what is to be asked of the core.
#ifndef BLOCKSERVE_GATEWAY_HTTP_COMPLETION_JOB_H_
#define BLOCKSERVE_GATEWAY_HTTP_COMPLETION_JOB_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "gateway/generation.h"
#include "gateway/http/chat_format.h"
#include "gateway/http/event_id.h"
#include "gateway/http/openai_answer.h"
#include "gateway/http/openai_request.h"
#include "rpc/http/message.h"

namespace blockserve {

class RequestValidator;

// What is to be done for one prompt.
struct HttpPromptJob {
  std::vector<int32_t> ids;                     // of the prompt
  std::string text;                             // echoed
  std::optional<ScoringRequest> scoring;        // echo with log-probabilities
  std::optional<GenerationRequest> generation;  // none where max_tokens is 0
};

// The id that the client gives the request, or a new one.
std::string RequestIdOf(const HttpRequest& request);

struct HttpCompletionJob {
  HttpCompletion wanted;  // but for its prompts, which are in `prompts`
  OpenAiHead head;
  std::string request_id;
  uint64_t seed = 0;                  // the events' ids tell it, so that a stream can be made again
  std::optional<HttpEventId> resume;  // seed and request id are its
  std::string prompts_hash;           // HttpEventId::prompts, where there are ids
  std::vector<HttpPromptJob> prompts;
  v1::GetModelResponse model;  // as it was served when the request came
};

// What making a job needs to know; all of it outlives the call.
struct HttpJobContext {
  const RequestValidator& validator;
  const absl::StatusOr<ChatFormat>& chat_format;
  // Whether the key of this name may ask for this priority; null: any may.
  const std::function<absl::Status(absl::string_view name, uint32_t priority)>& check_priority;
  // That of a request which names none; null: normal.
  const std::function<uint32_t(absl::string_view name)>& default_priority;
  v1::GetModelResponse model;
  absl::Time now;
};
// Errors name the field or header as HTTP's clients know it.
absl::StatusOr<HttpCompletionJob> MakeCompletionJob(const HttpJobContext& context,
                                                    const HttpRequest& request, bool chat,
                                                    const std::string& key_name);

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_COMPLETION_JOB_H_
