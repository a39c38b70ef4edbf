// One line per event, to standard error: text for people, or JSON for machines.
//
// What users send or receive (prompts, tokens, texts) never goes into a log unless asked for:
// requests are named by their ids. Lines are written whole, from any thread. Servers give theirs to
// a thread that writes them (LoggingOptions::queued): no reader that has stopped holds them up.
#ifndef BLOCKSERVE_COMMON_LOGGING_H_
#define BLOCKSERVE_COMMON_LOGGING_H_

#include <cstdint>
#include <initializer_list>
#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace blockserve {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

struct LoggingOptions {
  std::string program;          // put into every line
  std::string level = "info";   // debug, info, warning, error or off
  std::string format = "text";  // text or json
  // Lines are queued, and lost when whoever reads them does not keep up (common/log_writer.h).
  // Otherwise whoever logs waits until its line is written.
  bool queued = false;
};

// Called once, in main. Without it lines of `info` and above are written as text under no program
// name. INVALID_ARGUMENT: an unknown level or format, naming --log-level or --log-format.
absl::Status ConfigureLogging(const LoggingOptions& options);

// False when a line of this level would be dropped: for messages that are dear to build.
bool LogEnabled(LogLevel level);

void Log(LogLevel level, absl::string_view message);
inline void LogDebug(absl::string_view message) { Log(LogLevel::kDebug, message); }
inline void LogInfo(absl::string_view message) { Log(LogLevel::kInfo, message); }
inline void LogWarning(absl::string_view message) { Log(LogLevel::kWarning, message); }
inline void LogError(absl::string_view message) { Log(LogLevel::kError, message); }

// What an event tells beside its message. Names are constants in snake_case, with their unit.
struct LogField {
  absl::string_view name;
  std::variant<absl::string_view, int64_t, double, bool> value;
};
using LogFields = std::initializer_list<LogField>;

// As text: "message name=value …", strings quoted where they need it. As JSON: a member of the
// line's object for each field, beside time, level, program, pid and message. Fields with an empty
// string are left out.
void LogEvent(LogLevel level, absl::string_view message, LogFields fields);

// Before the process ends otherwise than by the end of main or by exit: what has been logged is
// written, unless that lasts longer than a second.
void FlushLog();
// To standard error, whatever --log-level is: "PROGRAM: MESSAGE", or an object as of an error in
// JSON, after all that has been logged, under the same condition.
void PrintLastLine(absl::string_view program, absl::string_view message);
// Since the start.
int64_t LogLinesLost();

// The line's form, for tests: without time, level, program and pid.
std::string FormatTextEvent(absl::string_view message, LogFields fields);
// Members without the braces.
std::string FormatJsonEvent(absl::string_view message, LogFields fields);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_LOGGING_H_
