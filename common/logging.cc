#include "common/logging.h"

#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace blockserve {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      return spdlog::level::off;
  }
  return spdlog::level::info;
}

std::optional<LogLevel> ParseLevel(absl::string_view name) {
  if (name == "debug") return LogLevel::kDebug;
  if (name == "info") return LogLevel::kInfo;
  if (name == "warning") return LogLevel::kWarning;
  if (name == "error") return LogLevel::kError;
  if (name == "off") return LogLevel::kOff;
  return std::nullopt;
}

}  // namespace

absl::Status ConfigureLogging(const LoggingOptions& options) {
  const std::optional<LogLevel> level = ParseLevel(options.level);
  if (!level.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("--log-level is \"", options.level,
                                                   "\"; use debug, info, warning, error or off"));
  }
  auto logger = std::make_shared<spdlog::logger>(options.program,
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  // UTC, so that lines of several machines can be laid side by side.
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %^%l%$ %n[%P] %v", spdlog::pattern_time_type::utc);
  logger->set_level(ToSpdlog(*level));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

bool LogEnabled(LogLevel level) {
  return spdlog::default_logger_raw()->should_log(ToSpdlog(level));
}

void Log(LogLevel level, absl::string_view message) {
  spdlog::default_logger_raw()->log(ToSpdlog(level),
                                    spdlog::string_view_t(message.data(), message.size()));
}

}  // namespace blockserve
