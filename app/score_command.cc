// blockserve score: log-probabilities of a given text.
#include <cstdio>
#include <optional>
#include <string>

#include "app/command.h"
#include "app/generation_output.h"
#include "app/request_flags.h"
#include "app/source.h"
#include "common/logging.h"
#include "common/program.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve score";
constexpr absl::string_view kUsage =
    "blockserve score (--model DIR | --server ADDRESS) --prompt TEXT [--continuation TEXT]\n"
    "Log-probabilities of a continuation after a prompt, or of a text by itself, as JSON.";

absl::Status Score(const SourceOptions& options, const v1::ScoreRequest& request) {
  absl::StatusOr<std::unique_ptr<Source>> source = Source::Open(options);
  if (!source.ok()) return source.status();
  absl::StatusOr<v1::ScoreResponse> response =
      (*source)->client().Score(request, (*source)->call_options());
  if (!response.ok()) return (*source)->Explain(NamingTheFlag(response.status()));
  nlohmann::ordered_json json;
  json["tokens"] = response->tokens();
  json["logprobs"] = LogprobsJson(response->logprobs());
  if (auto top = TopLogprobsJson(response->logprobs()); !top.is_null()) {
    json["top_logprobs"] = std::move(top);
  }
  json["usage"] = UsageJson(response->usage());
  json["model_id"] = response->model_id();
  std::puts(json.dump().c_str());
  return absl::OkStatus();
}

}  // namespace

int RunScore(const Arguments& arguments) {
  SourceOptions source;
  ScoreFlags score;
  std::string format = "json";
  FlagTable flags;
  source.AddFlags(flags);
  score.AddFlags(flags);
  flags.AddChoice("format", "json", {"json"}, &format);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  if (absl::Status status = source.Validate(); !status.ok()) {
    return ReportUsageError(kProgram, status);
  }
  absl::StatusOr<v1::ScoreRequest> request = score.Request();
  if (!request.ok()) return ReportUsageError(kProgram, request.status());
  (void)ConfigureLogging({std::string(kProgram), "error"});
  return ReportFailure(kProgram, Score(source, *request));
}

}  // namespace blockserve
