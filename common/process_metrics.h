// What a process uses of its machine, and which build it is.
#ifndef BLOCKSERVE_COMMON_PROCESS_METRICS_H_
#define BLOCKSERVE_COMMON_PROCESS_METRICS_H_

#include <memory>

#include "common/metrics.h"

namespace blockserve {

// Read from the system whenever somebody looks, as long as what this returns is alive. Once for
// each registry.
[[nodiscard]] std::shared_ptr<void> AddProcessMetrics(MetricRegistry& registry);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_PROCESS_METRICS_H_
