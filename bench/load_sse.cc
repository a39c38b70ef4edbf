#include "bench/load_sse.h"

#include <iterator>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace blockserve {
namespace {

// Of one event; what never ends a line is not kept.
constexpr size_t kMostLineBytes = 16 << 20;

int64_t IntegerOr(const nlohmann::json& object, const char* name, int64_t otherwise) {
  const auto found = object.find(name);
  return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : otherwise;
}

}  // namespace

void CompletionEvents::Take(absl::string_view piece) {
  while (!piece.empty()) {
    const size_t end = piece.find('\n');
    if (end == absl::string_view::npos) {
      if (rest_.size() + piece.size() > kMostLineBytes) {
        fault_ = "an event is longer than 16 MiB";
        rest_.clear();
        return;
      }
      rest_.append(piece.data(), piece.size());
      return;
    }
    absl::string_view line = piece.substr(0, end);
    piece.remove_prefix(end + 1);
    if (!rest_.empty()) {
      rest_.append(line.data(), line.size());
      line = rest_;
    }
    absl::ConsumeSuffix(&line, "\r");
    // Every event is one line of data; other fields and comments are passed over.
    if (absl::ConsumePrefix(&line, "data:")) {
      absl::ConsumePrefix(&line, " ");
      TakeData(line);
    }
    rest_.clear();
  }
}

void CompletionEvents::TakeData(absl::string_view data) {
  if (data == "[DONE]") {
    done_ = true;
    return;
  }
  const nlohmann::json event =
      nlohmann::json::parse(data.begin(), data.end(), nullptr, /*allow_exceptions=*/false);
  if (!event.is_object()) {
    fault_ = absl::StrCat("an event is no JSON object: ", data.substr(0, 80));
    return;
  }
  if (const auto error = event.find("error"); error != event.end()) {
    const auto message = error->is_object() ? error->find("message") : error->end();
    fault_ = error->is_object() && message != error->end() && message->is_string()
                 ? message->get<std::string>()
                 : error->dump();
    return;
  }
  if (const auto choices = event.find("choices"); choices != event.end() && choices->is_array()) {
    for (const nlohmann::json& choice : *choices) {
      if (!choice.is_object()) continue;
      const auto index = static_cast<uint32_t>(IntegerOr(choice, "index", 0));
      std::vector<int32_t> ids;
      if (const auto tokens = choice.find("token_ids");
          tokens != choice.end() && tokens->is_array()) {
        for (const nlohmann::json& token : *tokens) {
          if (token.is_number_integer()) ids.push_back(token.get<int32_t>());
        }
      }
      const auto reason = choice.find("finish_reason");
      const bool finished = reason != choice.end() && reason->is_string();
      const auto text = choice.find("text");
      if (finished && ids.empty() && text != choice.end() && *text == "") {
        bare_ends_.push_back(index);
      } else {
        TellTokens(index, ids);
      }
      if (finished) observer_->OnFinished(index);
    }
  }
  if (const auto usage = event.find("usage"); usage != event.end() && usage->is_object()) {
    UsageReport report;
    report.prompt_tokens = IntegerOr(*usage, "prompt_tokens", 0);
    report.completion_tokens = IntegerOr(*usage, "completion_tokens", 0);
    if (const auto details = usage->find("prompt_tokens_details");
        details != usage->end() && details->is_object()) {
      report.cached_prompt_tokens = IntegerOr(*details, "cached_tokens", 0);
    }
    if (report.completion_tokens == tokens_ + std::ssize(bare_ends_)) {
      for (const uint32_t choice : bare_ends_) TellTokens(choice, {});
      bare_ends_.clear();
    }
    observer_->OnUsage(report);
  }
}

// Without ids an event is a token: what load tools count.
void CompletionEvents::TellTokens(uint32_t choice, const std::vector<int32_t>& ids) {
  const int64_t count = ids.empty() ? 1 : std::ssize(ids);
  tokens_ += count;
  observer_->OnTokens(choice, count, ids);
}

}  // namespace blockserve
