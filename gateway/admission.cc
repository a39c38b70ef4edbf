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
  if (!std::isfinite(weight) || weight < 0.001 || weight > 1000) {
    return bad("weight", "must be 0.001 to 1000");
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
    return absl::InvalidArgumentError(absl::StrCat(
        "stop.max_tokens: the request may take ", request.tokens, " tokens, its prompt included; ",
        NameOf(name), " may have ", limits.max_tokens, " in flight"));
  }
  if (limits.max_requests > 0 && request.prompts_of_call > limits.max_requests) {
    return absl::InvalidArgumentError(absl::StrCat("prompt: is ", request.prompts_of_call,
                                                   " requests; ", NameOf(name), " may have ",
                                                   limits.max_requests, " in flight"));
  }
  if (limits.max_requests > 0 && key.requests >= limits.max_requests) {
    return Refused(
        absl::StrCat(NameOf(name), ": ", key.requests, " requests are in flight, the most allowed"),
        wait);
  }
  if (limits.max_tokens > 0 && key.tokens + request.tokens > limits.max_tokens) {
    return Refused(absl::StrCat(NameOf(name), ": ", key.tokens, " tokens are in flight, of ",
                                limits.max_tokens, " allowed"),
                   wait);
  }
  return request.first_of_call ? RateOf(key, name) : absl::OkStatus();
}

absl::Status Admission::RateOf(const Key& key, const std::string& name) {
  const double rate = key.limits.requests_per_second;
  if (rate <= 0 || key.allowance >= 1) return absl::OkStatus();
  return Refused(absl::StrCat(NameOf(name), ": more than ", rate, " requests in a second"),
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

absl::Status Admission::Submit(uint64_t id, const AdmissionRequest& request, absl::Time now) {
  if (request.deadline <= now) {
    return absl::DeadlineExceededError("the deadline passed before the request began");
  }
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
  const absl::Duration wait = ExpectedWait(request.key, request.priority, now);
  if (absl::Status status = CheckKey(key, request, wait); !status.ok()) {
    return refuse(std::move(status));
  }
  const int level = Level(request.priority);
  const int64_t free = options_.max_queued - queued_;
  // Nobody waits, and there is room: it only passes through the queue.
  const bool straight_on =
      queued_ == 0 && starting_ < options_.max_starting && HasRoomFor(request.choices);
  const absl::Duration run_time =
      pace_.TimeOf(request.length, running_choices_ + request.choices, kRunMargin);
  if (!CouldEnd(request, kRunMargin, now)) {
    return refuse(
        Refused(absl::StrCat("requests of ", request.length, " tokens take ",
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
    if (key.queued >= places) {
      return refuse(Refused(absl::StrCat(NameOf(request.key), ": ", key.queued,
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
  key.queues[level].emplace(entry.arrival, id);
  ++key.queued;
  LevelState& state = levels_[level];
  if (state.queued++ == 0) state.passed_over = 0;
  state.keys.insert(request.key);
  if (queued_++ == 0) queue_since_ = now;
  latest_starts_.emplace(entry.latest_start, id);
  return absl::OkStatus();
}

bool Admission::CouldEnd(const AdmissionRequest& request, double margin, absl::Time now) const {
  return running_choices_ < RunPace::kFew ||
         now + pace_.TimeOf(request.length, running_choices_ + request.choices, margin) <=
             request.deadline;
}

std::optional<uint64_t> Admission::TakeNext(absl::Time now) {
  while (true) {
    int level = -1;
    for (int i = 0; i < kLevels; ++i) {
      if (levels_[i].queued == 0) continue;
      // The lowest of those whose turn has come, else the highest that waits.
      if (level < 0 || levels_[i].passed_over >= kTurnsBefore[i]) level = i;
    }
    if (level < 0) return std::nullopt;
    const int64_t most_starting = int64_t{options_.max_starting} * (level == 0 ? 2 : 1);
    if (starting_ >= most_starting) return std::nullopt;

    Key* next = nullptr;
    for (const std::string& name : levels_[level].keys) {
      Key& key = keys_.at(name);
      if (next == nullptr || key.work < next->work) next = &key;
    }
    const uint64_t id = next->queues[level].begin()->second;
    Entry& entry = requests_.at(id);
    if (!HasRoomFor(entry.request.choices)) return std::nullopt;
    TakeOut(entry);
    if (!CouldEnd(entry.request, 1.0, now)) {
      entry.state = State::kGivenUp;
      given_up_.push_back(id);
      continue;
    }

    work_floor_ = std::max(work_floor_, next->work);
    next->work +=
        static_cast<double>(std::max<int64_t>(1, entry.request.tokens)) / next->limits.weight;
    levels_[level].passed_over = 0;
    for (int i = level + 1; i < kLevels; ++i) {
      if (levels_[i].queued > 0) ++levels_[i].passed_over;
    }
    entry.state = State::kStarting;
    entry.told = now;
    ++starting_;
    ++running_;
    running_choices_ += entry.request.choices;
    if (!ends_.empty()) ends_.push_back(run_time_);
    return id;
  }
}

void Admission::TakeOut(Entry& entry) {
  const int level = Level(entry.request.priority);
  const auto place = entry.key->queues[level].find(entry.arrival);
  latest_starts_.erase({entry.latest_start, place->second});
  entry.key->queues[level].erase(place);
  if (entry.key->queues[level].empty()) levels_[level].keys.erase(entry.request.key);
  --entry.key->queued;
  --levels_[level].queued;
  --queued_;
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
    pace_.Started(now - entry.told, running_choices_, now);
  } else if (!entry.held) {
    pace_.Wrote(each, now - entry.told, running_choices_, now);
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
      CountLast(entry, whole, now);
      running_choices_ -= entry.request.choices;
      --running_;
      // Whose place is free is not waited for once more: many may end at once.
      if (!ends_.empty()) ends_.pop_front();
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
  if (entry.written > 0) {
    if (!entry.held) pace_.Wrote(0, since, running_choices_, now);
  } else if (whole || since > pace_.StartTime(running_choices_)) {
    pace_.Started(since, running_choices_, now);
  }
  if (whole) pace_.Ended(entry.written, entry.request.length);
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

absl::Duration Admission::ExpectedWait(const std::string& key, uint32_t priority, absl::Time now) {
  const int level = Level(priority);
  int64_t ahead = 0;
  for (int i = 0; i <= level; ++i) ahead += levels_[i].queued;
  // The keys take turns: whoever has little queued does not wait for all of the others.
  const auto found = keys_.find(key);
  const int64_t own =
      found == keys_.end() ? 0 : static_cast<int64_t>(found->second.queues[level].size());
  const int64_t keys = static_cast<int64_t>(levels_[level].keys.size()) +
                       (levels_[level].keys.contains(key) ? 0 : 1);
  int64_t above = 0;
  for (int i = 0; i < level; ++i) above += levels_[i].queued;
  ahead = std::min(ahead, above + (own + 1) * keys);
  return WaitBehind(ahead, now);
}

absl::Duration Admission::WaitBehind(int64_t ahead, absl::Time now) {
  // While nobody writes, nobody gets nearer to his end, or his beginning.
  const absl::Duration silent =
      queued_ == 0 ? absl::ZeroDuration()
                   : std::max(now - std::max(last_written_, queue_since_), absl::ZeroDuration());
  const int64_t room = most_running_choices() - running_choices_;
  if (ahead < room) {  // only starts are to be waited for
    const int64_t starts_before = (starting_ + ahead) / options_.max_starting;
    return starts_before * pace_.StartTime(running_choices_) +
           (starts_before > 0 ? silent : absl::ZeroDuration());
  }
  ahead -= room;
  if (now - ends_at_ > kEndsAge || ends_.empty()) {
    ends_.clear();
    ends_at_ = now;
    absl::Duration sum;
    for (const auto& [id, entry] : requests_) {
      if (entry.state != State::kStarting && entry.state != State::kRunning) continue;
      ends_.push_back(pace_.TimeLeft(entry.request.length, entry.written, running_choices_));
      sum += pace_.TimeOf(entry.request.length, running_choices_, 1);
    }
    if (ends_.empty()) return absl::ZeroDuration();  // who is ahead starts at once
    std::sort(ends_.begin(), ends_.end());
    run_time_ = sum / static_cast<int64_t>(ends_.size());
  }
  const auto running = static_cast<int64_t>(ends_.size());
  return ends_[static_cast<size_t>(ahead % running)] + run_time_ * (ahead / running) + silent;
}

}  // namespace blockserve
