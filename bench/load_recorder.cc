#include "bench/load_recorder.h"

#include <algorithm>

namespace blockserve {
namespace {

double PerSecond(int64_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0;
}

}  // namespace

double LoadResult::output_tokens_per_s() const {
  return PerSecond(window_output_tokens, window_s());
}
double LoadResult::requests_per_s() const { return PerSecond(window_ok, window_s()); }
double LoadResult::good_per_s() const {
  // Successful requests of the window, in the share that kept the objectives.
  return ok > 0 ? requests_per_s() * static_cast<double>(good) / static_cast<double>(ok) : 0;
}

LoadSecond& LoadResult::Second(int64_t micros) {
  const auto index = static_cast<size_t>(std::max<int64_t>(micros, 0) / 1'000'000);
  if (seconds.size() <= index) seconds.resize(index + 1);
  return seconds[index];
}

void LoadResult::Merge(const LoadResult& other) {
  ttft.Merge(other.ttft);
  inter_block.Merge(other.inter_block);
  inter_token.Merge(other.inter_token);
  e2e.Merge(other.e2e);
  failed_after.Merge(other.failed_after);
  send_lag.Merge(other.send_lag);
  sent += other.sent;
  ok += other.ok;
  good += other.good;
  shortened += other.shortened;
  prompt_tokens += other.prompt_tokens;
  cached_prompt_tokens += other.cached_prompt_tokens;
  output_tokens += other.output_tokens;
  for (const auto& [kind, count] : other.errors) errors[kind] += count;
  for (const auto& [kind, message] : other.error_examples) error_examples.emplace(kind, message);
  usage_checked += other.usage_checked;
  usage_wrong += other.usage_wrong;
  output_hash += other.output_hash;
  output_hash_known = output_hash_known && other.output_hash_known;
  window_output_tokens += other.window_output_tokens;
  window_ok += other.window_ok;
  if (seconds.size() < other.seconds.size()) seconds.resize(other.seconds.size());
  for (size_t i = 0; i < other.seconds.size(); ++i) {
    seconds[i].sent += other.seconds[i].sent;
    seconds[i].ok += other.seconds[i].ok;
    seconds[i].failed += other.seconds[i].failed;
    seconds[i].output_tokens += other.seconds[i].output_tokens;
  }
  rows.insert(rows.end(), other.rows.begin(), other.rows.end());
}

}  // namespace blockserve
