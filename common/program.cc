#include "common/program.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/logging.h"
#include "common/prepare_process.h"
#include "common/read_file.h"
#include "common/version.h"

namespace blockserve {
namespace {

// A flag file may name others; a file that names itself must not go on for ever.
constexpr int kMaxFlagFileDepth = 8;

std::string Canonical(absl::string_view name) { return absl::StrReplaceAll(name, {{"-", "_"}}); }

// One line, whatever the message holds.
std::string OneLine(absl::string_view message) {
  std::string line(message);
  absl::StripAsciiWhitespace(&line);
  return absl::StrReplaceAll(line, {{"\n", " "}, {"\r", " "}});
}

class Parser {
 public:
  explicit Parser(const FlagFinder& find) : find_(find) {}

  absl::Status Parse(const std::vector<std::string>& arguments, int depth) {
    for (size_t i = 0; i < arguments.size(); ++i) {
      const absl::string_view argument = arguments[i];
      if (flags_ended_ || argument.size() < 2 || argument[0] != '-') {
        positional_.emplace_back(argument);
        continue;
      }
      if (argument == "--") {
        flags_ended_ = true;
        continue;
      }
      absl::string_view rest = argument;
      if (!absl::ConsumePrefix(&rest, "--")) absl::ConsumePrefix(&rest, "-");
      const size_t equals = rest.find('=');
      const std::string name = Canonical(rest.substr(0, equals));
      if (name == "flagfile") {
        std::string file;
        if (equals != absl::string_view::npos) {
          file = std::string(rest.substr(equals + 1));
        } else if (i + 1 < arguments.size()) {
          file = arguments[++i];
        } else {
          return absl::InvalidArgumentError("--flagfile needs a file");
        }
        if (absl::Status status = ParseFile(file, depth); !status.ok()) return status;
        continue;
      }
      std::optional<FlagBinding> flag = find_(name);
      bool negated = false;
      if (!flag.has_value() && absl::StartsWith(name, "no")) {
        absl::string_view positive = absl::string_view(name).substr(2);
        absl::ConsumePrefix(&positive, "_");
        flag = find_(positive);
        negated = flag.has_value() && flag->value == FlagBinding::Value::kBoolean;
        if (!negated) flag.reset();
      }
      if (!flag.has_value()) {
        return absl::InvalidArgumentError(absl::StrCat("unknown flag ", FlagSpelling(name)));
      }
      std::string value;
      if (negated) {
        if (equals != absl::string_view::npos) {
          return absl::InvalidArgumentError(absl::StrCat(FlagSpelling(name), " takes no value"));
        }
        value = "false";
      } else if (equals != absl::string_view::npos) {
        value = std::string(rest.substr(equals + 1));
      } else if (flag->value == FlagBinding::Value::kBoolean) {
        value = "true";
      } else if (flag->value == FlagBinding::Value::kOptionalNumber) {
        int64_t number = 0;
        if (i + 1 < arguments.size() && absl::SimpleAtoi(arguments[i + 1], &number)) {
          value = arguments[++i];
        }
      } else if (i + 1 < arguments.size()) {
        value = arguments[++i];
      } else {
        return absl::InvalidArgumentError(absl::StrCat(FlagSpelling(name), " needs a value"));
      }
      std::string error;
      if (!flag->set(value, &error)) {
        return absl::InvalidArgumentError(absl::StrCat(FlagSpelling(flag->name), " cannot be \"",
                                                       value, "\"", error.empty() ? "" : ": ",
                                                       error));
      }
    }
    return absl::OkStatus();
  }

  std::vector<std::string> TakePositional() { return std::move(positional_); }

 private:
  absl::Status ParseFile(const std::string& file, int depth) {
    if (depth >= kMaxFlagFileDepth) {
      return absl::InvalidArgumentError(
          absl::StrCat("--flagfile ", file, ": flag files name one another too deeply"));
    }
    absl::StatusOr<std::string> text = ReadFile(file);
    if (!text.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--flagfile ", file, ": ", text.status().message()));
    }
    std::istringstream stream(*std::move(text));
    std::vector<std::string> arguments;
    std::string line;
    while (std::getline(stream, line)) {
      const absl::string_view stripped = absl::StripAsciiWhitespace(line);
      if (stripped.empty() || stripped[0] == '#') continue;
      if (stripped[0] != '-') {
        return absl::InvalidArgumentError(
            absl::StrCat("--flagfile ", file, ": \"", stripped.substr(0, 60), "\" is not a flag"));
      }
      // "--name value" in one line is the same as two arguments.
      const size_t blank = stripped.find_first_of(" \t");
      if (blank != absl::string_view::npos && stripped.find('=') > blank) {
        arguments.emplace_back(stripped.substr(0, blank));
        arguments.emplace_back(absl::StripLeadingAsciiWhitespace(stripped.substr(blank)));
      } else {
        arguments.emplace_back(stripped);
      }
    }
    absl::Status status = Parse(arguments, depth + 1);
    if (!status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--flagfile ", file, ": ", status.message()));
    }
    return status;
  }

  const FlagFinder& find_;
  bool flags_ended_ = false;
  std::vector<std::string> positional_;
};

FlagBinding BindAbseilFlag(absl::CommandLineFlag* flag) {
  return {std::string(flag->Name()), flag->Help(), flag->DefaultValue(),
          flag->IsOfType<bool>() ? FlagBinding::Value::kBoolean : FlagBinding::Value::kNeeded,
          [flag](const std::string& value, std::string* error) {
            if (flag->IsOfType<absl::Duration>()) {
              absl::Duration time;
              std::string ignored;
              return ParseFlagTime(value, &time, error) &&
                     flag->ParseFrom(absl::FormatDuration(time), &ignored);
            }
            // Its errors say again which value of which flag it is.
            std::string repeated;
            if (flag->ParseFrom(value, &repeated)) return true;
            if (!absl::StrContains(repeated, value)) *error = std::move(repeated);
            return false;
          }};
}

absl::string_view BaseName(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? path : path.substr(slash + 1);
}

}  // namespace

bool ParseFlagTime(const std::string& text, absl::Duration* time, std::string* error) {
  double seconds = 0;
  if (absl::SimpleAtod(text, &seconds) && !std::isnan(seconds)) {
    *time = absl::Seconds(seconds);
  } else if (!absl::ParseDuration(text, time)) {
    *error = "it must be a time as 10s or 500ms";
    return false;
  }
  if (*time >= absl::ZeroDuration()) return true;
  *error = "it must not be negative";
  return false;
}

bool AsksFor(const std::vector<std::string>& arguments, absl::string_view flag) {
  for (const std::string& argument : arguments) {
    if (argument == "--") return false;
    if (argument == flag) return true;
  }
  return false;
}

absl::StatusOr<std::vector<std::string>> ParseFlags(const std::vector<std::string>& arguments,
                                                    const FlagFinder& find) {
  Parser parser(find);
  if (absl::Status status = parser.Parse(arguments, 0); !status.ok()) return status;
  return parser.TakePositional();
}

absl::StatusOr<std::vector<std::string>> ParseFlags(const std::vector<std::string>& arguments,
                                                    const ProgramUsage& usage) {
  return ParseFlags(arguments, [&](absl::string_view name) -> std::optional<FlagBinding> {
    if (!usage.flags.empty() &&
        std::find(usage.flags.begin(), usage.flags.end(), name) == usage.flags.end()) {
      return std::nullopt;
    }
    absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
    if (flag == nullptr) return std::nullopt;
    return BindAbseilFlag(flag);
  });
}

std::string HelpText(absl::string_view text, const std::vector<FlagBinding>& flags, bool full) {
  std::string help = absl::StrCat(text, "\n");
  std::vector<absl::string_view> subjects;  // in the order of their first flags
  size_t width = 0;                         // of what is listed
  for (const FlagBinding& flag : flags) {
    if (full || flag.subject.empty()) width = std::max(width, flag.name.size() + 2);
  }
  const auto list = [&](absl::string_view subject) {
    for (const FlagBinding& flag : flags) {
      if (flag.subject != subject) continue;
      std::string left = FlagSpelling(flag.name);
      left.resize(width, ' ');
      absl::StrAppend(&help, "  ", left, "  ", flag.help,
                      flag.default_value.empty() ? "" : absl::StrCat(" [", flag.default_value, "]"),
                      "\n");
    }
  };
  list("");
  for (const FlagBinding& flag : flags) {
    if (!flag.subject.empty() &&
        std::find(subjects.begin(), subjects.end(), flag.subject) == subjects.end()) {
      subjects.push_back(flag.subject);
    }
  }
  if (full) {
    for (const absl::string_view subject : subjects) {
      absl::StrAppend(&help, subject, ":\n");
      list(subject);
    }
  }
  absl::StrAppend(&help, "  --flagfile FILE, --help, --version\n");
  if (!full && !subjects.empty()) {
    absl::StrAppend(
        &help, "  --helpfull lists all flags, these too: ", absl::StrJoin(subjects, ", "), "\n");
  }
  return help;
}

std::string FlagSpelling(absl::string_view name) {
  return absl::StrCat("--", absl::StrReplaceAll(name, {{"_", "-"}}));
}

std::string HelpText(const ProgramUsage& usage) {
  std::vector<std::string> names = usage.flags;
  if (names.empty()) {
    for (const auto& [name, flag] : absl::GetAllFlags()) names.emplace_back(name);
    std::sort(names.begin(), names.end());
  }
  std::vector<FlagBinding> flags;
  for (const std::string& name : names) {
    absl::CommandLineFlag* flag = absl::FindCommandLineFlag(name);
    if (flag != nullptr) flags.push_back(BindAbseilFlag(flag));
  }
  return HelpText(usage.text, flags, /*full=*/true);
}

std::string VersionText(absl::string_view program) {
  return absl::StrCat(program, " ", Version(), ", commit ", Commit(), ", arithmetic ",
                      CompiledArithmetics());
}

std::vector<std::string> ParseProgramFlags(int argc, char** argv, const ProgramUsage& usage,
                                           int first) {
  PrepareProcess();
  const std::string program(argc > 0 ? BaseName(argv[0]) : "blockserve");
  std::vector<std::string> arguments;
  for (int i = first; i < argc; ++i) arguments.emplace_back(argv[i]);
  if (AsksFor(arguments, "--help") || AsksFor(arguments, "--helpfull") ||
      AsksFor(arguments, "-h")) {
    std::fputs(HelpText(usage).c_str(), stdout);
    std::exit(kExitOk);
  }
  if (AsksFor(arguments, "--version")) {
    std::puts(VersionText(program).c_str());
    std::exit(kExitOk);
  }
  absl::StatusOr<std::vector<std::string>> positional = ParseFlags(arguments, usage);
  if (!positional.ok()) std::exit(ReportUsageError(program, positional.status()));
  return *std::move(positional);
}

int ReportUsageError(absl::string_view program, const absl::Status& status) {
  PrintLastLine(program, absl::StrCat(OneLine(status.message()), " (--help lists the flags)"));
  return kExitUsage;
}

int ReportFailure(absl::string_view program, const absl::Status& status) {
  if (status.ok()) {
    if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return kExitOk;
    PrintLastLine(program, "standard output cannot be written");
    return kExitFailure;
  }
  PrintLastLine(program, OneLine(status.message()));
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return kExitUsage;
    default:
      return kExitFailure;
  }
}

}  // namespace blockserve
