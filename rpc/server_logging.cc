#include "rpc/server_logging.h"

#include <grpc/support/log.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace blockserve {
namespace {

void LogOfGrpc(gpr_log_func_args* args) {
  const LogLevel level =
      args->severity == GPR_LOG_SEVERITY_ERROR ? LogLevel::kWarning : LogLevel::kDebug;
  absl::string_view file(args->file);
  file.remove_prefix(file.rfind('/') + 1);  // npos + 1 is 0
  LogEvent(level, args->message, {{"grpc", absl::StrCat(file, ":", args->line)}});
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
