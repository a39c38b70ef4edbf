#include "app/command.h"

#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace blockserve {

absl::StatusOr<std::string> ReadInput(absl::string_view flag, const std::string& path) {
  std::ostringstream content;
  if (path == "-") {
    content << std::cin.rdbuf();
    return content.str();
  }
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored)) {
    return absl::InvalidArgumentError(absl::StrCat(flag, " ", path, " is a folder"));
  }
  std::ifstream file(path, std::ios::binary);
  // An empty file sets the output's failbit, which is no error here.
  if (!file || file.peek() == std::ifstream::traits_type::eof()) {
    if (!file.is_open()) {
      return absl::NotFoundError(absl::StrCat(flag, " ", path, ": cannot be read"));
    }
    return std::string();
  }
  content << file.rdbuf();
  if (file.bad()) return absl::NotFoundError(absl::StrCat(flag, " ", path, ": cannot be read"));
  return content.str();
}

}  // namespace blockserve
