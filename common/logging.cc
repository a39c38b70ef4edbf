#include "common/logging.h"

#include <unistd.h>

#include <cmath>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log_writer.h"
#include "common/mutex.h"
#include "common/utf8.h"
#include "spdlog/pattern_formatter.h"
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

// How many bytes at the beginning of `text`, valid UTF-8, are a character that a terminal or a
// reader of lines acts upon: a control character, or one of Unicode's ends of lines.
size_t ActiveBytes(absl::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0; };
  if (byte(0) < 0x20 || byte(0) == 0x7f) return 1;
  if (byte(0) == 0xc2 && byte(1) < 0xa0) return 2;                               // U+0080 to U+009F
  if (byte(0) == 0xe2 && byte(1) == 0x80 && (byte(2) & 0xfe) == 0xa8) return 3;  // U+2028, U+2029
  return 0;
}

// The text as it can stand in a line. Bytes that are not UTF-8 become question marks: a log line is
// never lost for them. `quoted`: within a JSON string.
void AppendEscaped(std::string& out, absl::string_view text, bool quoted) {
  const bool utf8 = IsValidUtf8(text);
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const auto first = static_cast<uint8_t>(c);
    if (quoted && (c == '"' || c == '\\')) {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (!utf8 && first >= 0x80) {
      out += '?';
    } else if (const size_t active = ActiveBytes(text.substr(i)); active > 0) {
      const int character = active == 1   ? first
                            : active == 2 ? static_cast<uint8_t>(text[i + 1])
                                          : 0x2000 | (static_cast<uint8_t>(text[i + 2]) & 0x3f);
      absl::StrAppendFormat(&out, "\\u%04x", character);
      i += active - 1;
    } else {
      out += c;
    }
  }
}

void AppendJsonString(std::string& out, absl::string_view text) {
  out += '"';
  AppendEscaped(out, text, /*quoted=*/true);
  out += '"';
}

bool IsPlain(absl::string_view text) {
  if (text.empty() || !IsValidUtf8(text)) return false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (ActiveBytes(text.substr(i)) > 0) return false;
  }
  return text.find_first_of(" \"\\=") == absl::string_view::npos;
}

void AppendText(std::string& out, absl::string_view text) {
  if (IsPlain(text)) {
    absl::StrAppend(&out, text);
  } else {
    AppendJsonString(out, text);
  }
}

std::string Number(double value) {
  return std::isfinite(value) ? absl::StrFormat("%.6g", value) : "null";
}

bool Empty(const LogField& field) {
  const auto* text = std::get_if<absl::string_view>(&field.value);
  return text != nullptr && text->empty();
}

template <class AppendString>
void AppendValue(std::string& out, const LogField& field, AppendString append_string) {
  if (const auto* text = std::get_if<absl::string_view>(&field.value)) {
    append_string(out, *text);
  } else if (const auto* integer = std::get_if<int64_t>(&field.value)) {
    absl::StrAppend(&out, *integer);
  } else if (const auto* real = std::get_if<double>(&field.value)) {
    absl::StrAppend(&out, Number(*real));
  } else {
    absl::StrAppend(&out, std::get<bool>(field.value) ? "true" : "false");
  }
}

// Lines whose message is the members of an object already: see Log.
constexpr char kTextPattern[] = "%Y-%m-%dT%H:%M:%S.%eZ %^%l%$ %n[%P] %v";
constexpr char kJsonPattern[] =
    R"({"time":"%Y-%m-%dT%H:%M:%S.%eZ","level":"%l","program":"%n","pid":%P,%v})";

// The one object that spdlog keeps for the process tells how lines are to look.
class JsonLogger final : public spdlog::logger {
 public:
  using spdlog::logger::logger;
};

bool WritesJson() { return dynamic_cast<JsonLogger*>(spdlog::default_logger_raw()) != nullptr; }

// Gives lines to a LogWriter.
class QueueSink final : public spdlog::sinks::sink {
 public:
  // `tell_lost`: as LogWriter's.
  explicit QueueSink(std::function<std::string(int64_t lost)> tell_lost)
      : writer_(STDERR_FILENO, std::move(tell_lost)) {}

  void log(const spdlog::details::log_msg& message) override {
    MutexLock lock(&mutex_);
    line_.clear();
    formatter_->format(message, line_);
    writer_.Write({line_.data(), line_.size()});
  }
  void flush() override {}  // at every line: see LogWriter::Flush
  void set_pattern(const std::string& pattern) override {
    set_formatter(std::make_unique<spdlog::pattern_formatter>(pattern));
  }
  void set_formatter(std::unique_ptr<spdlog::formatter> formatter) override {
    MutexLock lock(&mutex_);
    formatter_ = std::move(formatter);
  }
  LogWriter& writer() { return writer_; }

 private:
  Mutex mutex_;
  std::unique_ptr<spdlog::formatter> formatter_ ABSL_GUARDED_BY(mutex_) =
      std::make_unique<spdlog::pattern_formatter>();
  spdlog::memory_buf_t line_ ABSL_GUARDED_BY(mutex_);
  LogWriter writer_;
};

// Null where lines are not queued.
LogWriter* Writer() {
  for (const spdlog::sink_ptr& sink : spdlog::default_logger_raw()->sinks()) {
    if (auto* queue = dynamic_cast<QueueSink*>(sink.get())) return &queue->writer();
  }
  return nullptr;
}

std::string FormatLine(spdlog::formatter& formatter, const std::string& program,
                       spdlog::level::level_enum level, const std::string& message) {
  spdlog::memory_buf_t line;
  formatter.format({program, level, message}, line);
  return std::string(line.data(), line.size());
}

// The line that tells of lost ones, in the form of the others.
std::string LostLine(spdlog::formatter& formatter, const std::string& program, bool json,
                     int64_t lost) {
  const std::string told = absl::StrCat(lost, " log lines were lost");
  const LogFields fields = {{"lines", lost}};
  const std::string message = json ? FormatJsonEvent(told, fields) : FormatTextEvent(told, {});
  return FormatLine(formatter, program, spdlog::level::warn, message);
}

void Write(LogLevel level, absl::string_view line) {
  spdlog::default_logger_raw()->log(ToSpdlog(level),
                                    spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace

absl::Status ConfigureLogging(const LoggingOptions& options) {
  const std::optional<LogLevel> level = ParseLevel(options.level);
  if (!level.has_value()) {
    return absl::InvalidArgumentError(absl::StrCat("--log-level is \"", options.level,
                                                   "\"; use debug, info, warning, error or off"));
  }
  if (options.format != "text" && options.format != "json") {
    return absl::InvalidArgumentError(
        absl::StrCat("--log-format is \"", options.format, "\"; use text or json"));
  }
  const bool json = options.format == "json";
  // UTC, so that lines of several machines can be laid side by side.
  const spdlog::pattern_formatter formatter(json ? kJsonPattern : kTextPattern,
                                            spdlog::pattern_time_type::utc);
  spdlog::sink_ptr sink;
  if (options.queued) {
    sink = std::make_shared<QueueSink>(
        [own = std::shared_ptr<spdlog::formatter>(formatter.clone()), program = options.program,
         json](int64_t lost) { return LostLine(*own, program, json, lost); });
  } else {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  }
  std::shared_ptr<spdlog::logger> logger;
  if (json) {
    logger = std::make_shared<JsonLogger>(options.program, std::move(sink));
  } else {
    logger = std::make_shared<spdlog::logger>(options.program, std::move(sink));
  }
  logger->set_formatter(formatter.clone());
  logger->set_level(ToSpdlog(*level));
  logger->flush_on(spdlog::level::debug);
  spdlog::set_default_logger(std::move(logger));
  return absl::OkStatus();
}

bool LogEnabled(LogLevel level) {
  return spdlog::default_logger_raw()->should_log(ToSpdlog(level));
}

void Log(LogLevel level, absl::string_view message) {
  if (!LogEnabled(level)) return;
  if (WritesJson()) {
    Write(level, FormatJsonEvent(message, {}));
  } else {
    Write(level, FormatTextEvent(message, {}));
  }
}

void LogEvent(LogLevel level, absl::string_view message, LogFields fields) {
  if (!LogEnabled(level)) return;
  Write(level, WritesJson() ? FormatJsonEvent(message, fields) : FormatTextEvent(message, fields));
}

void FlushLog() {
  if (LogWriter* const writer = Writer()) writer->Flush(LogWriter::kLastWait);
}

void PrintLastLine(absl::string_view program, absl::string_view message) {
  FlushLog();
  std::string line = absl::StrCat(program, ": ", message, "\n");
  if (WritesJson()) {
    spdlog::pattern_formatter formatter(kJsonPattern, spdlog::pattern_time_type::utc);
    line = FormatLine(formatter, std::string(program), spdlog::level::err,
                      FormatJsonEvent(message, {}));
  }
  WriteLineWithin(STDERR_FILENO, line, LogWriter::kLastWait);
}

int64_t LogLinesLost() {
  const LogWriter* const writer = Writer();
  return writer == nullptr ? 0 : writer->lost();
}

std::string FormatTextEvent(absl::string_view message, LogFields fields) {
  std::string line;
  AppendEscaped(line, message, /*quoted=*/false);
  for (const LogField& field : fields) {
    if (Empty(field)) continue;
    absl::StrAppend(&line, " ", field.name, "=");
    AppendValue(line, field, AppendText);
  }
  return line;
}

std::string FormatJsonEvent(absl::string_view message, LogFields fields) {
  std::string line = "\"message\":";
  AppendJsonString(line, message);
  for (const LogField& field : fields) {
    if (Empty(field)) continue;
    absl::StrAppend(&line, ",\"", field.name, "\":");
    AppendValue(line, field, AppendJsonString);
  }
  return line;
}

}  // namespace blockserve
