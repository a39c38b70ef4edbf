// blockserve keys: makes an API key, of which the server's file gets the hash alone.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "app/command.h"
#include "common/program.h"
#include "common/read_file.h"
#include "gateway/api_keys.h"

namespace blockserve {
namespace {

constexpr absl::string_view kProgram = "blockserve keys";
constexpr absl::string_view kUsage =
    "blockserve keys --name NAME --file FILE\n"
    "Makes an API key: appends its hash to the file that servers are given as --api-keys, and "
    "prints\n"
    "the key. It is kept nowhere else. To take a key back, delete its line; servers notice by "
    "themselves.";

// `message` names a field of the file first, which has a flag: "max_requests" is --max-requests.
std::string OfFlag(absl::string_view message) {
  const auto [field, rule] = std::pair<absl::string_view, absl::string_view>(
      absl::StrSplit(message, absl::MaxSplits("\" ", 1)));
  return absl::StrCat("--", absl::StrReplaceAll(field, {{"\"", ""}, {"_", "-"}}), " ", rule);
}

}  // namespace

int RunKeys(const Arguments& arguments) {
  std::string name;
  std::string path;
  ApiKeyLimits limits;
  std::optional<float> rate;
  std::optional<float> weight;
  int32_t max_tokens = 0;
  std::string priority = "high";
  std::string prefix_cache = "shared";
  FlagTable flags;
  flags.Add("name", "whose key it is: for limits and logs", &name);
  flags.Add("file", "the server's file of keys; made if there is none", &path);
  flags.Add("max_requests", "in flight at a time, for each gateway; 0: no limit",
            &limits.max_requests);
  flags.Add("max_tokens", "in flight at a time, prompts and all that may be generated; 0: no limit",
            &max_tokens);
  flags.Add("requests_per_second", "sustained; left out: no limit", &rate);
  flags.Add("burst", "requests at once above the rate", &limits.burst);
  flags.Needs("burst", "requests_per_second");
  flags.Add("weight", "share against other keys where requests wait; left out: 1", &weight);
  flags.AddChoice("highest_priority", "that requests may ask for", {"high", "normal", "batch"},
                  &priority);
  flags.AddChoice("prefix_cache", "own: its prompts share KV with those of this name alone",
                  {"shared", "own"}, &prefix_cache);
  if (std::optional<int> exit = flags.ParseCommandLine(kProgram, kUsage, arguments)) return *exit;
  const auto bad_usage = [](absl::string_view message) {
    return ReportUsageError(kProgram, absl::InvalidArgumentError(message));
  };
  if (name.empty()) return bad_usage("--name is missing");
  if (path.empty()) return bad_usage("--file is missing");
  limits.max_tokens = max_tokens;
  limits.requests_per_second = rate.value_or(0);
  limits.weight = weight.value_or(1);
  limits.highest_priority = priority == "high" ? 1 : priority == "normal" ? 2 : 3;
  limits.own_prefix_cache = prefix_cache == "own";
  absl::StatusOr<NewApiKey> made = MakeApiKey(name, limits);
  if (!made.ok()) return bad_usage(OfFlag(made.status().message()));

  const auto fail = [&path](absl::string_view why) {
    return ReportFailure(kProgram,
                         absl::InvalidArgumentError(absl::StrCat("--file ", path, ": ", why)));
  };
  absl::StatusOr<std::string> before = ReadFile(path);
  if (absl::IsNotFound(before.status())) before = "";
  if (!before.ok()) return fail(before.status().message());
  // Who edited the file may have left its last line without an end.
  const bool open_line = !before->empty() && before->back() != '\n';
  const std::string added = absl::StrCat(open_line ? "\n" : "", made->line, "\n");
  // A server takes such a file as a whole or not at all.
  const absl::Status usable = ApiKeyTable::Parse(absl::StrCat(*before, added)).status();
  if (!usable.ok()) return fail(usable.message());
  // First: a key that nobody has been told would stay in the file for good.
  std::puts(made->key.c_str());
  if (std::fflush(stdout) != 0) return ReportFailure(kProgram, absl::OkStatus());
  std::ofstream file(path, std::ios::app);
  file << added;
  file.close();
  if (!file) return fail("cannot write; the key above is not in it");
  return ReportFailure(kProgram, absl::OkStatus());
}

}  // namespace blockserve
