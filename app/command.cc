#include "app/command.h"

#include <cstdio>
#include <fstream>
#include <iostream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/program.h"

namespace blockserve {

std::optional<int> ParseCommand(absl::string_view program, absl::string_view usage,
                                const FlagTable& flags, const Arguments& arguments) {
  if (AsksFor(arguments, "--help") || AsksFor(arguments, "-h")) {
    std::fputs(HelpText(usage, flags.flags()).c_str(), stdout);
    return kExitOk;
  }
  if (AsksFor(arguments, "--version")) {
    std::puts(VersionText("blockserve").c_str());
    return kExitOk;
  }
  absl::Status status = flags.Parse(arguments);
  if (!status.ok()) return ReportUsageError(program, status);
  return std::nullopt;
}

absl::StatusOr<std::string> ReadInput(absl::string_view flag, const std::string& path) {
  std::ostringstream content;
  if (path == "-") {
    content << std::cin.rdbuf();
    return content.str();
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
