// What a tier's log tells of gateways that it refuses.
#ifndef BLOCKSERVE_RPC_REFUSED_GATEWAYS_H_
#define BLOCKSERVE_RPC_REFUSED_GATEWAYS_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/log_budget.h"
#include "common/logging.h"
#include "common/mutex.h"

namespace blockserve {

// A gateway of another model or version comes again every second or two, for as long as it runs,
// and says itself why it is refused. Thread-safe.
class RefusedGateways {
 public:
  void Warn(absl::string_view message) {
    std::optional<std::string> left_out;
    {
      MutexLock lock(&mutex_);
      left_out = budget_.Take(SteadyClock().Now());
    }
    if (!left_out.has_value()) return;
    LogEvent(LogLevel::kWarning, message, {{"left_out", *left_out}});
  }

 private:
  Mutex mutex_;
  LogBudget budget_ ABSL_GUARDED_BY(mutex_) = LogBudget(absl::Minutes(10));
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_REFUSED_GATEWAYS_H_
