// blockserve evaluate: how well a model predicts a text.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "app/command.h"
#include "app/evaluation.h"
#include "app/evaluation_plot.h"
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
  std::string format = "table";
  std::string plot;
  std::vector<std::string> compare;

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

// One line that a person at a terminal sees growing.
class ProgressLine {
 public:
  ProgressLine() : shown_(isatty(STDERR_FILENO) != 0) {}
  ~ProgressLine() {
    if (shown_) std::fputs("\r\033[K", stderr);
  }
  void Show(const std::string& text) {
    if (shown_) std::fprintf(stderr, "\r\033[K%s", text.c_str());
  }

 private:
  const bool shown_;
};

// "f32" of the numeric id "f32-9a3c…": the arithmetic that was really used.
std::string ArithmeticOf(const std::string& numeric_id) {
  return numeric_id.substr(0, numeric_id.rfind('-'));
}

absl::StatusOr<nlohmann::ordered_json> Evaluate(const EvaluateOptions& options) {
  absl::StatusOr<std::string> text = ReadInput("--text", options.file);
  if (!text.ok()) return text.status();
  if (!IsValidUtf8(*text)) {
    return absl::InvalidArgumentError(absl::StrCat("--text ", options.file, " is not valid UTF-8"));
  }
  if (std::ssize(*text) > kMostTextBytes) {
    return absl::InvalidArgumentError(absl::StrCat("--text ", options.file, " has ", text->size(),
                                                   " bytes; ", kMostTextBytes,
                                                   " are the most that are tokenized as one text"));
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
  if (absl::IsFailedPrecondition(tokens.status())) {
    return source.Explain(
        absl::FailedPreconditionError(absl::StrCat("--text: ", tokens.status().message())));
  }
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
  const std::vector<Window> windows = LayWindows(num_tokens, options.window, options.stride);
  ProgressLine progress;
  size_t done = 0;
  for (const Window& window : windows) {
    progress.Show(absl::StrFormat("%d of %d windows, loss so far %.4f", done++, windows.size(),
                                  evaluation.MeanLoss()));
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

  if (evaluation.num_scored() == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--text ", options.file, " is too short: none of its tokens has a score"));
  }
  // What has no score, as the text's first token, does not count with its bytes either.
  std::vector<int32_t> unscored;
  for (const int64_t position : evaluation.unscored()) {
    unscored.push_back((*tokens)[static_cast<size_t>(position)]);
  }
  absl::StatusOr<std::string> all = source.client().Detokenize(*tokens);
  if (!all.ok()) return source.Explain(all.status());
  absl::StatusOr<std::string> left_out = source.client().Detokenize(unscored);
  if (!left_out.ok()) return source.Explain(left_out.status());
  nlohmann::ordered_json json = {{"model", model->name()},
                                 {"arithmetic", ArithmeticOf(model->block_numeric_id())},
                                 {"block_length", model->block_length()},
                                 {"text", options.file},
                                 {"alignment", options.alignment},
                                 {"window", options.window},
                                 {"stride", options.stride}};
  json.update(
      evaluation.Json(static_cast<int64_t>(all->size()) - static_cast<int64_t>(left_out->size())));
  return json;
}

// Earlier evaluations, to be drawn beside this one. Errors name the file.
absl::StatusOr<std::vector<nlohmann::ordered_json>> ReadEvaluations(
    const std::vector<std::string>& files) {
  std::vector<nlohmann::ordered_json> evaluations;
  for (const std::string& file : files) {
    absl::StatusOr<std::string> text = ReadInput("--compare", file);
    if (!text.ok()) return text.status();
    nlohmann::ordered_json json = nlohmann::ordered_json::parse(*text, nullptr, false);
    if (absl::Status status = CheckEvaluation(json); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--compare ", file, ": ", status.message()));
    }
    evaluations.push_back(std::move(json));
  }
  return evaluations;
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file) return absl::InvalidArgumentError(absl::StrCat("--plot ", path, " cannot be written"));
  return absl::OkStatus();
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
  flags.AddChoice("format", "table or json", {"table", "json"}, &options.format);
  flags.Add("plot", "SVG file to write", &options.plot);
  flags.AddRepeated("compare", "with --plot: JSON of an earlier run, to be drawn beside this one",
                    &options.compare);
  flags.Needs("compare", "plot");
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (absl::Status status = options.Validate(); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }
  (void)ConfigureLogging({std::string(kProgram), "error"});
  // Before the long part: a file that is not there is told at once.
  absl::StatusOr<std::vector<nlohmann::ordered_json>> plotted = ReadEvaluations(options.compare);
  if (!plotted.ok()) return ReportFailure(kProgram, plotted.status());
  absl::StatusOr<nlohmann::ordered_json> json = Evaluate(options);
  if (!json.ok()) return ReportFailure(kProgram, json.status());
  // The name of the file may be no UTF-8.
  const std::string text =
      options.format == "json"
          ? json->dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"
          : Evaluation::Table(*json);
  std::fputs(text.c_str(), stdout);
  // What took long is told whether or not it can be drawn.
  absl::Status status;
  if (!options.plot.empty()) {
    plotted->push_back(*std::move(json));
    status = WriteFile(options.plot, EvaluationPlot(*plotted));
  }
  return ReportFailure(kProgram, status);
}

}  // namespace blockserve
