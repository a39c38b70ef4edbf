// What the client of a completion is sent: made of the core's events, as the events of a stream or
// as one whole answer.
#ifndef BLOCKSERVE_GATEWAY_HTTP_COMPLETION_ANSWER_H_
#define BLOCKSERVE_GATEWAY_HTTP_COMPLETION_ANSWER_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "gateway/generation.h"
#include "gateway/http/completion_job.h"
#include "gateway/http/event_id.h"
#include "gateway/http/openai_answer.h"
#include "model/tokenizer.h"

namespace blockserve {

// Knows neither the core nor the connection, and no threads. `prompt` is an index into the job's.
class CompletionAnswer {
 public:
  struct Block {
    v1::Output output;
    OutputDetail detail;
  };

  // `tokenizer` (may be null) and `job` must outlive it.
  CompletionAnswer(const Tokenizer* tokenizer, const HttpCompletionJob& job);

  // Who serves it, all of it; to be told before any block.
  void Bind(absl::string_view model_id, absl::string_view block_numeric_id,
            absl::string_view token_numeric_id);
  // The scores of an echoed prompt, before its first block.
  void AddScore(size_t prompt, v1::ScoreResponse score);
  void AddBlock(size_t prompt, Block block);
  // INVALID_ARGUMENT where it goes on with a stream that had more of the choice than there is.
  absl::Status Finish(size_t prompt, v1::Finished finished);
  void AddUsage(size_t prompt, const v1::Usage& usage);
  // The prompt is all that there is of its choices.
  void EchoAlone(size_t prompt);

  // Of a stream: the events that have been made since the last call; the last ones, after which
  // nothing is added.
  std::string TakeEvents();
  std::string TakeLastEvents();
  // Of a whole answer, when every choice is finished: the body. Takes what was gathered.
  std::string TakeWhole();

 private:
  // One choice of one prompt.
  struct Choice {
    std::optional<OpenAiLogprobs> logprobs;
    bool begun = false;  // an event, or the answer, has its echo and role
    std::string text;    // of a whole answer
    std::vector<int32_t> ids;
    std::optional<Block> last_block;  // waits for what finishes it
    std::optional<v1::Finished> finished;
  };

  size_t IndexOf(size_t prompt, uint32_t choice) const {
    return prompt * static_cast<size_t>(job_.wanted.n()) + choice;
  }
  // What comes before a choice's first token: log-probabilities of the echo, and its text, which is
  // returned.
  std::string BeginChoice(size_t index);
  // `finished`: null unless it is the choice's last block.
  void Gather(size_t index, const Block& block, const v1::Finished* finished);
  void WriteEvents(size_t index, const Block& block, const v1::Finished* finished);
  void WriteEvent(size_t index, const Block& block, size_t begin, size_t end,
                  absl::string_view text, const v1::Finished* finished);
  std::string EventId() const;  // empty where the client wants none
  OpenAiEvents& Events();
  OpenAiUsage TotalUsage() const;

  const Tokenizer* const tokenizer_;
  const HttpCompletionJob& job_;
  bool event_per_token_ = true;
  OpenAiHead head_;
  HttpEventId id_;                                        // of the next event
  std::vector<std::optional<v1::ScoreResponse>> scores_;  // [prompts]
  std::vector<OpenAiUsage> usage_;                        // [prompts]
  std::vector<Choice> choices_;                           // [prompts, n]
  std::optional<OpenAiEvents> events_;                    // once the head is complete
  std::string out_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_COMPLETION_ANSWER_H_
