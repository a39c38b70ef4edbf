#include "app/generation_output.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace blockserve {

using nlohmann::ordered_json;
using Logprobs = google::protobuf::RepeatedPtrField<v1::TokenLogprobs>;

std::string FinishReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    default:
      return absl::StrCat(static_cast<int>(reason));
  }
}

ordered_json LogprobsJson(const Logprobs& logprobs) {
  ordered_json list = ordered_json::array();
  for (const v1::TokenLogprobs& entry : logprobs) {
    if (entry.has_logprob()) {
      list.push_back(entry.logprob());
    } else {
      list.push_back(nullptr);
    }
  }
  return list;
}

ordered_json TopLogprobsJson(const Logprobs& logprobs) {
  ordered_json list = ordered_json::array();
  bool any = false;
  for (const v1::TokenLogprobs& entry : logprobs) {
    ordered_json best = ordered_json::array();
    for (const v1::TopLogprob& top : entry.top()) {
      best.push_back({{"token", top.token()}, {"logprob", top.logprob()}});
      any = true;
    }
    list.push_back(std::move(best));
  }
  if (!any) return nullptr;
  return list;
}

ordered_json UsageJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"cached_prompt_tokens", usage.cached_prompt_tokens()}};
}

void GenerationOutput::Add(const v1::GenerateResponse& event) {
  switch (event.event_case()) {
    case v1::GenerateResponse::kStarted:
      started_ = event.started();
      break;
    case v1::GenerateResponse::kOutput: {
      const v1::Output& output = event.output();
      Choice& choice = choices_[output.choice()];
      choice.text += output.text();
      choice.tokens.insert(choice.tokens.end(), output.tokens().begin(), output.tokens().end());
      choice.logprobs.MergeFrom(output.logprobs());
      break;
    }
    case v1::GenerateResponse::kFinished: {
      Choice& choice = choices_[event.finished().choice()];
      choice.text += event.finished().text();
      choice.finished = event.finished();
      break;
    }
    case v1::GenerateResponse::kUsage:
      usage_ = event.usage();
      break;
    case v1::GenerateResponse::EVENT_NOT_SET:
      break;  // of a later version of the protocol
  }
}

ordered_json GenerationOutput::Json() const {
  ordered_json list = ordered_json::array();
  for (const auto& [index, choice] : choices_) {
    ordered_json entry;
    entry["index"] = index;
    entry["text"] = has_tokenizer_ ? ordered_json(choice.text) : ordered_json(nullptr);
    entry["tokens"] = choice.tokens;
    if (!choice.logprobs.empty()) entry["logprobs"] = LogprobsJson(choice.logprobs);
    if (ordered_json top = TopLogprobsJson(choice.logprobs); !top.is_null()) {
      entry["top_logprobs"] = std::move(top);
    }
    if (choice.finished.has_value()) {
      entry["finish_reason"] = FinishReasonName(choice.finished->reason());
      if (choice.finished->has_stop_token()) entry["stop_token"] = choice.finished->stop_token();
      if (choice.finished->has_stop_string()) entry["stop_string"] = choice.finished->stop_string();
    } else {
      entry["finish_reason"] = nullptr;
    }
    list.push_back(std::move(entry));
  }
  ordered_json json;
  json["choices"] = std::move(list);
  json["usage"] = UsageJson(usage_);
  json["request_id"] = started_.request_id();
  json["model_id"] = started_.model_id();
  json["seed"] = started_.seed();
  return json;
}

int64_t GenerationOutput::completion_tokens() const {
  int64_t tokens = 0;
  for (const auto& [index, choice] : choices_) tokens += choice.tokens.size();
  return tokens;
}

std::vector<std::string> GenerationOutput::Texts() const {
  std::vector<std::string> texts;
  for (const auto& [index, choice] : choices_) {
    texts.push_back(has_tokenizer_ ? choice.text : absl::StrJoin(choice.tokens, " "));
  }
  return texts;
}

std::string VisibleText(const v1::GenerateResponse& event, bool has_tokenizer) {
  if (event.has_finished()) return event.finished().text();
  if (!event.has_output()) return "";
  if (has_tokenizer) return event.output().text();
  std::string ids;
  for (const int32_t id : event.output().tokens()) absl::StrAppend(&ids, id, " ");
  return ids;
}

}  // namespace blockserve
