#include "rpc/server_logging.h"

#include <grpc/support/log.h>

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/clock.h"
#include "common/log_budget.h"
#include "common/mutex.h"

namespace blockserve {
namespace {

// Of each line of code of the library that writes any.
struct GrpcLines {
  Mutex mutex;
  std::map<std::pair<absl::string_view, int>, LogBudget> budgets ABSL_GUARDED_BY(mutex);
};

void LogOfGrpc(gpr_log_func_args* args) {
  static GrpcLines* const lines = new GrpcLines;  // the library may write to the very end
  const LogLevel level =
      args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kDebug;
  if (!LogEnabled(level)) return;
  std::optional<std::string> left_out = "";
  if (level == LogLevel::kWarning) {
    MutexLock lock(&lines->mutex);
    left_out = lines->budgets[{args->file, args->line}].Take(SteadyClock().Now());
  }
  if (!left_out.has_value()) return;
  absl::string_view file(args->file);
  file.remove_prefix(file.rfind('/') + 1);  // npos + 1 is 0
  LogEvent(level, args->message,
           {{"grpc", absl::StrCat(file, ":", args->line)}, {"left_out", *left_out}});
  // GPR_ASSERT, which ends the process next.
  if (absl::StartsWith(args->message, "assertion failed")) FlushLog();
}

}  // namespace

absl::Status ConfigureServerLogging(const LoggingOptions& options) {
  LoggingOptions queued = options;
  queued.queued = true;
  if (absl::Status status = ConfigureLogging(queued); !status.ok()) return status;
  gpr_set_log_function(&LogOfGrpc);
  return absl::OkStatus();
}

}  // namespace blockserve
