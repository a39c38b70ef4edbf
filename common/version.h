// What this build is.
#ifndef BLOCKSERVE_COMMON_VERSION_H_
#define BLOCKSERVE_COMMON_VERSION_H_

#include "absl/strings/string_view.h"

namespace blockserve {

// "0.1.0".
absl::string_view Version();
// Commit of the source tree when this was built, or "unknown" outside a git tree.
absl::string_view Commit();
// Names of the arithmetics that were compiled in: "f32 bf16 bf16dot int8".
absl::string_view CompiledArithmetics();

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_VERSION_H_
