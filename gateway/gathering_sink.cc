#include "gateway/gathering_sink.h"

#include <optional>
#include <utility>
#include <vector>

namespace blockserve {
namespace {

class GatheringSink final : public GenerationSink {
 public:
  GatheringSink(std::shared_ptr<GenerationSink> sink, int32_t tokens, int32_t choices)
      : sink_(std::move(sink)), tokens_(tokens), choices_(static_cast<size_t>(choices)) {}

  void OnStarted(v1::Started started) override { sink_->OnStarted(std::move(started)); }
  void OnOutput(v1::Output output, OutputDetail detail) override {
    Choice& choice = choices_[output.choice()];
    const bool at_once = detail.ends_choice || !std::exchange(choice.begun, true);
    Append(std::move(output), std::move(detail), choice);
    if (at_once || choice.output->tokens_size() >= tokens_) Pass(choice);
  }
  void OnFinished(v1::Finished finished) override { sink_->OnFinished(std::move(finished)); }
  void OnDone(absl::Status status, v1::Usage usage) override {
    for (Choice& choice : choices_) {
      if (choice.output.has_value()) Pass(choice);
    }
    sink_->OnDone(std::move(status), std::move(usage));
  }
  bool WantsMore() const override { return sink_->WantsMore(); }

 private:
  struct Choice {
    bool begun = false;
    std::optional<v1::Output> output;  // not passed on yet
    OutputDetail detail;
  };

  static void Append(v1::Output output, OutputDetail detail, Choice& choice) {
    if (!choice.output.has_value()) {
      choice.output = std::move(output);
      choice.detail = std::move(detail);
      return;
    }
    v1::Output& joined = *choice.output;
    for (const int32_t end : detail.text_ends) {
      choice.detail.text_ends.push_back(static_cast<int32_t>(joined.text().size()) + end);
    }
    choice.detail.ends_choice = detail.ends_choice;
    joined.set_worker(output.worker());
    AppendOutput(std::move(output), joined);
  }

  void Pass(Choice& choice) {
    sink_->OnOutput(*std::exchange(choice.output, std::nullopt), std::exchange(choice.detail, {}));
  }

  const std::shared_ptr<GenerationSink> sink_;
  const int32_t tokens_;
  std::vector<Choice> choices_;
};

}  // namespace

void AppendOutput(v1::Output more, v1::Output& output) {
  output.mutable_tokens()->MergeFrom(more.tokens());
  output.mutable_text()->append(more.text());
  for (v1::TokenLogprobs& logprobs : *more.mutable_logprobs()) {
    *output.add_logprobs() = std::move(logprobs);
  }
}

std::shared_ptr<GenerationSink> Gathering(std::shared_ptr<GenerationSink> sink, int32_t tokens,
                                          int32_t choices) {
  if (tokens <= 1) return sink;
  return std::make_shared<GatheringSink>(std::move(sink), tokens, choices);
}

}  // namespace blockserve
