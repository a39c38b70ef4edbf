#include "gateway/admission.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gateway/retry_after.h"

namespace blockserve {
namespace {

constexpr absl::Duration kShortestRetry = absl::Seconds(1);
constexpr absl::Duration kLongestRetry = absl::Seconds(60);
// Of the wait that is expected: who waits is told late, should the others become slower meanwhile.
constexpr double kWaitMargin = 2;
// Of the time that requests take at the moment: half of them take longer than the mean.
constexpr double kRunMargin = 1.25;
// How old the running requests' expected ends may be when a wait is told from them.
constexpr absl::Duration kEndsAge = absl::Milliseconds(20);

absl::Status Refused(std::string message, absl::Duration retry_after) {
  return WithRetryAfter(absl::ResourceExhaustedError(message),
                        std::clamp(retry_after, kShortestRetry, kLongestRetry));
}

absl::Status BeyondLimit(std::string message, absl::Duration retry_after) {
  return WithKeyLimit(Refused(std::move(message), retry_after));
}

std::string NameOf(const std::string& key) {
  return key.empty() ? "requests without a key" : absl::StrCat("key '", key, "'");
}

}  // namespace

absl::Status KeyLimits::Validate() const {
  const auto bad = [](absl::string_view field, absl::string_view rule) {
    return absl::InvalidArgumentError(absl::StrCat(field, " ", rule));
  };
  if (max_requests < 0) return bad("max_requests", "must be 0 (no limit) or more");
  if (max_tokens < 0) return bad("max_tokens", "must be 0 (no limit) or more");
  if (!std::isfinite(requests_per_second) || requests_per_second < 0) {
    return bad("requests_per_second", "must be 0 (no limit) or more");
  }
  if (burst < 0) return bad("burst", "must be 0 (a second's worth) or more");
  if (!(weight >= kLeastWeight && weight <= kMostWeight)) {
    return bad("weight", absl::StrCat("must be ", kLeastWeight, " to ", kMostWeight));
  }
  return absl::OkStatus();
}

absl::Status AdmissionOptions::Validate() const {
  if (max_queued < 0) {
    return absl::InvalidArgumentError("--max-queued-requests must not be negative");
  }
  if (max_starting < 1) {
    return absl::InvalidArgumentError("--max-starting-requests must be at least 1");
  }
  if (live.most < 1) {
    return absl::InvalidArgumentError("--max-live-choices must be at least 1");
  }
  if (!(live.batches >= 0 && live.batches <= 1000)) {
    return absl::InvalidArgumentError("--max-live-batches must be 0 (no limit) to 1000");
  }
  if (absl::Status status = default_limits.Validate(); !status.ok()) return status;
  for (const auto& [name, key] : limits) {
    if (absl::Status status = key.Validate(); !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("limits of ", NameOf(name), ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

double Admission::Burst(const KeyLimits& limits) {
  return limits.burst > 0 ? limits.burst : std::max(1.0, limits.requests_per_second);
}

void Admission::Refill(Key& key, absl::Time now) {
  key.allowance = std::min(Burst(key.limits),
                           key.allowance + key.limits.requests_per_second *
                                               absl::ToDoubleSeconds(now - key.allowance_at));
  key.allowance_at = now;
}

Admission::Key& Admission::KeyOf(const std::string& name, absl::Time now) {
  const auto [found, is_new] = keys_.try_emplace(name);
  Key& key = found->second;
  const bool has_own = options_.limits_of && !name.empty();
  if (is_new || has_own) {
    const auto limits = options_.limits.find(name);
    key.limits = limits != options_.limits.end() ? limits->second : options_.default_limits;
    if (has_own) options_.limits_of(name, key.limits);
  }
  if (is_new) {
    key.allowance = Burst(key.limits);
    key.allowance_at = now;
  }
  return key;
}

void Admission::ForgetIfIdle(const std::string& name, absl::Time now) {
  const auto found = keys_.find(name);
  if (found == keys_.end() || found->second.requests > 0) return;
  Key& key = found->second;
  Refill(key, now);
  const bool rate_spent = key.limits.requests_per_second > 0 && key.allowance < Burst(key.limits);
  // Who goes with more work than the others may not come back with less.
  if (!rate_spent && key.work <= work_floor_) keys_.erase(found);
}

absl::Status Admission::CheckKey(const Key& key, const AdmissionRequest& request,
                                 absl::Duration wait) {
  const KeyLimits& limits = key.limits;
  const std::string& name = request.key;
  if (limits.max_tokens > 0 && request.tokens > limits.max_tokens) {
    const int64_t output = request.scores ? 0 : request.choices * request.length;
    const char* const field = request.scores                                ? "continuation"
                              : request.tokens - output > limits.max_tokens ? "prompt"
                                                                            : "stop.max_tokens";
    return absl::InvalidArgumentError(absl::StrCat(field, ": the request may take ", request.tokens,
                                                   " tokens, its prompt included; ", NameOf(name),
                                                   " may have ", limits.max_tokens, " in flight"));
  }
  if (limits.max_requests > 0 && request.prompts_of_call > limits.max_requests) {
    return absl::InvalidArgumentError(absl::StrCat(kPromptsOfCall, ": ", request.prompts_of_call,
                                                   " requests; ", NameOf(name), " may have ",
                                                   limits.max_requests, " in flight"));
  }
  if (limits.max_requests > 0 && key.requests >= limits.max_requests) {
    return BeyondLimit(
        absl::StrCat(NameOf(name), ": ", key.requests, " requests are in flight, the most allowed"),
        wait);
  }
  if (limits.max_tokens > 0 && key.tokens + request.tokens > limits.max_tokens) {
    return BeyondLimit(absl::StrCat(NameOf(name), ": ", key.tokens, " tokens are in flight, of ",
                                    limits.max_tokens, " allowed"),
                       wait);
  }
  return request.first_of_call ? RateOf(key, name) : absl::OkStatus();
}

absl::Status Admission::RateOf(const Key& key, const std::string& name) {
  const double rate = key.limits.requests_per_second;
  if (rate <= 0 || key.allowance >= 1) return absl::OkStatus();
  return BeyondLimit(absl::StrCat(NameOf(name), ": more than ", rate, " requests in a second"),
                     absl::Seconds((1 - key.allowance) / rate));
}

absl::Status Admission::CheckRate(const std::string& key, absl::Time now) {
  Key& entry = KeyOf(key, now);
  Refill(entry, now);
  absl::Status status = RateOf(entry, key);
  ForgetIfIdle(key, now);
  return status;
}

void Admission::Charge(const std::string& key, absl::Time now) {
  Key& entry = KeyOf(key, now);
  Refill(entry, now);
  if (entry.limits.requests_per_second > 0) entry.allowance -= 1;
  ForgetIfIdle(key, now);
}

AdmissionRequest Admission::AsChoices(const AdmissionRequest& request) const {
  if (!request.scores) return request;
  AdmissionRequest as = request;
  const int64_t tokens = std::max<int64_t>(1, int64_t{request.choices} * request.length);
  const int64_t most = std::clamp<int64_t>(most_running_choices() / kTextsInRoom, 1, kMostOfText);
  // At any time half of its blocks are over, on the average.
  as.choices =
      static_cast<int32_t>(std::clamp<int64_t>((int64_t{request.choices} + 1) / 2, 1, most));
  as.length = (tokens + as.choices - 1) / as.choices;
  return as;
}

absl::Status Admission::Submit(uint64_t id, const AdmissionRequest& submitted, absl::Time now) {
  if (submitted.deadline <= now) {
    return absl::DeadlineExceededError("the deadline passed before the request began");
  }
  const AdmissionRequest request = AsChoices(submitted);
  if (request.choices > options_.live.most) {
    return absl::InvalidArgumentError(
        absl::StrCat("n: is ", request.choices, "; at most ", options_.live.most,
                     " choices can be generated at a time (--max-live-choices)"));
  }
  Key& key = KeyOf(request.key, now);
  Refill(key, now);
  const auto refuse = [&](absl::Status status) {
    ForgetIfIdle(request.key, now);
    return status;
  };
  const absl::Duration wait = ExpectedWait(submitted, now);
  if (absl::Status status = CheckKey(key, request, wait); !status.ok()) {
    return refuse(std::move(status));
  }
  const int level = Level(request.priority);
  const int64_t free = options_.max_queued - queued_;
  // Nobody waits, and there is room: it only passes through the queue.
  const bool straight_on = queued_ == 0 && starting_ < options_.max_starting &&
                           HasRoomFor(request.choices) && MayRunBesideTexts(request);
  const absl::Duration run_time =
      PaceOf(request).TimeOf(request.length, running_choices_ + request.choices, kRunMargin);
  if (!CouldEnd(request, kRunMargin, now)) {
    return refuse(
        Refused(absl::StrCat(request.scores ? "texts" : "requests", " of ",
                             request.scores ? request.tokens : request.length, " tokens take ",
                             absl::FormatDuration(absl::Trunc(run_time, absl::Milliseconds(1))),
                             " at the moment: the deadline would pass before this one could end"),
                wait));
  }
  if (!straight_on) {
    if (free <= 0) {
      return refuse(
          Refused(absl::StrCat(queued_, " requests wait already; try again later"), wait));
    }
    const int64_t places = level == 0 ? 4 * free : level == 1 ? free : (free + 1) / 2;
    const int64_t queued = key.queued[Kind(request)];
    if (queued >= places) {
      return refuse(Refused(absl::StrCat(NameOf(request.key), ": ", queued,
                                         " requests wait already; try again later"),
                            wait));
    }
    if (wait > absl::ZeroDuration() && now + kWaitMargin * wait + run_time > request.deadline) {
      return refuse(
          Refused(absl::StrCat("requests wait ",
                               absl::FormatDuration(absl::Trunc(wait, absl::Milliseconds(1))),
                               " at the moment: the deadline would pass before this one could end"),
                  wait));
    }
  }

  if (key.requests == 0) key.work = std::max(key.work, work_floor_);
  ++key.requests;
  key.tokens += request.tokens;
  if (key.limits.requests_per_second > 0 && request.first_of_call) key.allowance -= 1;
  Entry& entry = requests_[id];
  entry.request = request;
  entry.key = &key;
  entry.arrival = next_arrival_++;
  // Half of its time it may wait in any case: it may be shorter than others.
  entry.latest_start = request.deadline - std::min(run_time, (request.deadline - now) / 2);
  LevelState& state = levels_[level];
  Key::OfLevel& of_level = key.levels[level];
  Key::Queue& queue = of_level.queues[Kind(request)];
  if (queue.ids.empty()) {
    ++state.queues;
    queue.work = std::max(queue.work, of_level.work_floor);
  }
  queue.ids.emplace(entry.arrival, id);
  ++key.queued[Kind(request)];
  if (state.queued++ == 0) state.passed_over = 0;
  state.keys.insert(request.key);
  if (queued_++ == 0) queue_since_ = now;
  ++queued_of_[Kind(request)].requests;
  queued_of_[Kind(request)].choices += request.choices;
  latest_starts_.emplace(entry.latest_start, id);
  return absl::OkStatus();
}

bool Admission::CouldEnd(const AdmissionRequest& request, double margin, absl::Time now) const {
  return running_choices_ < RunPace::kFew ||
         now + PaceOf(request).TimeOf(request.length, running_choices_ + request.choices, margin) <=
             request.deadline;
}

Admission::Entry* Admission::NextOf(int level) {
  const Key* first = nullptr;
  const Key::Queue* first_queue = nullptr;
  Entry* next = nullptr;
  for (const std::string& name : levels_[level].keys) {
    const Key& key = keys_.at(name);
    if (first != nullptr && key.work >= first->work) continue;
    for (const Key::Queue& queue : key.levels[level].queues) {
      if (queue.ids.empty()) continue;
      if (first == &key && queue.work >= first_queue->work) continue;
      Entry& entry = requests_.at(queue.ids.begin()->second);
      if (!MayRunBesideTexts(entry.request)) continue;
      first = &key;
      first_queue = &queue;
      next = &entry;
    }
  }
  return next;
}

std::optional<uint64_t> Admission::TakeNext(absl::Time now) {
  while (true) {
    int level = -1;
    Entry* next = nullptr;
    for (int i = 0; i < kLevels; ++i) {
      // The lowest of those whose turn has come, else the highest that waits.
      if (level >= 0 && levels_[i].passed_over < kTurnsBefore[i]) continue;
      Entry* const of_level = levels_[i].queued == 0 ? nullptr : NextOf(i);
      if (of_level == nullptr) continue;
      level = i;
      next = of_level;
    }
    if (level < 0) return std::nullopt;
    const int64_t most_starting = int64_t{options_.max_starting} * (level == 0 ? 2 : 1);
    if (starting_ >= most_starting) return std::nullopt;
    Entry& entry = *next;
    if (!HasRoomFor(entry.request.choices)) return std::nullopt;
    Key& key = *entry.key;
    Key::OfLevel& of_level = key.levels[level];
    Key::Queue& queue = of_level.queues[Kind(entry.request)];
    const uint64_t id = queue.ids.begin()->second;
    TakeOut(entry);
    if (!CouldEnd(entry.request, 1.0, now)) {
      entry.state = State::kGivenUp;
      given_up_.push_back(id);
      continue;
    }

    const auto work = static_cast<double>(std::max<int64_t>(1, entry.request.tokens));
    work_floor_ = std::max(work_floor_, key.work);
    key.work += work / key.limits.weight;
    of_level.work_floor = std::max(of_level.work_floor, queue.work);
    queue.work += work;
    levels_[level].passed_over = 0;
    for (int i = level + 1; i < kLevels; ++i) {
      if (levels_[i].queued > 0) ++levels_[i].passed_over;
    }
    entry.state = State::kStarting;
    entry.told = now;
    ++starting_;
    ++running_;
    running_choices_ += entry.request.choices;
    if (entry.request.scores) text_choices_ += entry.request.choices;
    ends_.Start(entry.request.choices);
    if (entry.request.scores) text_ends_.Start(entry.request.choices);
    return id;
  }
}

void Admission::TakeOut(Entry& entry) {
  const int level = Level(entry.request.priority);
  std::array<Key::Queue, kKinds>& queues = entry.key->levels[level].queues;
  std::map<uint64_t, uint64_t>& ids = queues[Kind(entry.request)].ids;
  const auto place = ids.find(entry.arrival);
  latest_starts_.erase({entry.latest_start, place->second});
  ids.erase(place);
  if (ids.empty()) --levels_[level].queues;
  if (queues[0].ids.empty() && queues[1].ids.empty()) levels_[level].keys.erase(entry.request.key);
  --entry.key->queued[Kind(entry.request)];
  --levels_[level].queued;
  --queued_;
  --queued_of_[Kind(entry.request)].requests;
  queued_of_[Kind(entry.request)].choices -= entry.request.choices;
}

void Admission::Started(uint64_t id) {
  const auto found = requests_.find(id);
  if (found == requests_.end() || found->second.state != State::kStarting) return;
  found->second.state = State::kRunning;
  --starting_;
}

void Admission::Wrote(uint64_t id, int64_t tokens, absl::Time now) {
  const auto found = requests_.find(id);
  if (found == requests_.end() || found->second.state != State::kRunning) return;
  Entry& entry = found->second;
  const double each = static_cast<double>(tokens) / entry.request.choices;
  if (entry.written == 0) {
    PaceOf(entry.request).Started(now - entry.told, running_choices_, now);
  } else if (!entry.held) {
    PaceOf(entry.request).Wrote(each, now - entry.told, running_choices_, now);
  }
  entry.held = false;
  entry.written += each;
  last_written_ = now;
  entry.told = now;
}

void Admission::Held(uint64_t id) {
  const auto found = requests_.find(id);
  if (found != requests_.end()) found->second.held = true;
}

void Admission::Finished(uint64_t id, bool whole, absl::Time now) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  const Entry& entry = found->second;
  if (entry.state == State::kStarting || entry.state == State::kRunning) {
    CountLast(entry, whole, now);
  }
  Failed(id, now);
}

void Admission::Failed(uint64_t id, absl::Time now) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  Entry& entry = found->second;
  switch (entry.state) {
    case State::kQueued:
      TakeOut(entry);
      break;
    case State::kGivenUp:
      break;
    case State::kStarting:
      --starting_;
      [[fallthrough]];
    case State::kRunning:
      running_choices_ -= entry.request.choices;
      --running_;
      ends_.End(entry.request.choices);
      if (!entry.request.scores) break;
      text_choices_ -= entry.request.choices;
      text_ends_.End(entry.request.choices);
      break;
  }
  --entry.key->requests;
  entry.key->tokens -= entry.request.tokens;
  const std::string key = std::move(entry.request.key);
  requests_.erase(found);
  ForgetIfIdle(key, now);
}

void Admission::CountLast(const Entry& entry, bool whole, absl::Time now) {
  // What it has waited for in vain counts too, unless that was not for the tiers.
  const absl::Duration since = now - entry.told;
  RunPace& pace = PaceOf(entry.request);
  if (entry.written > 0) {
    if (!entry.held) pace.Wrote(0, since, running_choices_, now);
  } else if (whole || since > pace.StartTime(running_choices_)) {
    pace.Started(since, running_choices_, now);
  }
  if (whole) pace.Ended(entry.written, entry.request.length);
}

std::vector<uint64_t> Admission::TakeHopeless(absl::Time now) {
  std::vector<uint64_t> hopeless = std::exchange(given_up_, {});
  for (const auto& [latest_start, id] : latest_starts_) {
    if (latest_start > now) break;
    hopeless.push_back(id);
  }
  std::erase_if(hopeless, [this](uint64_t id) { return !requests_.contains(id); });
  for (const uint64_t id : hopeless) Finished(id, /*whole=*/false, now);
  return hopeless;
}

std::vector<uint64_t> Admission::TakeQueued(absl::Time now) {
  std::vector<uint64_t> queued;
  while (!latest_starts_.empty()) {
    queued.push_back(latest_starts_.begin()->second);
    Finished(queued.back(), /*whole=*/false, now);
  }
  return queued;
}

absl::Duration Admission::ExpectedWait(const AdmissionRequest& request, absl::Time now) {
  const int level = Level(request.priority);
  int64_t above = 0;
  for (int i = 0; i < level; ++i) above += levels_[i].queued;
  // The keys take turns, and so do their kinds: whoever has little queued does not wait for all of
  // the others.
  const auto found = keys_.find(request.key);
  const int64_t own =
      found == keys_.end()
          ? 0
          : static_cast<int64_t>(found->second.levels[level].queues[Kind(request)].ids.size());
  const int64_t queues = levels_[level].queues + (own > 0 ? 0 : 1);
  const int64_t ahead = std::min(above + levels_[level].queued, above + (own + 1) * queues);
  return WaitBehind(ahead, request, now);
}

absl::Duration Admission::WaitBehind(int64_t ahead, const AdmissionRequest& request,
                                     absl::Time now) {
  // While nobody writes, nobody gets nearer to his end, or his beginning.
  const absl::Duration silent =
      queued_ == 0 ? absl::ZeroDuration()
                   : std::max(now - std::max(last_written_, queue_since_), absl::ZeroDuration());
  // Those ahead are of its kind too, for the most part.
  const Queued& queued = queued_of_[Kind(request)];
  const int32_t own = AsChoices(request).choices;
  const int64_t each =
      queued.requests == 0 ? own : (queued.choices + queued.requests - 1) / queued.requests;
  int64_t room = most_running_choices() - running_choices_;
  Ends* ends = &ends_;
  if (request.scores && most_text_choices() - text_choices_ < room) {
    room = most_text_choices() - text_choices_;
    ends = &text_ends_;
  }
  const int64_t must_end = ahead * each + RoomNeeded(own) - room;
  if (must_end <= 0) {  // only starts are to be waited for
    const int64_t starts_before = (starting_ + ahead) / options_.max_starting;
    return starts_before * PaceOf(request).StartTime(running_choices_) +
           (starts_before > 0 ? silent : absl::ZeroDuration());
  }
  if (now - ends->at > kEndsAge || ends->ends.empty()) {
    ends->ends.clear();
    ends->at = now;
    absl::Duration sum;
    for (const auto& [id, entry] : requests_) {
      if (entry.state != State::kStarting && entry.state != State::kRunning) continue;
      if (ends == &text_ends_ && !entry.request.scores) continue;
      const RunPace& pace = PaceOf(entry.request);
      const int32_t choices = entry.request.choices;
      ends->ends.insert(ends->ends.end(), static_cast<size_t>(choices),
                        pace.TimeLeft(entry.request.length, entry.written, running_choices_));
      sum += choices * pace.TimeOf(entry.request.length, running_choices_, 1);
    }
    if (ends->ends.empty()) return absl::ZeroDuration();  // who is ahead starts at once
    std::sort(ends->ends.begin(), ends->ends.end());
    ends->run_time = sum / static_cast<int64_t>(ends->ends.size());
  }
  const auto running = static_cast<int64_t>(ends->ends.size());
  return ends->ends[static_cast<size_t>((must_end - 1) % running)] +
         ends->run_time * ((must_end - 1) / running) + silent;
}

}  // namespace blockserve
