#include "bench/load_program.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "bench/load_plot.h"
#include "bench/load_report.h"
#include "common/program.h"
#include "rpc/connection_advice.h"

namespace blockserve {
namespace {

constexpr absl::Duration kConnectTimeout = absl::Seconds(20);
// Ids that every byte-level vocabulary has: what is sent where a server does not tell its size.
constexpr int32_t kSmallVocabulary = 256;
// Points of a sweep are numbered so far apart: no point has as many requests.
constexpr int64_t kRequestsOfAPoint = int64_t{1} << 32;

// SIGINT and SIGTERM, asked for rather than waited for.
class StopSignals {
 public:
  StopSignals() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  }
  bool Came() {
    const timespec no_time = {};
    if (!came_ && sigtimedwait(&signals_, nullptr, &no_time) > 0) {
      came_ = true;
      pthread_sigmask(SIG_UNBLOCK, &signals_, nullptr);  // a second one ends the process
    }
    return came_;
  }

 private:
  sigset_t signals_;
  bool came_ = false;
};

class ProgressLine {
 public:
  ProgressLine(bool shown, std::string prefix)
      : shown_(shown), prefix_(std::move(prefix)), terminal_(isatty(STDERR_FILENO) != 0) {}

  void Show(const LoadSnapshot& snapshot) {
    if (!shown_ || snapshot.elapsed_us < next_) return;
    const double seconds = static_cast<double>(snapshot.elapsed_us - last_.elapsed_us) / 1e6;
    const std::string line = absl::StrFormat(
        "%s%s%5.0f s   sent %d   ok %d   failed %d   in flight %d   %.0f tokens/s%s",
        terminal_ ? "\r" : "", prefix_, static_cast<double>(snapshot.elapsed_us) / 1e6,
        snapshot.sent, snapshot.ok, snapshot.failed, snapshot.sent - snapshot.ok - snapshot.failed,
        static_cast<double>(snapshot.output_tokens - last_.output_tokens) / seconds,
        terminal_ ? "    " : "\n");
    std::fputs(line.c_str(), stderr);
    std::fflush(stderr);
    last_ = snapshot;
    next_ = snapshot.elapsed_us + 1'000'000;
    written_ = true;
  }
  void End() {
    if (written_ && terminal_) std::fputs("\n", stderr);
    written_ = false;
  }

 private:
  const bool shown_;
  const std::string prefix_;
  const bool terminal_;
  bool written_ = false;
  int64_t next_ = 1'000'000;
  LoadSnapshot last_;
};

// Not before signals are blocked: credentials of gRPC start threads.
absl::Status PrepareTls(LoadTarget& target) {
  if (target.over_http) {
    target.http.server_name = target.tls.server_name;
    if (!target.tls.enabled()) return absl::OkStatus();
    auto context = MakeHttpClientTls(target.tls);
    if (!context.ok()) return context.status();
    target.http.tls = *std::move(context);
    return absl::OkStatus();
  }
  target.grpc.server_name = target.tls.server_name;
  auto credentials = MakeChannelCredentials(target.tls);
  if (!credentials.ok()) return credentials.status();
  target.grpc.credentials = *std::move(credentials);
  return absl::OkStatus();
}

// The flag that is missing or wrong, where the error of a gRPC call tells.
absl::Status NamingTheFlag(const absl::Status& status, const LoadTarget& target) {
  std::string flag;
  if (absl::IsUnauthenticated(status)) flag = " (--api-key-file)";
  if (absl::IsUnavailable(status)) flag = ConnectionAdvice(status.message(), target.tls);
  return absl::Status(status.code(), absl::StrCat(status.message(), flag));
}

// Asks the server what it serves: fills in what random prompts need, and describes the target.
absl::Status AskTarget(LoadProgramConfig& config, LoadDescription& description) {
  WorkloadOptions& workload = config.workload;
  if (config.target.over_http) {
    HttpTargetOptions& http = config.target.http;
    if (http.model.empty()) {
      absl::StatusOr<std::string> model = AskHttpModel(http, kConnectTimeout);
      if (!model.ok()) return model.status();
      http.model = *std::move(model);
    }
    description.target = {{"protocol", "http"},
                          {"address", http.address()},
                          {"path", http.path},
                          {"model", http.model}};
    workload.vocab_size = kSmallVocabulary;
    return absl::OkStatus();
  }
  absl::StatusOr<v1::GetModelResponse> model = AskModel(config.target.grpc, kConnectTimeout);
  if (!model.ok()) return NamingTheFlag(model.status(), config.target);
  description.target = {{"protocol", "grpc"},
                        {"address", absl::StrJoin(config.target.grpc.addresses, ",")},
                        {"model", model->name()},
                        {"model_id", model->model_id()},
                        {"kind", model->kind()},
                        {"block_length", model->block_length()},
                        {"block_services", model->block_services()},
                        {"token_workers", model->token_workers()}};
  workload.vocab_size = model->vocab_size();
  workload.excluded_tokens = {model->bos_token_id(), model->eos_token_id(), model->pad_token_id()};
  workload.max_total_tokens = model->max_tokens();
  return workload.CheckLengths();
}

LoadReport RunOnce(const LoadProgramConfig& config, const LoadPlan& plan, const Workload& workload,
                   LoadDescription description, const std::string& prefix, StopSignals& signals) {
  LoadReport report;
  report.objectives = plan.objectives;
  const absl::Time started = absl::Now();
  description.started_at = absl::FormatTime(absl::RFC3339_sec, started, absl::UTCTimeZone());
  description.started_unix_s = absl::ToDoubleSeconds(started - absl::UnixEpoch());
  report.description = std::move(description);
  ProgressLine progress(config.progress, prefix);
  report.result = RunLoad(
      plan, workload,
      [&config]() -> std::unique_ptr<LoadTransport> {
        if (config.target.over_http) return MakeHttpTransport(config.target.http);
        return MakeGrpcTransport(config.target.grpc);
      },
      [&](const LoadSnapshot& snapshot) {
        progress.Show(snapshot);
        return !signals.Came();
      });
  progress.End();
  return report;
}

absl::Status WriteWhereWanted(const std::string& path,
                              const std::function<std::string()>& content) {
  return path.empty() ? absl::OkStatus() : WriteFile(path, content());
}

// A run that cannot be told is not begun.
absl::Status CheckOutputs(const LoadOutputs& outputs) {
  const std::pair<const char*, const std::string&> named[] = {
      {"--json", outputs.json}, {"--csv", outputs.csv}, {"--html", outputs.html}};
  for (const auto& [flag, path] : named) {
    if (path.empty()) continue;
    if (absl::Status status = CheckWritable(path); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(flag, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

// A label and names of files may be no UTF-8.
std::string ToFile(const nlohmann::ordered_json& json) {
  return absl::StrCat(json.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace),
                      "\n");
}

absl::Status WriteReport(const LoadReport& report, const LoadOutputs& outputs) {
  if (outputs.json != "-") std::fputs(ToText(report).c_str(), stdout);
  absl::Status status = WriteWhereWanted(outputs.json, [&] { return ToFile(ToJson(report)); });
  status.Update(WriteWhereWanted(outputs.csv, [&] { return ToCsv(report); }));
  status.Update(WriteWhereWanted(outputs.html, [&] { return PageOf(report); }));
  return status;
}

absl::StatusOr<int> Judge(const LoadResult& result, int64_t max_failed) {
  if (result.usage_wrong > 0) {
    return absl::InternalError(absl::StrCat(result.usage_wrong, " answers were not as asked for: ",
                                            result.error_examples.at("WRONG_OUTPUT")));
  }
  if (result.ok == 0) return absl::InternalError("no request succeeded");
  if (max_failed >= 0 && result.failed() > max_failed) {
    return absl::InternalError(
        absl::StrCat(result.failed(), " requests failed, --max-failed is ", max_failed));
  }
  return kExitOk;
}

absl::StatusOr<int> RunSweep(const LoadProgramConfig& config, const Workload& workload,
                             const LoadDescription& description, StopSignals& signals) {
  std::vector<SweepPoint> points;
  LoadResult all;
  for (const double value : config.sweep.values) {
    if (signals.Came()) break;
    LoadPlan plan = config.plan;
    plan.first_index = std::ssize(points) * kRequestsOfAPoint;
    SetOffered(config.sweep, value, plan);
    LoadDescription one = description;
    if (config.sweep.by_concurrency) {
      one.workload["concurrency"] = plan.concurrency;
    } else {
      one.workload["rate"] = plan.rate;
    }
    points.push_back({value, RunOnce(config, plan, workload, std::move(one),
                                     absl::StrFormat("%8.4g: ", value), signals)});
    all.Merge(points.back().report.result);
  }
  if (config.json != "-") std::fputs(SweepToText(config.sweep, points).c_str(), stdout);
  absl::Status status =
      WriteWhereWanted(config.json, [&] { return ToFile(SweepToJson(config.sweep, points)); });
  status.Update(WriteWhereWanted(config.csv, [&] { return SweepToCsv(config.sweep, points); }));
  status.Update(WriteWhereWanted(config.html, [&] { return PageOf(config.sweep, points); }));
  if (!status.ok()) return status;
  return Judge(all, config.max_failed);
}

absl::StatusOr<std::vector<LoadReport>> ReadReports(const std::vector<std::string>& paths) {
  std::vector<LoadReport> reports;
  for (const std::string& path : paths) {
    absl::StatusOr<LoadReport> report = ReadReport(path);
    if (!report.ok()) return report.status();
    reports.push_back(*std::move(report));
  }
  return reports;
}

}  // namespace

void SetOffered(const SweepPlan& sweep, double value, LoadPlan& plan) {
  if (sweep.by_concurrency) {
    plan.concurrency = static_cast<int32_t>(std::lround(value));
  } else {
    plan.rate = value;
  }
}

absl::StatusOr<int> RunProgram(LoadProgramConfig config) {
  StopSignals signals;  // before any thread
  LoadDescription description;
  description.label = config.label;
  description.command = config.command;
  const LoadOutputs outputs = {config.json, config.csv, config.html};
  if (absl::Status status = CheckOutputs(outputs); !status.ok()) return status;
  if (absl::Status status = PrepareTls(config.target); !status.ok()) return status;
  if (absl::Status status = AskTarget(config, description); !status.ok()) return status;
  description.workload = config.description;
  const Workload workload(config.workload);
  const absl::Time start = absl::FromUnixMicros(std::llround(config.start_at * 1e6));
  while (absl::Now() < start) {
    if (signals.Came()) return absl::CancelledError("stopped before the start");
    absl::SleepFor(std::min(absl::Milliseconds(50), start - absl::Now()));
  }
  if (!config.sweep.values.empty()) return RunSweep(config, workload, description, signals);
  const LoadReport report =
      RunOnce(config, config.plan, workload, std::move(description), "", signals);
  absl::Status status = WriteReport(report, outputs);
  if (!status.ok()) return status;
  return Judge(report.result, config.max_failed);
}

absl::StatusOr<int> MergeResults(const std::vector<std::string>& paths,
                                 const LoadOutputs& outputs) {
  if (!outputs.csv.empty()) {
    return absl::InvalidArgumentError("--merge knows no single requests for --csv");
  }
  absl::StatusOr<std::vector<LoadReport>> reports = ReadReports(paths);
  if (!reports.ok()) return reports.status();
  absl::StatusOr<LoadReport> merged = MergeReports(*reports);
  if (!merged.ok()) return merged.status();
  if (absl::Status status = WriteReport(*merged, outputs); !status.ok()) return status;
  return kExitOk;
}

absl::StatusOr<int> CompareResults(const std::vector<std::string>& paths,
                                   const LoadOutputs& outputs) {
  if (paths.size() != 2) return absl::InvalidArgumentError("--compare takes two results");
  if (!outputs.csv.empty() || !outputs.json.empty()) {
    return absl::InvalidArgumentError("--compare writes text, and --html");
  }
  absl::StatusOr<std::vector<LoadReport>> reports = ReadReports(paths);
  if (!reports.ok()) return reports.status();
  std::fputs(CompareToText((*reports)[0], (*reports)[1]).c_str(), stdout);
  absl::Status status =
      WriteWhereWanted(outputs.html, [&] { return PageOfTwo((*reports)[0], (*reports)[1]); });
  if (!status.ok()) return status;
  return kExitOk;
}

}  // namespace blockserve
