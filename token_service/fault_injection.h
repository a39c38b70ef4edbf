// For tests of everything around a token worker: an engine that answers wrong bits or fails,
// or ends or hangs its process when a marked request comes. Never on but by
// --allow-fault-injection.
#ifndef BLOCKSERVE_TOKEN_SERVICE_FAULT_INJECTION_H_
#define BLOCKSERVE_TOKEN_SERVICE_FAULT_INJECTION_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "model/engine.h"

namespace blockserve {

struct FaultInjection {
  bool allowed = false;
  double wrong_bits = 0;    // share of rows whose last log-probability and token are changed
  double errors = 0;        // share of rows that are answered INTERNAL
  uint64_t crash_seed = 0;  // a row with this seed ends the process as SIGKILL would; 0: none
  uint64_t hang_seed = 0;   // a row with this seed is never answered, nor is any after it; 0: none

  bool any() const { return wrong_bits > 0 || errors > 0 || crash_seed != 0 || hang_seed != 0; }
  // INVALID_ARGUMENT naming the flag: out of range, or not allowed.
  absl::Status Validate() const;
};

// `engine` itself where nothing is to be injected.
std::unique_ptr<TokenEngine> InjectFaults(std::unique_ptr<TokenEngine> engine,
                                          const FaultInjection& faults);

}  // namespace blockserve

#endif  // BLOCKSERVE_TOKEN_SERVICE_FAULT_INJECTION_H_
