#include "gateway/http/completion_answer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "gateway/call_tiers.h"
#include "gateway/http/json_fields.h"

namespace blockserve {

CompletionAnswer::CompletionAnswer(const Tokenizer* tokenizer, const HttpCompletionJob& job)
    : tokenizer_(tokenizer),
      job_(job),
      event_per_token_(!job.wanted.per_block),
      head_(job.head),
      scores_(job.prompts.size()),
      usage_(job.prompts.size()),
      choices_(job.prompts.size() * static_cast<size_t>(job.wanted.n())) {
  id_.request_id = job.request_id;
  id_.seed = job.seed;
  id_.prompts = job.prompts_hash;
  id_.tokens.resize(choices_.size());
  for (size_t i = 0; i < job.prompts.size(); ++i) {
    const HttpPromptJob& prompt = job.prompts[i];
    usage_[i].prompt_tokens = static_cast<int64_t>(prompt.ids.size());
    if (prompt.generation.has_value() && prompt.generation->stream_interval > 1) {
      event_per_token_ = false;
    }
  }
}

void CompletionAnswer::Bind(absl::string_view model_id, absl::string_view block_numeric_id,
                            absl::string_view token_numeric_id) {
  if (!head_.fingerprint.empty()) return;
  head_.fingerprint = absl::StrCat(block_numeric_id, "/", token_numeric_id);
  id_.tiers = HashOfTiers(model_id, block_numeric_id, token_numeric_id);
}

void CompletionAnswer::AddScore(size_t prompt, v1::ScoreResponse score) {
  usage_[prompt].cached_tokens = score.usage().cached_prompt_tokens();
  scores_[prompt] = std::move(score);
}

void CompletionAnswer::AddBlock(size_t prompt, Block block) {
  const size_t index = IndexOf(prompt, block.output.choice());
  if (block.detail.ends_choice) {
    choices_[index].last_block = std::move(block);
  } else if (job_.wanted.stream) {
    WriteEvents(index, block, nullptr);
  } else {
    Gather(index, block, nullptr);
  }
}

absl::Status CompletionAnswer::Finish(size_t prompt, v1::Finished finished) {
  const size_t index = IndexOf(prompt, finished.choice());
  Choice& choice = choices_[index];
  const Block last = choice.last_block.has_value() ? *std::move(choice.last_block) : Block();
  choice.last_block.reset();
  if (job_.wanted.stream) {
    WriteEvents(index, last, &finished);
  } else {
    Gather(index, last, &finished);
  }
  if (job_.resume.has_value() && id_.tokens[index] < job_.resume->tokens[index]) {
    return FieldError("Last-Event-ID", "is beyond the end of choice ", index);
  }
  choice.finished = std::move(finished);
  return absl::OkStatus();
}

void CompletionAnswer::AddUsage(size_t prompt, const v1::Usage& usage) {
  usage_[prompt].completion_tokens = usage.completion_tokens();
  usage_[prompt].cached_tokens = usage.cached_prompt_tokens();
}

void CompletionAnswer::EchoAlone(size_t prompt) {
  for (uint32_t i = 0; i < static_cast<uint32_t>(job_.wanted.n()); ++i) {
    const size_t index = IndexOf(prompt, i);
    v1::Finished finished;
    finished.set_choice(i);
    finished.set_reason(v1::FINISH_REASON_LENGTH);
    if (job_.wanted.stream) {
      WriteEvent(index, Block(), 0, 0, "", &finished);
    } else {
      choices_[index].text = BeginChoice(index);
    }
    choices_[index].finished = std::move(finished);
  }
}

std::string CompletionAnswer::TakeEvents() { return std::exchange(out_, {}); }

std::string CompletionAnswer::TakeLastEvents() {
  if (job_.wanted.include_usage) Events().AppendUsageOnly(out_, EventId(), TotalUsage());
  out_.append(kSseDone.data(), kSseDone.size());
  return TakeEvents();
}

std::string CompletionAnswer::TakeWhole() {
  std::vector<OpenAiChoice> choices(choices_.size());
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice& choice = choices_[i];
    choices[i].index = i;
    choices[i].text = choice.text;
    if (choice.logprobs.has_value()) choices[i].logprobs = choice.logprobs->Take();
    if (choice.finished.has_value()) choices[i].finished = &*choice.finished;
    if (job_.wanted.return_token_ids) {
      choices[i].token_ids = choice.ids;
      choices[i].prompt_token_ids = job_.prompts[i / static_cast<size_t>(job_.wanted.n())].ids;
    }
  }
  std::string whole = OpenAiAnswer(head_, choices, TotalUsage());
  choices_.clear();  // the call may stay for as long as its client takes to read
  return whole;
}

std::string CompletionAnswer::BeginChoice(size_t index) {
  const HttpCompletion& wanted = job_.wanted;
  const size_t prompt = index / static_cast<size_t>(wanted.n());
  Choice& choice = choices_[index];
  choice.begun = true;
  const std::string& echo = job_.prompts[prompt].text;
  if (wanted.request.has_logprobs()) {
    choice.logprobs.emplace(tokenizer_, wanted.chat, wanted.tokens_as_ids);
    const std::optional<v1::ScoreResponse>& score = scores_[prompt];
    for (int i = 0; score.has_value() && i < score->tokens_size(); ++i) {
      choice.logprobs->Add(score->tokens(i), score->logprobs(i));
    }
    choice.logprobs->BeginOutput(wanted.echo ? CountCharacters(echo) : 0);
  }
  return wanted.echo ? echo : "";
}

void CompletionAnswer::Gather(size_t index, const Block& block, const v1::Finished* finished) {
  const v1::Output& output = block.output;
  Choice& choice = choices_[index];
  if (!choice.begun) choice.text = BeginChoice(index);
  choice.text += output.text();
  if (finished != nullptr) choice.text += finished->text();
  id_.tokens[index] += output.tokens_size();
  if (job_.wanted.return_token_ids) {
    choice.ids.insert(choice.ids.end(), output.tokens().begin(), output.tokens().end());
  }
  for (int i = 0; choice.logprobs.has_value() && i < output.tokens_size(); ++i) {
    choice.logprobs->Add(output.tokens(i), output.logprobs(i));
  }
}

void CompletionAnswer::WriteEvents(size_t index, const Block& block, const v1::Finished* finished) {
  const v1::Output& output = block.output;
  const size_t size = static_cast<size_t>(output.tokens_size());
  const absl::string_view text = output.text();
  size_t text_begin = 0;
  size_t end = 0;
  // Once, without tokens, where the end of a choice comes without a block.
  for (size_t begin = 0; begin < size || begin == 0; begin = end) {
    end = event_per_token_ ? std::min(begin + 1, size) : size;
    if (job_.resume.has_value()) {
      // Another gateway may have cut the stream elsewhere (--stream-interval).
      const int64_t left = job_.resume->tokens[index] - id_.tokens[index];
      if (left > 0) end = std::min(end, begin + static_cast<size_t>(left));
    }
    const bool last = end == size;
    const size_t text_end =
        last ? text.size() : static_cast<size_t>(block.detail.text_ends[end - 1]);
    const absl::string_view piece = text.substr(text_begin, text_end - text_begin);
    text_begin = text_end;
    if (last && finished != nullptr && !finished->text().empty()) {
      WriteEvent(index, block, begin, end, absl::StrCat(piece, finished->text()), finished);
    } else {
      WriteEvent(index, block, begin, end, piece, last ? finished : nullptr);
    }
    if (last) return;
  }
}

void CompletionAnswer::WriteEvent(size_t index, const Block& block, size_t begin, size_t end,
                                  absl::string_view text, const v1::Finished* finished) {
  const HttpCompletion& wanted = job_.wanted;
  const size_t prompt = index / static_cast<size_t>(wanted.n());
  const v1::Output& output = block.output;
  Choice& choice = choices_[index];
  OpenAiChoice event;
  event.index = index;
  event.first = !choice.begun;
  std::string echoed;
  if (!choice.begun) {
    echoed = BeginChoice(index);
    if (wanted.return_token_ids) event.prompt_token_ids = job_.prompts[prompt].ids;
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
  if (wanted.return_token_ids) {
    event.token_ids = absl::MakeSpan(output.tokens().data() + begin, end - begin);
  }
  if (wanted.include_worker) event.worker = output.worker();
  id_.tokens[index] += static_cast<int64_t>(end - begin);
  usage_[prompt].completion_tokens += static_cast<int64_t>(end - begin);
  // The client has it from before.
  if (job_.resume.has_value() && id_.tokens[index] <= job_.resume->tokens[index]) return;
  if (wanted.continuous_usage) {
    const OpenAiUsage usage = TotalUsage();
    Events().AppendChoice(out_, EventId(), event, &usage);
  } else {
    Events().AppendChoice(out_, EventId(), event, nullptr);
  }
}

std::string CompletionAnswer::EventId() const {
  return job_.wanted.include_event_id ? id_.ToString() : "";
}

OpenAiEvents& CompletionAnswer::Events() {
  if (!events_.has_value()) events_.emplace(head_, job_.wanted.include_usage);
  return *events_;
}

OpenAiUsage CompletionAnswer::TotalUsage() const {
  OpenAiUsage total;
  for (const OpenAiUsage& usage : usage_) {
    total.prompt_tokens += usage.prompt_tokens;
    total.completion_tokens += usage.completion_tokens;
    total.cached_tokens += usage.cached_tokens;
  }
  return total;
}

}  // namespace blockserve
