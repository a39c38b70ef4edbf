#include "common/read_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace blockserve {

namespace {

bool Missing(int error) { return error == ENOENT || error == ENOTDIR; }

}  // namespace

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const auto fail = [] {
    const int error = errno;
    return absl::Status(
        Missing(error) ? absl::StatusCode::kNotFound : absl::StatusCode::kInvalidArgument,
        absl::StrCat("cannot be read: ", std::strerror(error)));
  };
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return fail();
  std::string content;
  char piece[16 << 10];
  while (true) {
    const ssize_t got = read(fd, piece, sizeof(piece));
    if (got > 0) {
      content.append(piece, static_cast<size_t>(got));
    } else if (got == 0) {
      close(fd);
      return content;
    } else if (errno != EINTR) {
      const absl::Status status = fail();
      close(fd);
      return status;
    }
  }
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    const int error = errno;
    if (Missing(error)) {
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
