// What the programs of the two compute tiers have in common: flags with the same names, words and
// bounds, whatever a tier adds.
#ifndef BLOCKSERVE_RPC_TIER_PROGRAM_H_
#define BLOCKSERVE_RPC_TIER_PROGRAM_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/flag_table.h"
#include "common/logging.h"
#include "rpc/metrics_flags.h"
#include "rpc/server.h"

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
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TIER_PROGRAM_H_
