// blockserve-load: load against a server of blockserve, and what came of it.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "bench/load_program.h"
#include "common/program.h"
#include "common/read_file.h"
#include "common/utf8.h"
#include "rpc/tls.h"

ABSL_FLAG(std::string, grpc, "", "servers to load, over gRPC: host:port, or several with commas");
ABSL_FLAG(std::string, http, "",
          "or over HTTP, as OpenAI's clients do: http(s)://host:port, perhaps with /v1");
ABSL_FLAG(std::string, model, "", "model that requests ask for; empty: what is served");
ABSL_FLAG(int32_t, stream_interval, 0,
          "tokens of a choice that the server is to send together; 0: as it does by itself");
ABSL_FLAG(std::string, cache_salt, "",
          "of the requests, who share KV with those of the same salt alone; empty: none");
ABSL_FLAG(std::string, api_key_file, "", "file that holds the API key that requests carry");
ABSL_FLAG(std::string, tls_ca, "", "PEM file of the server's CA, or system; empty: plaintext");
ABSL_FLAG(std::string, tls_cert, "", "PEM file of a certificate to show to the server");
ABSL_FLAG(std::string, tls_key, "", "PEM file of its key");
ABSL_FLAG(std::string, tls_name, "", "name in the server's certificate; empty: its host");
ABSL_FLAG(int32_t, concurrency, 0, "closed loop: requests under way at all times");
ABSL_FLAG(double, rate, 0, "open loop: requests per second, whatever the server does");
ABSL_FLAG(std::string, arrivals, "poisson", "open loop: poisson, constant or burst:N");
ABSL_FLAG(std::string, trace, "", "open loop: CSV of arrival s, prompt tokens, output tokens");
ABSL_FLAG(std::string, sweep, "",
          "rates A,B,C or FROM:TO:STEPS, one after another; concurrency:… likewise");
ABSL_FLAG(absl::Duration, duration, absl::ZeroDuration(),
          "measure for so long; 10s without --requests");
ABSL_FLAG(int64_t, requests, 0, "measure so many requests");
ABSL_FLAG(absl::Duration, warmup, absl::ZeroDuration(), "load before measuring");
ABSL_FLAG(std::string, prompt_tokens, "128",
          "N, uniform:A:B, normal:MEAN:SD, lognormal:MEDIAN:SIGMA, exponential:MEAN, file:PATH");
ABSL_FLAG(std::string, output_tokens, "128", "likewise, of each choice");
ABSL_FLAG(std::string, prompts, "", "file of prompts instead of random tokens: text or JSON lines");
ABSL_FLAG(std::string, shared_prefix, "",
          "N or N:COUNT: the first N tokens are one of COUNT common beginnings");
ABSL_FLAG(int32_t, n, 1, "choices of each request");
ABSL_FLAG(double, temperature, 1, "0 is greedy");
ABSL_FLAG(bool, ignore_eos, true, "every choice has all its tokens");
ABSL_FLAG(uint64_t, seed, 1, "of arrivals, lengths, prompts and sampling");
ABSL_FLAG(absl::Duration, timeout, absl::Seconds(120), "of a request, from when it was due");
ABSL_FLAG(std::string, objectives, "", "of goodput: ttft=500ms,itl=50ms,e2e=10s");
ABSL_FLAG(int32_t, max_in_flight, 10'000, "open loop: more wait here, and their clock runs");
ABSL_FLAG(int32_t, threads, 1, "that send and receive");
ABSL_FLAG(int32_t, connections, 1, "of each thread");
ABSL_FLAG(double, start_at, 0, "Unix time to begin at, for several processes together");
ABSL_FLAG(int64_t, max_failed, -1, "more failed requests make exit status 1; -1: any number");
ABSL_FLAG(std::string, label, "", "name of the result");
ABSL_FLAG(std::string, json, "", "file for the result; - is standard output");
ABSL_FLAG(std::string, csv, "", "file with a line for each request, or rate of a sweep");
ABSL_FLAG(std::string, html, "", "page with plots, that needs nothing else");
ABSL_FLAG(std::string, merge, "", "A.json B.json …: as one result, what several processes did");
ABSL_FLAG(std::string, compare, "", "A.json B.json: side by side");
ABSL_FLAG(bool, progress, true, "a line each second on standard error");

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve-load";
constexpr absl::Duration kDefaultDuration = absl::Seconds(10);
// Ten years: what "inf" means, so that sums of times stay in range.
constexpr absl::Duration kLongestTime = absl::Hours(24 * 3650);

int64_t MicrosOf(absl::Duration time) {
  return absl::ToInt64Microseconds(std::min(time, kLongestTime));
}

absl::Status NameFlag(absl::string_view flag, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat(flag, ": ", status.message()));
}

absl::Status ParseObjectives(const std::string& text, LoadObjectives& objectives) {
  for (const absl::string_view part : absl::StrSplit(text, ',', absl::SkipEmpty())) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(part, absl::MaxSplits('=', 1));
    absl::Duration bound;
    std::string error;
    int64_t* const target = pair.first == "ttft"  ? &objectives.ttft
                            : pair.first == "itl" ? &objectives.itl
                            : pair.first == "e2e" ? &objectives.e2e
                                                  : nullptr;
    if (target == nullptr || !ParseFlagTime(pair.second, &bound, &error) ||
        bound <= absl::ZeroDuration()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--objectives: \"", part, "\" is not ttft=, itl= or e2e= with a time"));
    }
    *target = MicrosOf(bound);
  }
  return absl::OkStatus();
}

absl::Status ParseSharedPrefix(const std::string& text, WorkloadOptions& workload) {
  if (text.empty()) return absl::OkStatus();
  const std::pair<std::string, std::string> pair = absl::StrSplit(text, absl::MaxSplits(':', 1));
  if (!absl::SimpleAtoi(pair.first, &workload.shared_prefix_tokens) ||
      (!pair.second.empty() && !absl::SimpleAtoi(pair.second, &workload.shared_prefixes)) ||
      workload.shared_prefix_tokens < 1 || workload.shared_prefixes < 1 ||
      workload.shared_prefixes > 100'000) {
    return absl::InvalidArgumentError(
        absl::StrCat("--shared-prefix: \"", text, "\" is not N or N:COUNT"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadKey(const std::string& path) {
  const absl::StatusOr<std::string> key = ReadFile(path);
  if (!key.ok()) return absl::InvalidArgumentError(absl::StrCat(path, " ", key.status().message()));
  const absl::string_view stripped = absl::StripAsciiWhitespace(*key);
  if (stripped.empty() || !std::all_of(stripped.begin(), stripped.end(), absl::ascii_isgraph)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " holds no API key"));
  }
  return std::string(stripped);
}

absl::Status ReadTls(LoadTarget& target) {
  ClientTlsFiles& tls = target.tls;
  tls.ca = absl::GetFlag(FLAGS_tls_ca);
  tls.certificate = absl::GetFlag(FLAGS_tls_cert);
  tls.key = absl::GetFlag(FLAGS_tls_key);
  tls.server_name = absl::GetFlag(FLAGS_tls_name);
  if (target.over_http && target.http.wants_tls && tls.ca.empty()) tls.ca = "system";
  if (target.over_http && !target.http.wants_tls && tls.enabled()) {
    return absl::InvalidArgumentError("--tls-ca needs --http to be https://host:port");
  }
  return CheckTlsFiles(tls);
}

absl::Status ReadWorkload(LoadProgramConfig& config) {
  WorkloadOptions& workload = config.workload;
  auto prompt = LengthDistribution::Parse(absl::GetFlag(FLAGS_prompt_tokens));
  if (!prompt.ok()) return NameFlag("--prompt-tokens", prompt.status());
  workload.prompt_tokens = *std::move(prompt);
  auto output = LengthDistribution::Parse(absl::GetFlag(FLAGS_output_tokens));
  if (!output.ok()) return NameFlag("--output-tokens", output.status());
  workload.output_tokens = *std::move(output);
  if (const std::string path = absl::GetFlag(FLAGS_prompts); !path.empty()) {
    auto prompts = ReadPrompts(path);
    if (!prompts.ok()) return NameFlag("--prompts", prompts.status());
    workload.prompts = *std::move(prompts);
  }
  if (const std::string path = absl::GetFlag(FLAGS_trace); !path.empty()) {
    auto trace = ReadTrace(path);
    if (!trace.ok()) return NameFlag("--trace", trace.status());
    if (absl::GetFlag(FLAGS_rate) > 0) {
      return absl::InvalidArgumentError("--rate and --trace exclude each other");
    }
    workload.trace = *std::move(trace);
  }
  if (auto status = ParseSharedPrefix(absl::GetFlag(FLAGS_shared_prefix), workload); !status.ok()) {
    return status;
  }
  workload.n = absl::GetFlag(FLAGS_n);
  workload.temperature = static_cast<float>(absl::GetFlag(FLAGS_temperature));
  workload.ignore_eos = absl::GetFlag(FLAGS_ignore_eos);
  workload.seed = absl::GetFlag(FLAGS_seed);
  if (workload.n < 1 || workload.n > 64) {
    return absl::InvalidArgumentError(absl::StrCat("--n is ", workload.n, "; it must be 1 to 64"));
  }
  return absl::OkStatus();
}

nlohmann::ordered_json DescribeWorkload(const LoadProgramConfig& config) {
  const LoadPlan& plan = config.plan;
  nlohmann::ordered_json json;
  json["loop"] = plan.concurrency > 0 ? "closed" : "open";
  if (plan.concurrency > 0) {
    json["concurrency"] = plan.concurrency;
  } else if (plan.rate > 0) {
    json["rate"] = plan.rate;
    json["arrivals"] = plan.arrivals;
  }
  if (!config.workload.trace.empty()) json["trace"] = absl::GetFlag(FLAGS_trace);
  json["warmup_s"] = static_cast<double>(plan.warmup_us) / 1e6;
  json["duration_s"] = static_cast<double>(plan.duration_us) / 1e6;
  json["requests"] = plan.requests;
  json["prompt_tokens"] = absl::GetFlag(FLAGS_prompt_tokens);
  json["output_tokens"] = absl::GetFlag(FLAGS_output_tokens);
  json["prompts"] = absl::GetFlag(FLAGS_prompts);
  json["shared_prefix"] = absl::GetFlag(FLAGS_shared_prefix);
  json["n"] = config.workload.n;
  json["temperature"] = config.workload.temperature;
  json["ignore_eos"] = config.workload.ignore_eos;
  json["seed"] = config.workload.seed;
  json["threads"] = plan.threads;
  return json;
}

// Flags that say something else than by default, to no effect.
absl::Status CheckEffects(const LoadProgramConfig& config) {
  const bool closed = config.plan.concurrency > 0;
  const char* const without_rate = closed ? "--concurrency" : "--trace";
  struct Useless {
    const char* flag;
    bool useless;
    const char* with;
  };
  for (const auto& [name, useless, with] :
       {Useless{"arrivals", config.plan.rate == 0, without_rate},
        Useless{"max_in_flight", closed, "--concurrency"},
        Useless{"prompt_tokens", !config.workload.prompts.empty(), "--prompts"},
        Useless{"shared_prefix", !config.workload.prompts.empty(), "--prompts"},
        Useless{"connections", config.target.over_http, "--http"}}) {
    const absl::CommandLineFlag& flag = *absl::FindCommandLineFlag(name);
    if (!useless || flag.CurrentValue() == flag.DefaultValue()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(FlagSpelling(name), " has no effect with ", with));
  }
  return absl::OkStatus();
}

absl::StatusOr<LoadProgramConfig> ConfigFromFlags() {
  LoadProgramConfig config;
  LoadTarget& target = config.target;
  const std::string grpc = absl::GetFlag(FLAGS_grpc);
  target.grpc.model = absl::GetFlag(FLAGS_model);
  target.grpc.connections = absl::GetFlag(FLAGS_connections);
  const std::string http = absl::GetFlag(FLAGS_http);
  if (grpc.empty() == http.empty()) {
    return absl::InvalidArgumentError("one of --grpc and --http is needed");
  }
  if (!grpc.empty()) target.grpc.addresses = absl::StrSplit(grpc, ',');
  for (const std::string& address : target.grpc.addresses) {
    // gRPC would ask DNS for a URL as a whole.
    if (address.empty() || absl::StartsWith(address, "http://") ||
        absl::StartsWith(address, "https://")) {
      return absl::InvalidArgumentError(
          absl::StrCat("--grpc is \"", grpc, "\": host:port is needed, or several with commas"));
    }
  }
  if (const std::string path = absl::GetFlag(FLAGS_api_key_file); !path.empty()) {
    auto key = ReadKey(path);
    if (!key.ok()) return NameFlag("--api-key-file", key.status());
    target.grpc.api_key = *std::move(key);
  }
  target.grpc.stream_interval = absl::GetFlag(FLAGS_stream_interval);
  if (target.grpc.stream_interval < 0) {
    return absl::InvalidArgumentError("--stream-interval must be 0 or more");
  }
  target.grpc.cache_salt = absl::GetFlag(FLAGS_cache_salt);
  if (!IsValidUtf8(target.grpc.cache_salt)) {
    return absl::InvalidArgumentError("--cache-salt is not valid UTF-8");
  }
  if (!http.empty()) {
    auto parsed = ParseHttpTarget(http);
    if (!parsed.ok()) return NameFlag("--http", parsed.status());
    target.http = *std::move(parsed);
    target.http.model = target.grpc.model;
    target.http.api_key = target.grpc.api_key;
    target.http.stream_interval = target.grpc.stream_interval;
    target.http.cache_salt = target.grpc.cache_salt;
    target.over_http = true;
  }
  if (absl::Status status = ReadTls(target); !status.ok()) return status;
  if (target.grpc.connections < 1 || target.grpc.connections > 1024) {
    return absl::InvalidArgumentError("--connections must be 1 to 1024");
  }
  if (absl::Status status = ReadWorkload(config); !status.ok()) return status;

  LoadPlan& plan = config.plan;
  plan.concurrency = absl::GetFlag(FLAGS_concurrency);
  plan.rate = absl::GetFlag(FLAGS_rate);
  if (const std::string sweep = absl::GetFlag(FLAGS_sweep); !sweep.empty()) {
    auto parsed = ParseSweep(sweep);
    if (!parsed.ok()) return NameFlag("--sweep", parsed.status());
    config.sweep = *std::move(parsed);
    if (plan.concurrency > 0 || plan.rate > 0 || !config.workload.trace.empty()) {
      return absl::InvalidArgumentError("--sweep goes without --concurrency, --rate and --trace");
    }
    SetOffered(config.sweep, config.sweep.values.front(), plan);
  }
  plan.arrivals = absl::GetFlag(FLAGS_arrivals);
  plan.warmup_us = MicrosOf(absl::GetFlag(FLAGS_warmup));
  plan.duration_us = MicrosOf(absl::GetFlag(FLAGS_duration));
  plan.requests = absl::GetFlag(FLAGS_requests);
  if (plan.duration_us == 0 && plan.requests == 0 && config.workload.trace.empty()) {
    plan.duration_us = absl::ToInt64Microseconds(kDefaultDuration);
  }
  plan.timeout_us = MicrosOf(absl::GetFlag(FLAGS_timeout));
  plan.max_in_flight = absl::GetFlag(FLAGS_max_in_flight);
  plan.threads = absl::GetFlag(FLAGS_threads);
  plan.seed = absl::GetFlag(FLAGS_seed);
  if (auto status = ParseObjectives(absl::GetFlag(FLAGS_objectives), plan.objectives);
      !status.ok()) {
    return status;
  }
  config.start_at = absl::GetFlag(FLAGS_start_at);
  config.max_failed = absl::GetFlag(FLAGS_max_failed);
  config.label = absl::GetFlag(FLAGS_label);
  config.json = absl::GetFlag(FLAGS_json);
  config.csv = absl::GetFlag(FLAGS_csv);
  config.html = absl::GetFlag(FLAGS_html);
  plan.keep_rows = !config.csv.empty() && config.sweep.values.empty();
  config.progress = absl::GetFlag(FLAGS_progress);
  if (absl::Status status = plan.Validate(config.workload); !status.ok()) return status;
  if (absl::Status status = CheckEffects(config); !status.ok()) return status;
  config.description = DescribeWorkload(config);
  return config;
}

LoadOutputs OutputsFromFlags() {
  return {absl::GetFlag(FLAGS_json), absl::GetFlag(FLAGS_csv), absl::GetFlag(FLAGS_html)};
}

absl::StatusOr<int> Run(const std::vector<std::string>& rest, const std::string& command) {
  const std::string merge = absl::GetFlag(FLAGS_merge);
  const std::string compare = absl::GetFlag(FLAGS_compare);
  if (!merge.empty() || !compare.empty()) {
    std::vector<std::string> paths = {merge.empty() ? compare : merge};
    paths.insert(paths.end(), rest.begin(), rest.end());
    return merge.empty() ? CompareResults(paths, OutputsFromFlags())
                         : MergeResults(paths, OutputsFromFlags());
  }
  if (!rest.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument ", rest.front()));
  }
  absl::StatusOr<LoadProgramConfig> config = ConfigFromFlags();
  if (!config.ok()) return config.status();
  config->command = command;
  return RunProgram(*std::move(config));
}

int Main(int argc, char** argv) {
  const ProgramUsage usage = {
      "blockserve-load --grpc HOST:PORT (--concurrency N | --rate R | --trace FILE | --sweep …)\n"
      "Sends requests to a server and measures the answers (docs/load_testing.md).",
      {"grpc",         "http",          "model",
       "api_key_file", "tls_ca",        "tls_cert",
       "tls_key",      "tls_name",      "concurrency",
       "rate",         "arrivals",      "trace",
       "sweep",        "duration",      "requests",
       "warmup",       "prompt_tokens", "output_tokens",
       "prompts",      "shared_prefix", "n",
       "temperature",  "ignore_eos",    "seed",
       "timeout",      "objectives",    "max_in_flight",
       "threads",      "connections",   "start_at",
       "max_failed",   "label",         "json",
       "csv",          "html",          "merge",
       "compare",      "progress",      "stream_interval",
       "cache_salt"}};
  const std::vector<std::string> rest = ParseProgramFlags(argc, argv, usage);
  const absl::StatusOr<int> code = Run(rest, absl::StrJoin(argv, argv + argc, " "));
  if (code.ok()) return *code;
  return absl::IsInvalidArgument(code.status()) ? ReportUsageError(kProgram, code.status())
                                                : ReportFailure(kProgram, code.status());
}

}  // namespace
}  // namespace blockserve

int main(int argc, char** argv) { return blockserve::Main(argc, argv); }
