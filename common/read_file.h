// A whole file in memory.
#ifndef BLOCKSERVE_COMMON_READ_FILE_H_
#define BLOCKSERVE_COMMON_READ_FILE_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace blockserve {

// "cannot be read: " and the system's words: NOT_FOUND when there is no such file, INVALID_ARGUMENT
// for a folder, a file of others, and what the system fails to read to its end.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// Of a regular file, with its name in front of errors: NOT_FOUND when there is no such file,
// INVALID_ARGUMENT when it is no regular file or larger than `max_bytes`, INTERNAL when reading
// fails.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes);

}  // namespace blockserve

#endif  // BLOCKSERVE_COMMON_READ_FILE_H_
