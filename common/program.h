// The command line that all programs have in common.
//
// Flags are Abseil's (ABSL_FLAG in *_main.cc); this parser replaces absl::ParseCommandLine so that
// every program exits 2 with one line on bad usage, and knows --help, --helpfull (the same where
// --help lists all flags), --version and --flagfile.
#ifndef BLOCKSERVE_COMMON_PROGRAM_H_
#define BLOCKSERVE_COMMON_PROGRAM_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace blockserve {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUsage = 2;

// Most that --threads may say.
inline constexpr int32_t kMaxThreads = 1024;

struct ProgramUsage {
  // One or more lines: what the program does and how it is called.
  std::string text;
  // Flags that the program (or subcommand) takes, in the order in which --help lists them, each as
  // spelled in ABSL_FLAG ("max_tokens"). Empty: every flag that is linked in, by name.
  std::vector<std::string> flags;
};

// A flag as the parser sees it, wherever its value is kept.
struct FlagBinding {
  enum class Value {
    kNeeded,
    kBoolean,         // --name is "true", --noname is "false"
    kOptionalNumber,  // --name by itself is ""; a number that follows is its value
  };
  std::string name;  // as spelled in ABSL_FLAG: "max_tokens"
  std::string help;
  std::string default_value;
  Value value = Value::kNeeded;
  // Takes the value, or says in a few words what is wrong with it.
  std::function<bool(const std::string& value, std::string* error)> set;
  std::string subject = "";  // empty: one of the flags that --help lists
};
// The flag of a name (with underscores); none where there is no such flag.
using FlagFinder = std::function<std::optional<FlagBinding>(absl::string_view name)>;

// Parses arguments. Flags are --name=value, --name value, --name and --noname for booleans;
// dashes and underscores in names are the same. "--" ends the flags. --flagfile=FILE reads flags,
// one a line (as on the command line; empty lines and lines that begin with # are passed over).
// Returns the other arguments in order. INVALID_ARGUMENT: one line naming the flag or file.
absl::StatusOr<std::vector<std::string>> ParseFlags(const std::vector<std::string>& arguments,
                                                    const FlagFinder& find);
// The same with Abseil's flags: those of `usage`.
absl::StatusOr<std::vector<std::string>> ParseFlags(const std::vector<std::string>& arguments,
                                                    const ProgramUsage& usage);
// The value of a flag that is a time: seconds, or with a unit ("1500ms", "2m"); not negative. Says
// in a few words what is wrong with it.
bool ParseFlagTime(const std::string& text, absl::Duration* time, std::string* error);
// True where the flag (as "--help") stands among the arguments, before any "--".
bool AsksFor(const std::vector<std::string>& arguments, absl::string_view flag);

// "--a-b" of a flag a_b: as it is written on a command line and in messages.
std::string FlagSpelling(absl::string_view name);

// Text of --help: the usage and one line for each flag with its default; of the flags that have a
// subject, only which subjects there are. Text of --helpfull (`full`): all, by subject.
std::string HelpText(const ProgramUsage& usage);
std::string HelpText(absl::string_view text, const std::vector<FlagBinding>& flags, bool full);
// "blockserve-block 0.1.0, commit 1a2b3c4, arithmetic f32 bf16 bf16dot int8".
std::string VersionText(absl::string_view program);

// For main: parses, and ends the process after --help and --version (exit 0) and on bad usage (one
// line to standard error, exit 2). `first`: index of the first argument to look at.
std::vector<std::string> ParseProgramFlags(int argc, char** argv, const ProgramUsage& usage,
                                           int first = 1);

// Print "PROGRAM: MESSAGE" in one line to standard error and return the exit code: 2 for bad usage
// (a flag, or what a Config's Validate() says), 0 where the status is OK after all. A failure is 2
// too where what was given is at fault (a model folder, a request, a port in use: the status'
// code tells), else 1. It is a failure too when what was printed did not reach standard output (a
// full disk).
int ReportUsageError(absl::string_view program, const absl::Status& status);
int ReportFailure(absl::string_view program, const absl::Status& status);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_PROGRAM_H_
