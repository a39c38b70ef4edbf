// How much memory this process may have.
#ifndef BLOCKSERVE_COMMON_MEMORY_LIMIT_H_
#define BLOCKSERVE_COMMON_MEMORY_LIMIT_H_

#include <cstdint>
#include <string>

namespace blockserve {

// Bytes: the machine's memory, or the limit of a control group (of either version) that this
// process is in where that is less; never more than an address space holds. The system itself
// refuses nothing where it is told to promise more than there is, as Kubernetes tells every node:
// who believes it is killed later, under load. `root`: where /proc and /sys are.
int64_t MemoryLimitBytes(const std::string& root = "");

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_MEMORY_LIMIT_H_
