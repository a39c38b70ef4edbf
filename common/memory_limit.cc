#include "common/memory_limit.h"

#include <algorithm>
#include <filesystem>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/read_file.h"

namespace blockserve {
namespace {

constexpr int64_t kAddressSpace = (int64_t{1} << 46) - 1;

int64_t MachineBytes(const std::string& root) {
  const absl::StatusOr<std::string> text = ReadFile(root + "/proc/meminfo");
  if (!text.ok()) return kAddressSpace;
  for (const absl::string_view line : absl::StrSplit(*text, '\n')) {
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    int64_t kilobytes = 0;
    if (words.size() >= 2 && words[0] == "MemTotal:" && absl::SimpleAtoi(words[1], &kilobytes)) {
      return std::min(kAddressSpace, kilobytes << 10);
    }
  }
  return kAddressSpace;
}

// The least limit of a group and those that it is in. Within a container the path may be that of
// the host, and what can be seen begins further down: then only the container's own is found.
int64_t GroupBytes(const std::string& mount, std::filesystem::path group, const char* file) {
  int64_t least = kAddressSpace;
  for (;;) {
    const absl::StatusOr<std::string> text =
        ReadFile(std::filesystem::path(mount) / group.relative_path() / file);
    int64_t bytes = 0;  // "max" is no number
    if (text.ok() && absl::SimpleAtoi(*text, &bytes) && bytes > 0) least = std::min(least, bytes);
    if (!group.has_relative_path()) return least;
    group = group.parent_path();
  }
}

}  // namespace

int64_t MemoryLimitBytes(const std::string& root) {
  int64_t least = MachineBytes(root);
  const absl::StatusOr<std::string> groups = ReadFile(root + "/proc/self/cgroup");
  if (!groups.ok()) return least;
  // id:controllers:path; version 2 has no controllers there.
  for (const absl::string_view line : absl::StrSplit(*groups, '\n')) {
    const std::vector<absl::string_view> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',');
    if (parts[1].empty()) {
      least =
          std::min(least, GroupBytes(root + "/sys/fs/cgroup", std::string(parts[2]), "memory.max"));
    } else if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      least = std::min(least, GroupBytes(root + "/sys/fs/cgroup/memory", std::string(parts[2]),
                                         "memory.limit_in_bytes"));
    }
  }
  return least;
}

}  // namespace blockserve
