#include "gateway/admitted_core.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/logging.h"
#include "common/status_catalogue.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(20);

// Whether what ended so, before it was admitted, counts for its key's rate: all but what was
// refused for want of room, or came from nobody known. To find out that a request is bad costs as
// much as to find out that it is good.
bool IsCharged(const absl::Status& status) {
  return !absl::IsResourceExhausted(status) && !absl::IsUnavailable(status) &&
         !absl::IsDeadlineExceeded(status) && !absl::IsUnauthenticated(status);
}

// Whether what ended so was not served, rather than served too slowly.
bool HasFailed(const absl::Status& outcome) {
  return absl::IsUnavailable(outcome) || absl::IsInternal(outcome);
}

// What both kinds of requests tell alike.
template <class Request>
AdmissionRequest WhoAsks(const Request& request) {
  AdmissionRequest admission;
  admission.key = request.key;
  admission.priority = request.priority;
  admission.deadline = request.deadline;
  admission.prompts_of_call = request.origin.prompts_of_call;
  admission.first_of_call = request.origin.first_of_call;
  return admission;
}

AdmissionRequest AdmissionOf(const GenerationRequest& request) {
  AdmissionRequest admission = WhoAsks(request);
  admission.choices = request.n;
  admission.length = request.max_tokens;
  int64_t to_write = int64_t{request.max_tokens} * request.n;
  if (request.resume.has_value()) {
    // What its client has is not written again.
    admission.choices = 0;
    admission.length = 0;
    to_write = 0;
    for (const ResumeState::Choice& choice : request.resume->choices) {
      if (choice.finished) continue;
      const int64_t left =
          std::max<int64_t>(0, request.max_tokens - static_cast<int64_t>(choice.tokens.size()));
      ++admission.choices;
      admission.length = std::max(admission.length, left);
      to_write += left;
    }
    admission.choices = std::max(1, admission.choices);  // the client may have had every end
  }
  admission.tokens = static_cast<int64_t>(request.prompt.size()) + to_write;
  return admission;
}

AdmissionRequest AdmissionOf(const ScoringRequest& request, int32_t block_length) {
  AdmissionRequest admission = WhoAsks(request);
  admission.tokens = static_cast<int64_t>(request.tokens.size());
  admission.scores = true;
  const int64_t scored = admission.tokens - request.first_scored;
  admission.choices = static_cast<int32_t>((scored + block_length - 1) / block_length);
  admission.length = block_length;
  return admission;
}

}  // namespace

// One request: the sink that the core knows, before the front's own. Lives on the loop.
class AdmittedCore::Ticket final : public GenerationSink,
                                   public ScoringSink,
                                   public std::enable_shared_from_this<Ticket> {
 public:
  Ticket(AdmittedCore& owner, GenerationRequest request, std::shared_ptr<GenerationSink> sink)
      : admission(AdmissionOf(request)),
        owner_(owner),
        alive_(owner.alive_),
        sink_(std::move(sink)),
        generation_(std::move(request)) {
    record.request_id = generation_.request_id;
    record.prompt_tokens = static_cast<int64_t>(generation_.prompt.size());
    record.choices = generation_.n;
    if (owner.options_.describe_prompt) {
      record.prompt = owner.options_.describe_prompt(generation_.prompt);
    }
  }
  Ticket(AdmittedCore& owner, ScoringRequest request, std::shared_ptr<ScoringSink> sink)
      : admission(AdmissionOf(request, owner.options_.block_length)),
        owner_(owner),
        alive_(owner.alive_),
        score_sink_(std::move(sink)),
        scoring_(std::move(request)) {
    record.method = RequestMethod::kScore;
    record.request_id = scoring_.request_id;
    record.prompt_tokens = static_cast<int64_t>(scoring_.tokens.size());
    if (owner.options_.describe_prompt) {
      record.prompt = owner.options_.describe_prompt(scoring_.tokens);
    }
  }

  RequestOrigin& origin() { return scores() ? scoring_.origin : generation_.origin; }
  bool scores() const { return score_sink_ != nullptr; }

  // To the tiers.
  void Begin() {
    inner = scores() ? owner_.core_.Score(std::move(scoring_), shared_from_this())
                     : owner_.core_.Generate(std::move(generation_), shared_from_this());
  }
  // It was not handed to the core, or the core hears no more of it.
  void Tell(const absl::Status& status) {
    if (scores()) {
      score_sink_->OnDone(status);
    } else {
      sink_->OnDone(status, record.usage);
    }
  }

  void OnStarted(v1::Started started) override {
    if (over) return;
    LeaveStart();
    sink_->OnStarted(std::move(started));
  }
  void OnStarted() override {
    if (!over) LeaveStart();
  }
  void OnScored(int64_t tokens) override {
    if (over || !*alive_) return;
    const absl::Time now = owner_.loop_.Now();
    MutexLock lock(&owner_.mutex_);
    owner_.admission_.Wrote(id, tokens, now);
  }
  void OnOutput(v1::Output output, OutputDetail detail) override {
    if (over) return;
    if (*alive_) {
      const absl::Time now = owner_.loop_.Now();
      record.Tokens(output.choice(), output.tokens_size(), now, owner_.metrics_);
      MutexLock lock(&owner_.mutex_);
      owner_.admission_.Wrote(id, output.tokens_size(), now);
    }
    sink_->OnOutput(std::move(output), std::move(detail));
  }
  void OnFinished(v1::Finished finished) override {
    if (!over) sink_->OnFinished(std::move(finished));
  }
  void OnDone(absl::Status status, v1::Usage usage) override {
    if (over) return;
    record.usage = usage;
    if (*alive_) owner_.Forget(*this, status);
    sink_->OnDone(std::move(status), std::move(usage));
  }
  bool WantsMore() const override {
    if (over) return false;
    const bool wants_more = sink_->WantsMore();
    if (!wants_more && *alive_) {
      owner_.held_.try_emplace(id, owner_.loop_.Now());
      MutexLock lock(&owner_.mutex_);
      owner_.admission_.Held(id);
    }
    return wants_more;
  }
  void OnDone(absl::StatusOr<v1::ScoreResponse> response) override {
    if (over) return;
    if (response.ok()) record.usage = response->usage();
    if (*alive_) owner_.Forget(*this, response.status());
    score_sink_->OnDone(std::move(response));
  }

  GenerationId id = 0;
  std::optional<GenerationId> inner;  // the core's name for it, once it has left the queue
  bool over = false;
  RequestRecord record;
  const AdmissionRequest admission;

 private:
  void LeaveStart() {
    if (!*alive_) return;
    {
      MutexLock lock(&owner_.mutex_);
      owner_.admission_.Started(id);
    }
    owner_.SchedulePump();
  }

  AdmittedCore& owner_;
  const std::shared_ptr<bool> alive_;  // whether the owner is
  const std::shared_ptr<GenerationSink> sink_;
  const std::shared_ptr<ScoringSink> score_sink_;
  GenerationRequest generation_;  // until it is handed on, as scoring_
  ScoringRequest scoring_;
};

AdmittedCore::AdmittedCore(Loop& loop, GenerationCore& core, const AdmittedCoreOptions& options,
                           const RequestMetrics& metrics)
    : loop_(loop),
      core_(core),
      options_(options),
      metrics_(metrics),
      trace_ids_(options.trace_seed),
      admission_(options.admission) {
  ScheduleTick();
}

AdmittedCore::~AdmittedCore() { *alive_ = false; }

GenerationId AdmittedCore::Generate(GenerationRequest request,
                                    std::shared_ptr<GenerationSink> sink) {
  request.own_prefix_cache = options_.owns_prefix_cache && options_.owns_prefix_cache(request.key);
  return Accept(std::make_shared<Ticket>(*this, std::move(request), std::move(sink)));
}

GenerationId AdmittedCore::Score(ScoringRequest request, std::shared_ptr<ScoringSink> sink) {
  request.own_prefix_cache = options_.owns_prefix_cache && options_.owns_prefix_cache(request.key);
  return Accept(std::make_shared<Ticket>(*this, std::move(request), std::move(sink)));
}

GenerationId AdmittedCore::Accept(std::shared_ptr<Ticket> ticket) {
  const GenerationId id = next_id_.fetch_add(1);
  const absl::Time now = loop_.Now();
  ticket->id = id;
  ticket->record.arrived = now;
  ticket->record.key = ticket->admission.key;
  Trace(ticket->record, ticket->origin());
  if (const absl::Status status = Submit(ticket, now); !status.ok()) {
    ticket->over = true;
    ticket->record.Finish(status, now, metrics_, options_.log_requests);
    ticket->Tell(status);
    return id;
  }
  SchedulePump();
  return id;
}

absl::Status AdmittedCore::Submit(const std::shared_ptr<Ticket>& ticket, absl::Time now) {
  MutexLock lock(&mutex_);
  if (!closed_.ok()) return closed_;
  if (draining_.load()) return absl::UnavailableError("the gateway is draining");
  const AdmissionRequest& request = ticket->admission;
  if (absl::Status status = admission_.Submit(ticket->id, request, now); !status.ok()) {
    if (request.first_of_call && IsCharged(status)) admission_.Charge(request.key, now);
    return status;
  }
  tickets_.emplace(ticket->id, ticket);
  live_requests_.fetch_add(1);
  return absl::OkStatus();
}

std::shared_ptr<AdmittedCore::Ticket> AdmittedCore::Find(GenerationId id) {
  MutexLock lock(&mutex_);
  const auto found = tickets_.find(id);
  return found == tickets_.end() ? nullptr : found->second;
}

void AdmittedCore::Trace(RequestRecord& record, RequestOrigin& origin) {
  record.trace = origin.trace;
  const bool continues = !origin.trace.trace_id.empty();
  if (options_.trace_sample_ratio <= 0) return;
  if (!(continues ? origin.trace.sampled : trace_ids_.Sample(options_.trace_sample_ratio))) return;
  if (!continues) record.trace.trace_id = trace_ids_.NewTraceId();
  record.span_id = trace_ids_.NewSpanId();
  origin.traceparent = FormatTraceparent({record.trace.trace_id, record.span_id, true});
}

void AdmittedCore::SchedulePump() {
  if (pump_posted_.exchange(true)) return;
  loop_.Post([this, alive = alive_] {
    if (!*alive) return;
    pump_posted_ = false;
    Pump();
  });
}

void AdmittedCore::Pump() {
  const absl::Time now = loop_.Now();
  std::vector<std::shared_ptr<Ticket>> next;
  std::vector<std::pair<std::shared_ptr<Ticket>, absl::Duration>> hopeless;
  {
    MutexLock lock(&mutex_);
    while (const std::optional<uint64_t> id = admission_.TakeNext(now)) {
      next.push_back(tickets_.at(*id));
    }
    for (const uint64_t id : admission_.TakeHopeless(now)) {
      const std::shared_ptr<Ticket>& ticket = tickets_.at(id);
      hopeless.emplace_back(ticket, admission_.ExpectedWait(ticket->admission, now));
    }
  }
  for (const std::shared_ptr<Ticket>& ticket : next) {
    ticket->record.LeftQueue(now, metrics_);
    ticket->Begin();
  }
  for (const auto& [ticket, wait] : hopeless) {
    ForgetAndTell(ticket, WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                                             "the request has waited for ",
                                             absl::FormatDuration(now - ticket->record.arrived),
                                             " and could not end before its deadline any more")),
                                         std::max(wait, absl::Seconds(1))));
  }
}

void AdmittedCore::Forget(Ticket& ticket, const absl::Status& outcome) {
  const absl::Time now = loop_.Now();
  std::shared_ptr<Ticket> kept;
  {
    MutexLock lock(&mutex_);
    const auto found = tickets_.find(ticket.id);
    if (found == tickets_.end()) return;
    kept = std::move(found->second);
    tickets_.erase(found);
    if (HasFailed(outcome)) {
      admission_.Failed(ticket.id, now);
    } else {
      admission_.Finished(ticket.id, outcome.ok(), now);
    }
  }
  held_.erase(ticket.id);
  ticket.over = true;
  ticket.record.Finish(outcome, now, metrics_, options_.log_requests);
  live_requests_.fetch_sub(1);
  SchedulePump();
}

void AdmittedCore::ForgetAndTell(const std::shared_ptr<Ticket>& ticket,
                                 const absl::Status& outcome) {
  Forget(*ticket, outcome);
  ticket->Tell(outcome);
}

void AdmittedCore::Cancel(GenerationId id, absl::Status why) {
  loop_.Post([this, alive = alive_, id, why = std::move(why)] {
    if (!*alive) return;
    const std::shared_ptr<Ticket> ticket = Find(id);
    if (ticket == nullptr) return;
    if (ticket->inner.has_value()) core_.Cancel(*ticket->inner, why);
    Forget(*ticket, why);
  });
}

void AdmittedCore::Resume(GenerationId id) {
  loop_.Post([this, alive = alive_, id] {
    if (!*alive) return;
    held_.erase(id);
    const std::shared_ptr<Ticket> ticket = Find(id);
    if (ticket != nullptr && ticket->inner.has_value()) core_.Resume(*ticket->inner);
  });
}

absl::Status AdmittedCore::CheckRate(const std::string& key) {
  MutexLock lock(&mutex_);
  return admission_.CheckRate(key, loop_.Now());
}

absl::Status AdmittedCore::TakeFromRate(const std::string& key) {
  const absl::Time now = loop_.Now();
  MutexLock lock(&mutex_);
  if (absl::Status status = admission_.CheckRate(key, now); !status.ok()) return status;
  admission_.Charge(key, now);
  return absl::OkStatus();
}

void AdmittedCore::OnAnswered(RequestMethod method, const absl::Status& status,
                              absl::Duration time) {
  metrics_.CountOver(method, status);
  if (status.ok()) {
    metrics_.seconds[static_cast<size_t>(method)].Observe(absl::ToDoubleSeconds(time));
  }
}

void AdmittedCore::OnRefused(const RefusedRequest& refused) {
  if (IsCharged(refused.status)) {
    const absl::Time now = loop_.Now();
    MutexLock lock(&mutex_);
    admission_.Charge(refused.key, now);
  }
  metrics_.CountOver(refused.method, refused.status);
  if (!options_.log_requests) return;
  std::optional<std::string> left_out = "";
  if (refused.status.code() == absl::StatusCode::kUnauthenticated) {
    const absl::Time now = loop_.Now();
    MutexLock lock(&mutex_);
    left_out = strangers_.Take(now);
  }
  if (!left_out.has_value()) return;
  LogEvent(LogLevel::kInfo, "request refused",
           {{"request_id", refused.request_id},
            {"method", MethodName(refused.method)},
            {"key", refused.key},
            {"outcome", LookUpStatus(refused.status.code()).name},
            {"error", refused.status.message()},
            {"left_out", *left_out}});
}

void AdmittedCore::EndQueued(const absl::Status& status) {
  std::vector<std::shared_ptr<Ticket>> queued;
  {
    MutexLock lock(&mutex_);
    closed_ = status;
    for (const uint64_t id : admission_.TakeQueued(loop_.Now())) queued.push_back(tickets_.at(id));
  }
  for (const std::shared_ptr<Ticket>& ticket : queued) ForgetAndTell(ticket, status);
}

void AdmittedCore::ScheduleTick() {
  loop_.PostAfter(kTick, [this, alive = alive_] {
    if (!*alive) return;
    Tick();
    ScheduleTick();
  });
}

void AdmittedCore::CutSlowReaders() {
  const absl::Time latest = loop_.Now() - options_.slow_reader_timeout;
  std::vector<GenerationId> slow;
  for (const auto& [id, since] : held_) {
    if (since < latest) slow.push_back(id);
  }
  for (const GenerationId id : slow) {
    const std::shared_ptr<Ticket> ticket = Find(id);
    const absl::Status why =
        absl::AbortedError(absl::StrCat("cut off: the client has not read what waits for it for ",
                                        absl::FormatDuration(options_.slow_reader_timeout)));
    core_.Cancel(*ticket->inner, why);
    ForgetAndTell(ticket, why);
  }
}

void AdmittedCore::Tick() {
  CutSlowReaders();
  if (options_.capacity) {
    const TokenCapacity capacity = options_.capacity();
    MutexLock lock(&mutex_);
    admission_.SetCapacity(capacity);
  }
  Pump();
  MutexLock lock(&mutex_);
  metrics_.queued[0].Set(static_cast<double>(admission_.queued(1)));
  metrics_.queued[1].Set(static_cast<double>(admission_.queued(2)));
  metrics_.queued[2].Set(static_cast<double>(admission_.queued(3)));
  metrics_.starting.Set(static_cast<double>(admission_.starting()));
  metrics_.live_choices.Set(static_cast<double>(admission_.running_choices()));
  metrics_.live_choices_limit.Set(static_cast<double>(admission_.most_running_choices()));
  metrics_.streams.Set(static_cast<double>(live_requests_.load()));
}

}  // namespace blockserve
