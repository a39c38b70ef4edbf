#include "common/read_file.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace blockserve {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content;
  char piece[16 << 10];
  while (file.read(piece, sizeof(piece)) || file.gcount() > 0) {
    content.append(piece, static_cast<size_t>(file.gcount()));
  }
  if (!file.is_open() || file.bad()) return absl::NotFoundError("cannot be read");
  return content;
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    const int error = errno;
    if (error == ENOENT || error == ENOTDIR) {
      return absl::NotFoundError(absl::StrCat(path, ": no such file"));
    }
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", std::strerror(error)));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  }
  if (info.st_size > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has ", info.st_size, " bytes; at most ", max_bytes, " are read"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be opened"));
  std::string contents(static_cast<size_t>(info.st_size), '\0');
  file.read(contents.data(), static_cast<std::streamsize>(contents.size()));
  if (file.gcount() != static_cast<std::streamsize>(contents.size())) {
    return absl::InternalError(
        absl::StrCat(path, ": read only ", file.gcount(), " of ", contents.size(), " bytes"));
  }
  return contents;
}

}  // namespace blockserve
