// blockserve generate: continues a prompt.
#include <cstdint>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "app/command.h"
#include "app/generation_output.h"
#include "app/request_flags.h"
#include "app/source.h"
#include "common/clock.h"
#include "common/logging.h"
#include "common/program.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve generate";
constexpr absl::string_view kUsage =
    "blockserve generate (--model DIR | --server ADDRESS) (--prompt TEXT | --prompt-tokens 1,2,3)\n"
    "Continues a prompt. Greedy unless --temperature says otherwise.";

struct GenerateOptions {
  SourceOptions source;
  GenerateFlags request;
  std::string format = "text";
  bool stats = true;
};

void Write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

absl::Status Generate(const GenerateOptions& options, const v1::GenerateRequest& request) {
  absl::StatusOr<std::unique_ptr<Source>> source = Source::Open(options.source);
  if (!source.ok()) return source.status();
  absl::StatusOr<v1::GetModelResponse> model =
      (*source)->client().GetModel((*source)->call_options());
  if (!model.ok()) return (*source)->Explain(model.status());

  const bool as_json = options.format == "json";
  // Several choices come mixed: they are printed when all are there.
  const bool as_it_comes = !as_json && request.n() <= 1;
  GenerationOutput output(model->has_tokenizer());
  const absl::Time begin = SteadyClock().Now();
  absl::Status status = (*source)->client().Generate(
      request,
      [&](const v1::GenerateResponse& event) {
        output.Add(event);
        if (as_it_comes) Write(VisibleText(event, model->has_tokenizer()));
        return true;
      },
      (*source)->call_options());
  const absl::Duration elapsed = SteadyClock().Now() - begin;
  if (as_it_comes && output.completion_tokens() > 0) Write("\n");
  if (!status.ok()) return (*source)->Explain(NamingTheFlag(status));
  if (as_json) {
    Write(output.Json().dump() + "\n");
    return status;
  }
  if (!as_it_comes) {
    const std::vector<std::string> texts = output.Texts();
    for (size_t i = 0; i < texts.size(); ++i) {
      Write(absl::StrCat("--- choice ", i, "\n", texts[i], "\n"));
    }
  }
  if (options.stats) {
    const double seconds = absl::ToDoubleSeconds(elapsed);
    absl::FPrintF(stderr, "%d tokens in %.3f s, %.1f tokens/s\n", output.completion_tokens(),
                  seconds, static_cast<double>(output.completion_tokens()) / seconds);
  }
  return status;
}

}  // namespace

int RunGenerate(const Arguments& arguments) {
  GenerateOptions options;
  FlagTable flags;
  options.source.AddFlags(flags);
  options.request.AddFlags(flags);
  flags.AddChoice("format", "text or json", {"text", "json"}, &options.format);
  flags.Add("stats", "with text: tokens per second, to standard error", &options.stats);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (absl::Status status = options.source.Validate(); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }
  absl::StatusOr<v1::GenerateRequest> request = options.request.Request();
  if (!request.ok()) return ReportUsageError(kProgram, request.status());
  if (request->has_logprobs() && options.format != "json") {
    return ReportUsageError(
        kProgram, absl::InvalidArgumentError("--logprobs needs --format json: text has none"));
  }
  (void)ConfigureLogging({std::string(kProgram), "error"});
  return ReportFailure(kProgram, Generate(options, *request));
}

}  // namespace blockserve
