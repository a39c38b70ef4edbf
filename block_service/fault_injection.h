// For tests of everything around a block replica: an engine that computes wrong bits or fails,
// or ends or hangs its process when a marked token comes. Never on but by --allow-fault-injection.
#ifndef BLOCKSERVE_BLOCK_SERVICE_FAULT_INJECTION_H_
#define BLOCKSERVE_BLOCK_SERVICE_FAULT_INJECTION_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "model/engine.h"

namespace blockserve {

struct BlockFaultInjection {
  bool allowed = false;
  double wrong_bits = 0;     // share of context rows of which one value is changed
  double errors = 0;         // share of steps that fail with INTERNAL
  int32_t crash_token = -1;  // a block with this id ends the process as SIGKILL would; -1: none
  int32_t hang_token = -1;   // a block with this id is never computed, nor is any after it

  bool any() const { return wrong_bits > 0 || errors > 0 || crash_token >= 0 || hang_token >= 0; }
  // INVALID_ARGUMENT naming the flag: out of range, or not allowed.
  absl::Status Validate() const;
};

// `engine` itself where nothing is to be injected.
std::unique_ptr<BlockEngine> InjectFaults(std::unique_ptr<BlockEngine> engine,
                                          const BlockFaultInjection& faults);

}  // namespace blockserve

#endif  // BLOCKSERVE_BLOCK_SERVICE_FAULT_INJECTION_H_
