// blockserve evaluate: how well a model predicts a text.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "app/command.h"
#include "app/evaluation.h"
#include "app/request_flags.h"
#include "app/source.h"
#include "common/logging.h"
#include "common/program.h"
#include "common/utf8.h"
#include "model/alignment.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve evaluate";
constexpr absl::string_view kUsage =
    "blockserve evaluate (--model DIR | --server ADDRESS) --text FILE\n"
    "Perplexity, bits per byte, and loss by position in the block and by length of context.";

struct EvaluateOptions {
  SourceOptions source;
  std::string file;
  int32_t window = 1024;
  int32_t stride = 512;
  int32_t limit = 0;
  std::string alignment = "start";
  std::string format = "text";

  absl::Status Validate() const {
    if (file.empty()) return absl::InvalidArgumentError("--text is missing");
    if (window < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("--window is ", window, "; it must be 2 or more"));
    }
    if (stride < 1 || stride > window) {
      return absl::InvalidArgumentError(
          absl::StrCat("--stride is ", stride, "; it must be 1 to --window, which is ", window));
    }
    if (limit < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--limit is ", limit, "; it must be 0 or more"));
    }
    return source.Validate();
  }
};

absl::StatusOr<nlohmann::ordered_json> Evaluate(const EvaluateOptions& options) {
  absl::StatusOr<std::string> text = ReadInput("--text", options.file);
  if (!text.ok()) return text.status();
  if (!IsValidUtf8(*text)) {
    return absl::InvalidArgumentError(absl::StrCat("--text ", options.file, " is not valid UTF-8"));
  }
  absl::StatusOr<Alignment> alignment = ParseAlignment(options.alignment);
  if (!alignment.ok()) return alignment.status();
  absl::StatusOr<std::unique_ptr<Source>> opened = Source::Open(options.source);
  if (!opened.ok()) return opened.status();
  Source& source = **opened;
  absl::StatusOr<v1::GetModelResponse> model = source.client().GetModel(source.call_options());
  if (!model.ok()) return source.Explain(model.status());
  absl::StatusOr<std::vector<int32_t>> tokens =
      source.client().Tokenize(*text, source.call_options());
  if (!tokens.ok()) return source.Explain(tokens.status());
  if (options.limit > 0 && tokens->size() > static_cast<size_t>(options.limit)) {
    tokens->resize(static_cast<size_t>(options.limit));
  }
  if (tokens->size() < 2) {
    return absl::InvalidArgumentError(absl::StrCat("--text ", options.file, " is too short"));
  }

  ModelConfig shape;
  shape.block_length = model->block_length();
  Evaluation evaluation(shape.block_length);
  const int64_t num_tokens = static_cast<int64_t>(tokens->size());
  for (const Window& window : LayWindows(num_tokens, options.window, options.stride)) {
    v1::ScoreRequest request;
    request.mutable_continuation_tokens()->mutable_ids()->Add(tokens->begin() + window.begin,
                                                              tokens->begin() + window.end);
    request.set_alignment(AlignmentValue(options.alignment));
    absl::StatusOr<v1::ScoreResponse> scores =
        source.client().Score(request, source.call_options());
    if (!scores.ok()) return source.Explain(scores.status());
    const int64_t length = window.end - window.begin;
    if (scores->logprobs_size() != length) {
      return absl::InternalError(
          absl::StrCat(scores->logprobs_size(), " scores came for ", length, " tokens"));
    }
    std::vector<std::optional<float>> logprobs;
    for (const v1::TokenLogprobs& entry : scores->logprobs()) {
      logprobs.push_back(entry.has_logprob() ? std::optional(entry.logprob()) : std::nullopt);
    }
    evaluation.Add(window, logprobs, NumPads(shape, *alignment, length));
  }

  // The text's first token has no score, so that its bytes do not count.
  absl::StatusOr<std::string> all = source.client().Detokenize(*tokens);
  if (!all.ok()) return source.Explain(all.status());
  absl::StatusOr<std::string> first = source.client().Detokenize({tokens->front()});
  if (!first.ok()) return source.Explain(first.status());
  return evaluation.Json(static_cast<int64_t>(all->size()) - static_cast<int64_t>(first->size()));
}

}  // namespace

int RunEvaluate(const Arguments& arguments) {
  EvaluateOptions options;
  FlagTable flags;
  options.source.AddFlags(flags);
  flags.Add("text", "file of UTF-8 text; -: standard input", &options.file);
  flags.Add("window", "tokens that are scored together", &options.window);
  flags.Add("stride", "tokens from one window to the next", &options.stride);
  flags.Add("limit", "tokens of the text at most; 0: all", &options.limit);
  flags.AddChoice("alignment", "where blocks begin: end, start or none", {"end", "start", "none"},
                  &options.alignment);
  flags.AddChoice("format", "text or json", {"text", "json"}, &options.format);
  if (std::optional<int> exit = ParseCommand(kProgram, kUsage, flags, arguments)) return *exit;
  if (absl::Status status = options.Validate(); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }
  (void)ConfigureLogging({std::string(kProgram), "error"});
  absl::StatusOr<nlohmann::ordered_json> json = Evaluate(options);
  if (!json.ok()) return ReportFailure(kProgram, json.status());
  const std::string text =
      options.format == "json" ? json->dump() + "\n" : Evaluation::Table(*json);
  std::fputs(text.c_str(), stdout);
  return kExitOk;
}

}  // namespace blockserve
