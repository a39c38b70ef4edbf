// One completion over HTTP: from the parsed request through the core to an answer or a stream of
// events.
#ifndef BLOCKSERVE_GATEWAY_HTTP_COMPLETION_CALL_H_
#define BLOCKSERVE_GATEWAY_HTTP_COMPLETION_CALL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/mutex.h"
#include "gateway/generation.h"
#include "gateway/http/completion_job.h"
#include "gateway/http/openai_answer.h"
#include "rpc/http/exchange.h"

namespace blockserve {

// Belongs to the exchange's thread; the core's events reach it through a queue. A stream's events
// that wait are bounded: from kWindow blocks on the core is told not to go on, and each choice adds
// at most the block that is under way.
class CompletionCall final : public std::enable_shared_from_this<CompletionCall> {
 public:
  static constexpr int64_t kWindow = 16;

  // `core` and `tokenizer` (may be null) must outlive it.
  static void Start(GenerationCore* core, const Tokenizer* tokenizer,
                    std::shared_ptr<HttpExchange> exchange, HttpCompletionJob job);

 private:
  struct BlockEvent {
    v1::Output output;
    OutputDetail detail;
  };
  struct DoneEvent {
    absl::Status status;
    v1::Usage usage;
  };
  using Event = std::variant<v1::Started, BlockEvent, v1::Finished, DoneEvent,
                             absl::StatusOr<v1::ScoreResponse>>;
  class Sink;

  // One choice of one prompt.
  struct Choice {
    std::optional<OpenAiLogprobs> logprobs;
    int64_t tokens = 0;  // generated so far
    bool begun = false;  // an event, or the answer, has its echo and role
    std::string text;    // of a whole answer
    std::vector<int32_t> ids;
    std::optional<BlockEvent> last_block;  // waits for what finishes it
    std::optional<v1::Finished> finished;
    std::string worker;
  };
  struct Prompt {
    HttpPromptJob job;
    GenerationId running = 0;  // in the core; 0: nothing
    std::optional<v1::ScoreResponse> score;
    OpenAiUsage usage;
    bool done = false;
  };

  CompletionCall(GenerationCore* core, const Tokenizer* tokenizer,
                 std::shared_ptr<HttpExchange> exchange, HttpCompletionJob job);

  // On the core's thread.
  void Enqueue(size_t prompt, Event event);
  bool WantsMore();

  void Begin();
  void Generate(size_t prompt);
  void HandleEvents();
  void Handle(size_t prompt, Event event);
  // The ids of what serves it are known.
  void Bound(absl::string_view model_id, absl::string_view block_id, absl::string_view token_id);
  void OnBlock(size_t prompt, BlockEvent block);
  void OnScore(size_t prompt, absl::StatusOr<v1::ScoreResponse> response);
  void PromptDone(size_t prompt);
  void EndWhenDone();

  void TakeBlock(size_t prompt, const BlockEvent& block, const v1::Finished* finished);
  void WriteEvent(size_t prompt, const BlockEvent& block, size_t begin, size_t end,
                  absl::string_view text, const v1::Finished* finished);
  // What comes before a choice's first token: echoed text and its log-probabilities.
  void BeginChoice(size_t prompt, Choice& choice, std::string& text);
  void EchoAlone(size_t prompt);
  void BeginStream();
  void Flush();
  // So many blocks are off our hands.
  void ReleaseWindow(int64_t blocks);

  void Fail(const absl::Status& status);
  void OnLost(HttpLoss loss);
  void CancelAll(const absl::Status& why);
  void SendAnswer();
  OpenAiUsage TotalUsage() const;
  std::string EventId() const;
  Choice& ChoiceOf(size_t prompt, uint32_t choice) {
    return choices_[prompt * static_cast<size_t>(n_) + choice];
  }

  GenerationCore* const core_;
  const Tokenizer* const tokenizer_;
  const std::shared_ptr<HttpExchange> exchange_;
  const HttpCompletion wanted_;
  const v1::GetModelResponse model_;
  const std::string request_id_;
  const uint64_t seed_;
  const std::optional<HttpEventId> resume_;
  const int32_t n_;
  bool event_per_token_ = true;
  OpenAiHead head_;
  std::string tiers_;  // hash of the ids of model and tiers
  std::vector<Prompt> prompts_;
  std::vector<Choice> choices_;  // [prompts, n]
  std::optional<OpenAiEvents> events_;
  bool streaming_ = false;  // the stream's head is written
  bool over_ = false;
  std::string out_;             // events not yet given to the exchange
  int64_t handled_blocks_ = 0;  // whose events are in out_
  int64_t written_blocks_ = 0;  // whose events are with the exchange

  Mutex mutex_;
  std::deque<std::pair<size_t, Event>> queue_ ABSL_GUARDED_BY(mutex_);
  bool posted_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // nothing is wanted any more
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;  // the core was told not to go on
  int64_t window_ ABSL_GUARDED_BY(mutex_) = 0;   // blocks that have not reached the network
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_HTTP_COMPLETION_CALL_H_
