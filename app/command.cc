#include "app/command.h"

#include <iostream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/read_file.h"

namespace blockserve {

absl::StatusOr<std::string> ReadInput(absl::string_view flag, const std::string& path) {
  std::ostringstream content;
  if (path == "-") {
    content << std::cin.rdbuf();
    return content.str();
  }
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) {
    return absl::Status(text.status().code(),
                        absl::StrCat(flag, " ", path, ": ", text.status().message()));
  }
  return text;
}

}  // namespace blockserve
