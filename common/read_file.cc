#include "common/read_file.h"

#include <cstddef>
#include <fstream>

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

}  // namespace blockserve
