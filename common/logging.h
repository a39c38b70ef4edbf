// One line of text per event, to standard error.
//
// What users send or receive (prompts, tokens, texts) never goes into a log: requests are named by
// their ids. Lines are written at once, whole, from any thread.
#ifndef BLOCKSERVE_COMMON_LOGGING_H_
#define BLOCKSERVE_COMMON_LOGGING_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace blockserve {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

struct LoggingOptions {
  std::string program;         // put into every line
  std::string level = "info";  // debug, info, warning, error or off
};

// Called once, in main. Without it lines of `info` and above are written under no program name.
// INVALID_ARGUMENT: an unknown level, naming --log-level.
absl::Status ConfigureLogging(const LoggingOptions& options);

// False when a line of this level would be dropped: for messages that are dear to build.
bool LogEnabled(LogLevel level);

void Log(LogLevel level, absl::string_view message);
inline void LogDebug(absl::string_view message) { Log(LogLevel::kDebug, message); }
inline void LogInfo(absl::string_view message) { Log(LogLevel::kInfo, message); }
inline void LogWarning(absl::string_view message) { Log(LogLevel::kWarning, message); }
inline void LogError(absl::string_view message) { Log(LogLevel::kError, message); }

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_LOGGING_H_
