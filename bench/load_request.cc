#include "bench/load_request.h"

#include <algorithm>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/utf8.h"

namespace blockserve {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 32);
}

}  // namespace

LoadRequest::LoadRequest(const RequestContext& context, RequestSpec spec, int64_t intended,
                         int64_t sent, bool measured,
                         std::function<void(LoadRequest*, int64_t, bool)> on_end)
    : context_(context),
      spec_(std::move(spec)),
      intended_(intended),
      sent_(sent),
      measured_(measured),
      on_end_(std::move(on_end)),
      choices_(static_cast<size_t>(spec_.n)) {
  context_.counters->sent.fetch_add(1, std::memory_order_relaxed);
  ++context_.result->Second(sent_).sent;
}

bool LoadRequest::InWindow(int64_t since) const {
  if (context_.window_end == 0) return measured_;
  return since >= context_.window_begin && since < context_.window_end;
}

void LoadRequest::OnTokens(uint32_t choice, int64_t count, absl::Span<const int32_t> ids) {
  if (choice >= choices_.size()) {
    choice_unknown_ = true;
    return;
  }
  Choice& one = choices_[choice];
  one.pending += count;
  if (count > 0 && ids.empty()) ids_known_ = false;
  for (const int32_t id : ids) one.hash = Mix(one.hash, static_cast<uint64_t>(id) + 1);
}

void LoadRequest::OnMessageEnd(int64_t now) {
  const int64_t since = now - context_.epoch;
  LoadResult& result = *context_.result;
  int64_t arrived = 0;
  for (Choice& choice : choices_) {
    if (choice.pending == 0) continue;
    const int64_t count = std::exchange(choice.pending, 0);
    arrived += count;
    choice.tokens += count;
    if (choice.last_us >= 0) {
      const int64_t gap = since - choice.last_us;
      gaps_us_ += gap;
      gap_tokens_ += count;
      if (measured_) {
        result.inter_block.Add(gap);
        result.inter_token.Add(gap / count, count);
      }
    }
    choice.last_us = since;
  }
  if (arrived == 0) return;
  if (first_us_ < 0) {
    first_us_ = since;
    if (measured_) result.ttft.Add(since - intended_);
  }
  tokens_ += arrived;
  context_.counters->output_tokens.fetch_add(arrived, std::memory_order_relaxed);
  result.Second(since).output_tokens += arrived;
  if (InWindow(since)) result.window_output_tokens += arrived;
}

void LoadRequest::OnFinished(uint32_t choice) {
  if (choice < choices_.size()) {
    ++choices_[choice].finished;
  } else {
    choice_unknown_ = true;
  }
}

void LoadRequest::OnUsage(const UsageReport& usage) {
  usage_known_ = true;
  usage_ = usage;
}

std::string LoadRequest::FindFault() const {
  if (choice_unknown_) return "an event names a choice that was not asked for";
  if (!usage_known_) return "the stream ended without usage";
  if (usage_.completion_tokens != tokens_) {
    return absl::StrCat("usage tells ", usage_.completion_tokens, " output tokens, ", tokens_,
                        " came");
  }
  if (spec_.text.empty() && usage_.prompt_tokens != std::ssize(spec_.tokens)) {
    return absl::StrCat("usage tells ", usage_.prompt_tokens, " prompt tokens, ",
                        spec_.tokens.size(), " were sent");
  }
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Choice& choice = choices_[i];
    if (choice.finished != 1) {
      return absl::StrCat("choice ", i, " was finished ", choice.finished, " times");
    }
    if (choice.tokens > spec_.max_tokens ||
        (spec_.ignore_eos && choice.tokens != spec_.max_tokens)) {
      return absl::StrCat("choice ", i, " has ", choice.tokens, " tokens, ", spec_.max_tokens,
                          " were asked for");
    }
  }
  return "";
}

bool LoadRequest::IsGood(int64_t e2e) const {
  const LoadObjectives& objectives = context_.objectives;
  if (objectives.ttft > 0 && (first_us_ < 0 || first_us_ - intended_ > objectives.ttft)) {
    return false;
  }
  if (objectives.itl > 0 && gap_tokens_ > 0 && gaps_us_ > objectives.itl * gap_tokens_) {
    return false;
  }
  return objectives.e2e == 0 || e2e <= objectives.e2e;
}

void LoadRequest::OnEnd(int64_t now, const std::string& error, const std::string& message) {
  const int64_t since = now - context_.epoch;
  const int64_t e2e = since - intended_;
  LoadResult& result = *context_.result;
  std::string outcome = error;
  std::string text = message;
  if (outcome.empty()) {
    text = FindFault();
    if (!text.empty()) outcome = "WRONG_OUTPUT";
    if (measured_) {
      ++result.usage_checked;
      if (!text.empty()) ++result.usage_wrong;
    }
  }
  const bool ok = outcome.empty();
  (ok ? context_.counters->ok : context_.counters->failed).fetch_add(1, std::memory_order_relaxed);
  LoadSecond& second = result.Second(since);
  ++(ok ? second.ok : second.failed);
  if (ok && InWindow(since)) ++result.window_ok;
  if (measured_) {
    ++result.sent;
    if (spec_.shortened) ++result.shortened;
    result.send_lag.Add(sent_ - intended_);
    if (ok) {
      ++result.ok;
      result.e2e.Add(e2e);
      if (IsGood(e2e)) ++result.good;
      result.prompt_tokens += usage_.prompt_tokens;
      result.cached_prompt_tokens += usage_.cached_prompt_tokens;
      result.output_tokens += tokens_;
      if (!ids_known_) result.output_hash_known = false;
      for (size_t i = 0; i < choices_.size(); ++i) {
        result.output_hash += Mix(Mix(static_cast<uint64_t>(spec_.index) + 1, i), choices_[i].hash);
      }
    } else {
      result.failed_after.Add(e2e);
      ++result.errors[outcome];
      // It goes to a terminal, and into JSON.
      result.error_examples.emplace(outcome, IsValidUtf8(text) ? text : absl::CHexEscape(text));
    }
    result.window_end = std::max(result.window_end, since);
    if (context_.keep_rows) {
      result.rows.push_back({spec_.index, intended_, sent_ - intended_,
                             first_us_ < 0 ? -1 : first_us_ - intended_, e2e,
                             spec_.text.empty() ? std::ssize(spec_.tokens) : usage_.prompt_tokens,
                             tokens_, ok ? "OK" : outcome});
    }
  }
  const auto on_end = on_end_;  // it destroys this
  on_end(this, now, ok);
}

}  // namespace blockserve
