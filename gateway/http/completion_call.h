// One completion over HTTP: from the parsed request through the core to an answer or a stream of
// events.
#ifndef BLOCKSERVE_GATEWAY_HTTP_COMPLETION_CALL_H_
#define BLOCKSERVE_GATEWAY_HTTP_COMPLETION_CALL_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "common/mutex.h"
#include "gateway/generation.h"
#include "gateway/http/completion_answer.h"
#include "gateway/http/completion_job.h"
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
  struct DoneEvent {
    absl::Status status;
    v1::Usage usage;
  };
  using Event = std::variant<v1::Started, CompletionAnswer::Block, v1::Finished, DoneEvent,
                             absl::StatusOr<v1::ScoreResponse>>;
  class Sink;

  // What becomes of a prompt of the job.
  struct Prompt {
    GenerationId running = 0;  // in the core; 0: nothing
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
  void OnGenerated(size_t prompt, const DoneEvent& done);
  void OnScored(size_t prompt, absl::StatusOr<v1::ScoreResponse> response);
  void PromptDone(size_t prompt);
  void EndWhenDone();

  // Gives events to the exchange, and with the first ones the stream's head.
  void Write(std::string events);
  void Flush();
  // So many blocks are off our hands.
  void ReleaseWindow(int64_t blocks);

  // Unless it is OK, the end of the call.
  void FailUnlessOk(const absl::Status& status);
  // A status of the core's.
  void FailOfPrompt(size_t prompt, const absl::Status& status);
  void Fail(const absl::Status& status);
  void OnLost(HttpLoss loss);
  void CancelAll(const absl::Status& why);

  GenerationCore* const core_;
  const std::shared_ptr<HttpExchange> exchange_;
  HttpCompletionJob job_;
  CompletionAnswer answer_;  // of job_
  std::vector<Prompt> prompts_;
  bool streaming_ = false;  // the stream's head is written
  bool over_ = false;
  int64_t handled_blocks_ = 0;  // whose events are in answer_
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
