// What the programs of the two compute tiers have in common: flags with the same names, words and
// bounds, whatever a tier adds, and the life of a server from its first probe to its last answer.
#ifndef BLOCKSERVE_RPC_TIER_PROGRAM_H_
#define BLOCKSERVE_RPC_TIER_PROGRAM_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/flag_table.h"
#include "common/logging.h"
#include "common/metrics.h"
#include "rpc/metrics_flags.h"
#include "rpc/server.h"
#include "rpc/tier_service.h"

namespace blockserve {

struct TierProgramOptions {
  TierProgramOptions(absl::string_view program, absl::string_view listen_address) {
    logging.program = std::string(program);
    server.listen_address = std::string(listen_address);
  }

  std::string model;          // folder
  int32_t threads = 0;        // that compute; 0: one per core
  ServerOptions server;       // for gateways
  std::string health_listen;  // empty: none
  MetricsFlags metrics;
  absl::Duration stall_bound = absl::Seconds(60);
  LoggingOptions logging;

  // A tier's own flags stand between the two; the second begins subjects of its own. This must
  // outlive the table.
  void AddFlags(FlagTable& flags);
  void AddServingFlags(FlagTable& flags);
  // INVALID_ARGUMENT naming the flag.
  absl::Status Validate() const;

  int num_threads() const;  // with 0 resolved
  // Name for people where none is given: this host's, and the port listened on.
  std::string DefaultName() const;
};

// Serves what `load` makes until SIGTERM or SIGINT, then drains for at most `drain_time`. What can
// be told without the model (an address in use, say) is told before it is loaded; `load`'s threads
// inherit the blocked signals. The errors of `load`, and those of what listens, naming the flag.
absl::Status ServeTier(
    const TierProgramOptions& options, absl::Duration drain_time,
    const std::function<absl::StatusOr<std::unique_ptr<TierService>>(MetricRegistry&)>& load);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TIER_PROGRAM_H_
