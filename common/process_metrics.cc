#include "common/process_metrics.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/logging.h"
#include "common/metric_definitions.h"
#include "common/version.h"

namespace blockserve {
namespace {

double CpuSeconds() {
  rusage usage = {};
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// /proc/self/statm: pages; the second number is what is resident.
double ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t size = 0, resident = 0;
  file >> size >> resident;
  return static_cast<double>(resident * sysconf(_SC_PAGESIZE));
}

// Boot time plus the start in clock ticks after it, field 22 of /proc/self/stat (counted from the
// end of the program's name, which may hold blanks).
double StartTime() {
  std::ifstream boot_file("/proc/stat");
  double boot = 0;
  for (std::string line; std::getline(boot_file, line);) {
    if (line.rfind("btime ", 0) == 0 && absl::SimpleAtod(line.substr(6), &boot)) break;
  }
  std::ifstream file("/proc/self/stat");
  std::string stat;
  std::getline(file, stat);
  const std::vector<std::string> fields =
      absl::StrSplit(stat.substr(std::min(stat.size(), stat.rfind(')') + 1)), ' ');
  double ticks = 0;
  if (fields.size() > 20 && !absl::SimpleAtod(fields[20], &ticks)) ticks = 0;
  return boot + ticks / static_cast<double>(sysconf(_SC_CLK_TCK));
}

double OpenFiles() {
  std::error_code error;
  std::filesystem::directory_iterator files("/proc/self/fd", error);
  if (error) return 0;
  // The look itself has one open.
  return static_cast<double>(std::distance(begin(files), end(files))) - 1;
}

}  // namespace

std::shared_ptr<void> AddProcessMetrics(MetricRegistry& registry) {
  registry.Gauge(kBuildInfo, {Version(), Commit()}).Set(1);
  registry.Gauge(kProcessStartTime).Set(StartTime());
  return registry.OnCollect(
      [resident = registry.Gauge(kProcessResidentBytes), cpu = registry.Counter(kProcessCpuSeconds),
       files = registry.Gauge(kProcessOpenFiles), lost = registry.Counter(kLogLinesLost)] {
        resident.Set(ResidentBytes());
        cpu.Add(std::max(0.0, CpuSeconds() - cpu.Value()));
        files.Set(OpenFiles());
        lost.Add(std::max(0.0, static_cast<double>(LogLinesLost()) - lost.Value()));
      });
}

}  // namespace blockserve
