#include "gateway/http/completion_call.h"

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "gateway/gathering_sink.h"
#include "gateway/stop_string_sink.h"

namespace blockserve {

class CompletionCall::Sink final : public GenerationSink, public ScoringSink {
 public:
  Sink(std::shared_ptr<CompletionCall> call, size_t prompt)
      : call_(std::move(call)), prompt_(prompt) {}

  using ScoringSink::OnStarted;  // of a text to be scored there is nothing to tell
  void OnStarted(v1::Started started) override { call_->Enqueue(prompt_, std::move(started)); }
  void OnOutput(v1::Output output, OutputDetail detail) override {
    call_->Enqueue(prompt_, CompletionAnswer::Block{std::move(output), std::move(detail)});
  }
  void OnFinished(v1::Finished finished) override { call_->Enqueue(prompt_, std::move(finished)); }
  void OnDone(absl::Status status, v1::Usage usage) override {
    call_->Enqueue(prompt_, DoneEvent{std::move(status), std::move(usage)});
  }
  void OnDone(absl::StatusOr<v1::ScoreResponse> response) override {
    call_->Enqueue(prompt_, std::move(response));
  }
  bool WantsMore() const override { return call_->WantsMore(); }

 private:
  const std::shared_ptr<CompletionCall> call_;
  const size_t prompt_;
};

void CompletionCall::Start(GenerationCore* core, const Tokenizer* tokenizer,
                           std::shared_ptr<HttpExchange> exchange, HttpCompletionJob job) {
  std::shared_ptr<CompletionCall> call(
      new CompletionCall(core, tokenizer, std::move(exchange), std::move(job)));
  call->Begin();
}

CompletionCall::CompletionCall(GenerationCore* core, const Tokenizer* tokenizer,
                               std::shared_ptr<HttpExchange> exchange, HttpCompletionJob job)
    : core_(core),
      exchange_(std::move(exchange)),
      job_(std::move(job)),
      answer_(tokenizer, job_),
      prompts_(job_.prompts.size()) {}

void CompletionCall::Begin() {
  exchange_->set_on_lost([self = shared_from_this()](HttpLoss loss) { self->OnLost(loss); });
  if (job_.wanted.stream) {
    exchange_->set_on_drained([self = shared_from_this()] {
      self->ReleaseWindow(std::exchange(self->written_blocks_, 0));
    });
  }
  for (size_t i = 0; i < prompts_.size(); ++i) {
    HttpPromptJob& job = job_.prompts[i];
    if (job.scoring.has_value()) {
      prompts_[i].running =
          core_->Score(*std::move(job.scoring), std::make_shared<Sink>(shared_from_this(), i));
    } else if (job.generation.has_value()) {
      Generate(i);
    } else {
      answer_.Bind(job_.model.model_id(), job_.model.block_numeric_id(),
                   job_.model.token_numeric_id());
      PromptDone(i);
    }
  }
  EndWhenDone();
}

void CompletionCall::Generate(size_t prompt) {
  GenerationRequest& request = *job_.prompts[prompt].generation;
  std::shared_ptr<GenerationSink> sink =
      WithStopStrings(std::make_shared<Sink>(shared_from_this(), prompt), request);
  // A whole answer is gathered here.
  if (job_.wanted.stream) sink = Gathering(std::move(sink), request.stream_interval, request.n);
  prompts_[prompt].running = core_->Generate(std::move(request), std::move(sink));
}

void CompletionCall::Enqueue(size_t prompt, Event event) {
  const bool stream = job_.wanted.stream;
  // A whole answer is made when everything is there: no need to wake the thread before.
  const bool ends = std::holds_alternative<DoneEvent>(event) ||
                    std::holds_alternative<absl::StatusOr<v1::ScoreResponse>>(event);
  {
    MutexLock lock(&mutex_);
    if (closed_) return;
    if (stream && std::holds_alternative<CompletionAnswer::Block>(event)) ++window_;
    queue_.emplace_back(prompt, std::move(event));
    if (posted_ || !(stream || ends)) return;
    posted_ = true;
  }
  exchange_->Post([self = shared_from_this()] { self->HandleEvents(); });
}

bool CompletionCall::WantsMore() {
  if (!job_.wanted.stream) return true;
  MutexLock lock(&mutex_);
  if (window_ < kWindow) return true;
  paused_ = true;
  return false;
}

void CompletionCall::HandleEvents() {
  std::deque<std::pair<size_t, Event>> events;
  {
    MutexLock lock(&mutex_);
    posted_ = false;
    events.swap(queue_);
  }
  for (auto& [prompt, event] : events) {
    if (over_) return;
    Handle(prompt, std::move(event));
  }
  if (over_) return;
  EndWhenDone();
  Flush();
}

void CompletionCall::Handle(size_t prompt, Event event) {
  if (auto* started = std::get_if<v1::Started>(&event)) {
    answer_.Bind(started->model_id(), started->block_numeric_id(), started->token_numeric_id());
  } else if (auto* block = std::get_if<CompletionAnswer::Block>(&event)) {
    if (job_.wanted.stream) ++handled_blocks_;
    answer_.AddBlock(prompt, std::move(*block));
  } else if (auto* finished = std::get_if<v1::Finished>(&event)) {
    FailUnlessOk(answer_.Finish(prompt, std::move(*finished)));
  } else if (auto* done = std::get_if<DoneEvent>(&event)) {
    OnGenerated(prompt, *done);
  } else {
    OnScored(prompt, std::get<absl::StatusOr<v1::ScoreResponse>>(std::move(event)));
  }
}

void CompletionCall::OnGenerated(size_t prompt, const DoneEvent& done) {
  prompts_[prompt].running = 0;
  if (!done.status.ok()) return FailOfPrompt(prompt, done.status);
  answer_.AddUsage(prompt, done.usage);
  PromptDone(prompt);
}

void CompletionCall::OnScored(size_t prompt, absl::StatusOr<v1::ScoreResponse> response) {
  prompts_[prompt].running = 0;
  if (!response.ok()) return FailOfPrompt(prompt, response.status());
  answer_.Bind(response->model_id(), response->block_numeric_id(), response->token_numeric_id());
  answer_.AddScore(prompt, *std::move(response));
  if (job_.prompts[prompt].generation.has_value()) return Generate(prompt);
  PromptDone(prompt);
}

void CompletionCall::PromptDone(size_t prompt) {
  prompts_[prompt].done = true;
  if (!job_.prompts[prompt].generation.has_value()) answer_.EchoAlone(prompt);
}

void CompletionCall::EndWhenDone() {
  for (const Prompt& prompt : prompts_) {
    if (!prompt.done) return;
  }
  over_ = true;
  if (!job_.wanted.stream) {
    HttpResponse response;
    response.headers = {{kRequestIdHeader, job_.request_id}};
    response.body = answer_.TakeWhole();
    return exchange_->Respond(std::move(response));
  }
  {
    MutexLock lock(&mutex_);
    closed_ = true;
  }
  Write(answer_.TakeLastEvents());
  exchange_->EndStream();
}

void CompletionCall::Write(std::string events) {
  if (!std::exchange(streaming_, true)) {
    HttpResponse head;
    head.content_type = "text/event-stream; charset=utf-8";
    head.headers = {{"Cache-Control", "no-cache"},
                    {"X-Accel-Buffering", "no"},
                    {kRequestIdHeader, job_.request_id}};
    exchange_->StartStream(std::move(head));
  }
  exchange_->Write(std::move(events));
}

void CompletionCall::Flush() {
  std::string events = answer_.TakeEvents();
  // Blocks whose events are left out, or wait for their end, take no room on the way out.
  if (events.empty()) return ReleaseWindow(std::exchange(handled_blocks_, 0));
  written_blocks_ += std::exchange(handled_blocks_, 0);
  Write(std::move(events));
}

void CompletionCall::ReleaseWindow(int64_t blocks) {
  if (blocks == 0) return;
  bool resume = false;
  {
    MutexLock lock(&mutex_);
    window_ -= blocks;
    // Not at every block, so that the core is not woken for each.
    if (paused_ && window_ <= kWindow / 2) {
      paused_ = false;
      resume = true;
    }
  }
  if (!resume || over_) return;
  for (const Prompt& prompt : prompts_) {
    if (prompt.running != 0) core_->Resume(prompt.running);
  }
}

void CompletionCall::FailUnlessOk(const absl::Status& status) {
  if (!status.ok()) Fail(status);
}

void CompletionCall::FailOfPrompt(size_t prompt, const absl::Status& status) {
  Fail(NamedAsGiven(status, job_.wanted, prompt, prompts_.size()));
}

void CompletionCall::Fail(const absl::Status& status) {
  over_ = true;
  // The other prompts of its list: what became of the one became of all.
  CancelAll(status);
  std::string events = answer_.TakeEvents();
  if (streaming_ || !events.empty()) {
    Write(absl::StrCat(events, OpenAiErrorEvent(status)));
    return exchange_->EndStream();
  }
  HttpResponse response = OpenAiError(status);
  response.headers.emplace_back(kRequestIdHeader, job_.request_id);
  exchange_->Respond(std::move(response));
}

void CompletionCall::OnLost(HttpLoss loss) {
  if (std::exchange(over_, true)) return;
  CancelAll(loss == HttpLoss::kServerStops ? absl::UnavailableError("the gateway is stopping")
                                           : ClientHasGone());
  switch (loss) {
    case HttpLoss::kClientGone:
      LogInfo(
          absl::StrCat("request ", job_.request_id, ": 499, the client has closed the connection"));
      return;
    case HttpLoss::kClientSlow:
      LogInfo(
          absl::StrCat("request ", job_.request_id, ": 499, cut off: the client does not read"));
      return;
    case HttpLoss::kServerStops:
      LogInfo(absl::StrCat("request ", job_.request_id, ": cut off at the end of the drain time"));
      return;
  }
}

void CompletionCall::CancelAll(const absl::Status& why) {
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    queue_.clear();
  }
  for (Prompt& prompt : prompts_) {
    if (prompt.running != 0) core_->Cancel(std::exchange(prompt.running, 0), why);
  }
}

}  // namespace blockserve
