#include "app/evaluation.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace blockserve {

using nlohmann::ordered_json;

std::vector<Window> LayWindows(int64_t num_tokens, int64_t window, int64_t stride) {
  std::vector<Window> windows;
  int64_t counted = 0;
  for (int64_t begin = 0; counted < num_tokens; begin += stride) {
    const int64_t end = std::min(begin + window, num_tokens);
    windows.push_back({begin, end, counted});
    counted = end;
  }
  return windows;
}

void Evaluation::Add(const Window& window, absl::Span<const std::optional<float>> logprobs,
                     int64_t pads) {
  const int64_t block_length = static_cast<int64_t>(by_block_position_.size());
  for (int64_t i = window.first_counted - window.begin; i < window.end - window.begin; ++i) {
    const std::optional<float>& logprob = logprobs[static_cast<size_t>(i)];
    if (!logprob.has_value()) {
      unscored_.push_back(window.begin + i);
      continue;
    }
    // A token with a score has at least one before it, or pads; those count as no context.
    const size_t context = i == 0 ? 0 : std::bit_width(static_cast<uint64_t>(i)) - 1;
    if (by_context_.size() <= context) by_context_.resize(context + 1);
    const size_t position = static_cast<size_t>((pads + i) % block_length);
    for (Sum* sum : {&all_, &by_block_position_[position], &by_context_[context]}) {
      sum->loss -= *logprob;
      ++sum->tokens;
    }
  }
}

ordered_json Evaluation::SumJson(const Sum& sum) {
  const double mean = sum.tokens > 0 ? sum.loss / static_cast<double>(sum.tokens) : 0;
  return {{"tokens", sum.tokens}, {"loss", mean}, {"perplexity", std::exp(mean)}};
}

ordered_json Evaluation::Json(int64_t bytes) const {
  ordered_json json = SumJson(all_);
  json["bytes"] = bytes;
  json["bits_per_byte"] = bytes > 0
                              ? ordered_json(all_.loss / std::log(2.0) / static_cast<double>(bytes))
                              : ordered_json(nullptr);
  ordered_json positions = ordered_json::array();
  for (size_t i = 0; i < by_block_position_.size(); ++i) {
    ordered_json entry = {{"position", i}};
    entry.update(SumJson(by_block_position_[i]));
    positions.push_back(std::move(entry));
  }
  json["by_position_in_block"] = std::move(positions);
  ordered_json contexts = ordered_json::array();
  for (size_t i = 0; i < by_context_.size(); ++i) {
    if (by_context_[i].tokens == 0) continue;
    ordered_json entry = {{"context_tokens_from", int64_t{1} << i}};
    entry.update(SumJson(by_context_[i]));
    contexts.push_back(std::move(entry));
  }
  json["by_context_length"] = std::move(contexts);
  return json;
}

std::string Evaluation::Table(const ordered_json& json) {
  std::string text;
  if (json.contains("model")) {
    absl::StrAppendFormat(&text, "%s, %s, alignment %s, windows of %d tokens every %d\n",
                          json["model"].get<std::string>(), json["arithmetic"].get<std::string>(),
                          json["alignment"].get<std::string>(), json["window"].get<int64_t>(),
                          json["stride"].get<int64_t>());
  }
  text += absl::StrFormat("%d tokens, loss %.4f, perplexity %.3f", json["tokens"].get<int64_t>(),
                          json["loss"].get<double>(), json["perplexity"].get<double>());
  if (json["bits_per_byte"].is_number()) {
    absl::StrAppendFormat(&text, ", %.4f bits per byte", json["bits_per_byte"].get<double>());
  }
  const auto rows = [&](const char* title, const char* list, const char* key) {
    absl::StrAppendFormat(&text, "\n\n%-24s %10s %8s %12s", title, "tokens", "loss", "perplexity");
    for (const ordered_json& entry : json[list]) {
      absl::StrAppendFormat(&text, "\n%-24d %10d ", entry[key].get<int64_t>(),
                            entry["tokens"].get<int64_t>());
      if (entry["tokens"] == 0) {
        absl::StrAppendFormat(&text, "%8s %12s", "-", "-");
      } else {
        absl::StrAppendFormat(&text, "%8.4f %12.3f", entry["loss"].get<double>(),
                              entry["perplexity"].get<double>());
      }
    }
  };
  rows("position in block", "by_position_in_block", "position");
  rows("tokens of context, from", "by_context_length", "context_tokens_from");
  return text + "\n";
}

}  // namespace blockserve
