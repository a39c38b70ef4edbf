// A whole file in memory.
#ifndef BLOCKSERVE_COMMON_READ_FILE_H_
#define BLOCKSERVE_COMMON_READ_FILE_H_

#include <string>

#include "absl/status/statusor.h"

namespace blockserve {

// NOT_FOUND "cannot be read": also a folder, and what the system fails to read to its end. (A
// std::istreambuf_iterator throws there.)
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_READ_FILE_H_
