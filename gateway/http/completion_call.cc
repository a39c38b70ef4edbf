#include "gateway/http/completion_call.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "gateway/gathering_sink.h"
#include "gateway/http/json_fields.h"
#include "gateway/stop_string_sink.h"

namespace blockserve {
namespace {

// FNV-1a, folded: the same in every process.
uint32_t ShortHash(absl::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return static_cast<uint32_t>(hash ^ (hash >> 32));
}

}  // namespace

class CompletionCall::Sink final : public GenerationSink, public ScoringSink {
 public:
  Sink(std::shared_ptr<CompletionCall> call, size_t prompt)
      : call_(std::move(call)), prompt_(prompt) {}

  void OnStarted(v1::Started started) override { call_->Enqueue(prompt_, std::move(started)); }
  void OnOutput(v1::Output output, OutputDetail detail) override {
    call_->Enqueue(prompt_, BlockEvent{std::move(output), std::move(detail)});
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
      tokenizer_(tokenizer),
      exchange_(std::move(exchange)),
      wanted_(std::move(job.wanted)),
      model_(std::move(job.model)),
      request_id_(std::move(job.request_id)),
      seed_(job.seed),
      resume_(std::move(job.resume)),
      n_(wanted_.request.has_n() ? wanted_.request.n() : 1),
      event_per_token_(!wanted_.per_block),
      head_(std::move(job.head)) {
  for (HttpPromptJob& prompt : job.prompts) {
    Prompt& made = prompts_.emplace_back();
    made.job = std::move(prompt);
    made.usage.prompt_tokens = static_cast<int64_t>(made.job.ids.size());
    if (made.job.generation.has_value() && made.job.generation->stream_interval > 1) {
      event_per_token_ = false;
    }
  }
  choices_.resize(prompts_.size() * static_cast<size_t>(n_));
}

void CompletionCall::Begin() {
  exchange_->set_on_lost([self = shared_from_this()](HttpLoss loss) { self->OnLost(loss); });
  if (wanted_.stream) {
    exchange_->set_on_drained([self = shared_from_this()] {
      self->ReleaseWindow(std::exchange(self->written_blocks_, 0));
    });
  }
  for (size_t i = 0; i < prompts_.size(); ++i) {
    Prompt& prompt = prompts_[i];
    if (prompt.job.scoring.has_value()) {
      prompt.running = core_->Score(*std::move(prompt.job.scoring),
                                    std::make_shared<Sink>(shared_from_this(), i));
    } else if (prompt.job.generation.has_value()) {
      Generate(i);
    } else {
      Bound(model_.model_id(), model_.block_numeric_id(), model_.token_numeric_id());
      PromptDone(i);
    }
  }
  EndWhenDone();
}

void CompletionCall::Generate(size_t prompt) {
  GenerationRequest& request = *prompts_[prompt].job.generation;
  std::shared_ptr<GenerationSink> sink =
      WithStopStrings(std::make_shared<Sink>(shared_from_this(), prompt), request);
  // A whole answer is gathered here.
  if (wanted_.stream) sink = Gathering(std::move(sink), request.stream_interval, request.n);
  prompts_[prompt].running = core_->Generate(std::move(request), std::move(sink));
}

void CompletionCall::Enqueue(size_t prompt, Event event) {
  // A whole answer is made when everything is there: no need to wake the thread before.
  const bool ends = std::holds_alternative<DoneEvent>(event) ||
                    std::holds_alternative<absl::StatusOr<v1::ScoreResponse>>(event);
  {
    MutexLock lock(&mutex_);
    if (closed_) return;
    if (wanted_.stream && std::holds_alternative<BlockEvent>(event)) ++window_;
    queue_.emplace_back(prompt, std::move(event));
    if (posted_ || !(wanted_.stream || ends)) return;
    posted_ = true;
  }
  exchange_->Post([self = shared_from_this()] { self->HandleEvents(); });
}

bool CompletionCall::WantsMore() {
  if (!wanted_.stream) return true;
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
    Bound(started->model_id(), started->block_numeric_id(), started->token_numeric_id());
  } else if (auto* block = std::get_if<BlockEvent>(&event)) {
    OnBlock(prompt, std::move(*block));
  } else if (auto* finished = std::get_if<v1::Finished>(&event)) {
    Choice& choice = ChoiceOf(prompt, finished->choice());
    const BlockEvent last =
        choice.last_block.has_value() ? *std::move(choice.last_block) : BlockEvent();
    choice.last_block.reset();
    TakeBlock(prompt, last, finished);
    const size_t index = prompt * static_cast<size_t>(n_) + finished->choice();
    if (resume_.has_value() && choice.tokens < resume_->tokens[index]) {
      return Fail(FieldError("Last-Event-ID", "is beyond the end of choice ", index));
    }
    choice.finished = std::move(*finished);
  } else if (auto* done = std::get_if<DoneEvent>(&event)) {
    prompts_[prompt].running = 0;
    if (!done->status.ok()) {
      return Fail(NamedAsGiven(done->status, wanted_, prompt, prompts_.size()));
    }
    prompts_[prompt].usage.completion_tokens = done->usage.completion_tokens();
    prompts_[prompt].usage.cached_tokens = done->usage.cached_prompt_tokens();
    PromptDone(prompt);
  } else {
    OnScore(prompt, std::get<absl::StatusOr<v1::ScoreResponse>>(std::move(event)));
  }
}

void CompletionCall::Bound(absl::string_view model_id, absl::string_view block_id,
                           absl::string_view token_id) {
  if (!head_.fingerprint.empty()) return;
  head_.fingerprint = absl::StrCat(block_id, "/", token_id);
  tiers_ = absl::StrCat(
      absl::Hex(ShortHash(absl::StrCat(model_id, "/", head_.fingerprint)), absl::kZeroPad8));
  if (resume_.has_value() && resume_->tiers != tiers_) {
    Fail(absl::FailedPreconditionError(
        "Last-Event-ID: the model or the arithmetic that wrote this stream is not served here"));
  }
}

void CompletionCall::OnScore(size_t prompt, absl::StatusOr<v1::ScoreResponse> response) {
  Prompt& at = prompts_[prompt];
  at.running = 0;
  if (!response.ok()) {
    return Fail(NamedAsGiven(response.status(), wanted_, prompt, prompts_.size()));
  }
  Bound(response->model_id(), response->block_numeric_id(), response->token_numeric_id());
  if (over_) return;
  at.usage.cached_tokens = response->usage().cached_prompt_tokens();
  at.score = *std::move(response);
  if (at.job.generation.has_value()) return Generate(prompt);
  PromptDone(prompt);
}

void CompletionCall::OnBlock(size_t prompt, BlockEvent block) {
  if (wanted_.stream) ++handled_blocks_;
  if (block.detail.ends_choice) {
    ChoiceOf(prompt, block.output.choice()).last_block = std::move(block);
    return;
  }
  TakeBlock(prompt, block, nullptr);
}

void CompletionCall::BeginChoice(size_t prompt, Choice& choice, std::string& text) {
  choice.begun = true;
  const Prompt& at = prompts_[prompt];
  if (wanted_.request.has_logprobs()) {
    choice.logprobs.emplace(tokenizer_, wanted_.chat, wanted_.tokens_as_ids);
    for (int i = 0; at.score.has_value() && i < at.score->tokens_size(); ++i) {
      choice.logprobs->Add(at.score->tokens(i), at.score->logprobs(i));
    }
    choice.logprobs->BeginOutput(wanted_.echo ? CountCharacters(at.job.text) : 0);
  }
  if (wanted_.echo) text = at.job.text;
}

void CompletionCall::TakeBlock(size_t prompt, const BlockEvent& block,
                               const v1::Finished* finished) {
  const v1::Output& output = block.output;
  Choice& choice = ChoiceOf(prompt, finished != nullptr ? finished->choice() : output.choice());
  const size_t size = static_cast<size_t>(output.tokens_size());
  if (!wanted_.stream) {
    std::string echoed;
    if (!choice.begun) BeginChoice(prompt, choice, echoed);
    choice.text += echoed;
    choice.text += output.text();
    if (finished != nullptr) choice.text += finished->text();
    choice.tokens += static_cast<int64_t>(size);
    for (size_t i = 0; i < size; ++i) {
      const int at = static_cast<int>(i);
      if (wanted_.return_token_ids) choice.ids.push_back(output.tokens(at));
      if (choice.logprobs.has_value()) {
        choice.logprobs->Add(output.tokens(at), output.logprobs(at));
      }
    }
    return;
  }
  const absl::string_view text = output.text();
  size_t text_begin = 0;
  size_t end = 0;
  for (size_t begin = 0; begin < size; begin = end) {
    end = event_per_token_ ? begin + 1 : size;
    if (resume_.has_value()) {
      // Another gateway may have cut the stream elsewhere (--stream-interval).
      const size_t index = prompt * static_cast<size_t>(n_) + output.choice();
      const int64_t left = resume_->tokens[index] - choice.tokens;
      if (left > 0) end = std::min(end, begin + static_cast<size_t>(left));
    }
    const bool last = end == size;
    const size_t text_end =
        last ? text.size() : static_cast<size_t>(block.detail.text_ends[end - 1]);
    const absl::string_view piece = text.substr(text_begin, text_end - text_begin);
    text_begin = text_end;
    const v1::Finished* const ends = last ? finished : nullptr;
    if (ends != nullptr && !ends->text().empty()) {
      WriteEvent(prompt, block, begin, end, absl::StrCat(piece, ends->text()), ends);
    } else {
      WriteEvent(prompt, block, begin, end, piece, ends);
    }
  }
}

void CompletionCall::WriteEvent(size_t prompt, const BlockEvent& block, size_t begin, size_t end,
                                absl::string_view text, const v1::Finished* finished) {
  const v1::Output& output = block.output;
  const size_t index = prompt * static_cast<size_t>(n_) + output.choice();
  Choice& choice = choices_[index];
  OpenAiChoice event;
  event.index = index;
  event.first = !choice.begun;
  std::string echoed;
  if (!choice.begun) {
    BeginChoice(prompt, choice, echoed);
    if (wanted_.return_token_ids) event.prompt_token_ids = prompts_[prompt].job.ids;
  }
  if (!echoed.empty()) {
    echoed.append(text.data(), text.size());
    text = echoed;
  }
  event.text = text;
  if (choice.logprobs.has_value()) {
    for (size_t i = begin; i < end; ++i) {
      choice.logprobs->Add(output.tokens(static_cast<int>(i)),
                           output.logprobs(static_cast<int>(i)));
    }
    event.logprobs = choice.logprobs->Take();
  }
  event.finished = finished;
  if (wanted_.return_token_ids) {
    event.token_ids = absl::MakeSpan(output.tokens().data() + begin, end - begin);
  }
  if (wanted_.include_worker) event.worker = output.worker();
  choice.tokens += static_cast<int64_t>(end - begin);
  prompts_[prompt].usage.completion_tokens += static_cast<int64_t>(end - begin);
  // The client has it from before.
  if (resume_.has_value() && choice.tokens <= resume_->tokens[index]) return;
  BeginStream();
  if (wanted_.continuous_usage) {
    const OpenAiUsage usage = TotalUsage();
    events_->AppendChoice(out_, EventId(), event, &usage);
  } else {
    events_->AppendChoice(out_, EventId(), event, nullptr);
  }
}

void CompletionCall::EchoAlone(size_t prompt) {
  for (uint32_t i = 0; i < static_cast<uint32_t>(n_); ++i) {
    Choice& choice = ChoiceOf(prompt, i);
    v1::Finished finished;
    finished.set_choice(i);
    finished.set_reason(v1::FINISH_REASON_LENGTH);
    if (wanted_.stream) {
      BlockEvent none;
      none.output.set_choice(i);
      WriteEvent(prompt, none, 0, 0, "", &finished);
    } else {
      BeginChoice(prompt, choice, choice.text);
    }
    choice.finished = std::move(finished);
  }
}

void CompletionCall::PromptDone(size_t prompt) {
  prompts_[prompt].done = true;
  if (!prompts_[prompt].job.generation.has_value()) EchoAlone(prompt);
}

void CompletionCall::EndWhenDone() {
  for (const Prompt& prompt : prompts_) {
    if (!prompt.done) return;
  }
  if (!wanted_.stream) return SendAnswer();
  BeginStream();
  if (wanted_.include_usage) events_->AppendUsageOnly(out_, EventId(), TotalUsage());
  out_.append(kSseDone.data(), kSseDone.size());
  over_ = true;
  {
    MutexLock lock(&mutex_);
    closed_ = true;
  }
  exchange_->Write(std::exchange(out_, {}));
  exchange_->EndStream();
}

void CompletionCall::SendAnswer() {
  over_ = true;
  std::vector<OpenAiChoice> choices(choices_.size());
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    choices[i].index = i;
    choices[i].text = choice.text;
    if (choice.logprobs.has_value()) choices[i].logprobs = choice.logprobs->Take();
    if (choice.finished.has_value()) choices[i].finished = &*choice.finished;
    if (wanted_.return_token_ids) {
      choices[i].token_ids = choice.ids;
      choices[i].prompt_token_ids = prompts_[i / static_cast<size_t>(n_)].job.ids;
    }
  }
  HttpResponse response;
  response.headers = {{kRequestIdHeader, request_id_}};
  response.body = OpenAiAnswer(head_, choices, TotalUsage());
  exchange_->Respond(std::move(response));
}

void CompletionCall::BeginStream() {
  if (std::exchange(streaming_, true)) return;
  events_.emplace(head_, wanted_.include_usage);
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.headers = {
      {"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}, {kRequestIdHeader, request_id_}};
  exchange_->StartStream(std::move(head));
}

void CompletionCall::Flush() {
  // Blocks whose events are left out, or wait for their end, take no room on the way out.
  if (out_.empty()) return ReleaseWindow(std::exchange(handled_blocks_, 0));
  written_blocks_ += std::exchange(handled_blocks_, 0);
  exchange_->Write(std::exchange(out_, {}));
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

void CompletionCall::Fail(const absl::Status& status) {
  over_ = true;
  // The other prompts of its list: what became of the one became of all.
  CancelAll(status);
  if (streaming_) {
    out_ += OpenAiErrorEvent(status);
    exchange_->Write(std::exchange(out_, {}));
    exchange_->EndStream();
    return;
  }
  HttpResponse response = OpenAiError(status);
  response.headers.emplace_back(kRequestIdHeader, request_id_);
  exchange_->Respond(std::move(response));
}

void CompletionCall::OnLost(HttpLoss loss) {
  if (std::exchange(over_, true)) return;
  CancelAll(loss == HttpLoss::kServerStops ? absl::UnavailableError("the gateway is stopping")
                                           : ClientHasGone());
  switch (loss) {
    case HttpLoss::kClientGone:
      LogInfo(absl::StrCat("request ", request_id_, ": 499, the client has closed the connection"));
      return;
    case HttpLoss::kClientSlow:
      LogInfo(absl::StrCat("request ", request_id_, ": 499, cut off: the client does not read"));
      return;
    case HttpLoss::kServerStops:
      LogInfo(absl::StrCat("request ", request_id_, ": cut off at the end of the drain time"));
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

OpenAiUsage CompletionCall::TotalUsage() const {
  OpenAiUsage total;
  for (const Prompt& prompt : prompts_) {
    total.prompt_tokens += prompt.usage.prompt_tokens;
    total.completion_tokens += prompt.usage.completion_tokens;
    total.cached_tokens += prompt.usage.cached_tokens;
  }
  return total;
}

std::string CompletionCall::EventId() const {
  if (choices_.size() > kMaxResumableChoices) return request_id_;
  std::string id = absl::StrCat(request_id_, ":", absl::Hex(seed_), ":", tiers_, ":");
  for (size_t i = 0; i < choices_.size(); ++i) {
    absl::StrAppend(&id, i == 0 ? "" : ",", choices_[i].tokens);
  }
  return id;
}

}  // namespace blockserve
