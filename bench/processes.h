// The programs of this build as child processes, for runs over real connections.
#ifndef BLOCKSERVE_BENCH_PROCESSES_H_
#define BLOCKSERVE_BENCH_PROCESSES_H_

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace blockserve {

// One child; ended with SIGTERM when this goes.
class ChildProcess {
 public:
  // Starts `program` of the folder that this program lies in. Its output goes to `log_path`.
  static absl::StatusOr<ChildProcess> Start(const std::string& program,
                                            const std::vector<std::string>& arguments,
                                            const std::string& log_path);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();

  const std::string& name() const { return name_; }
  // FAILED_PRECONDITION with the end of its log where it has ended by itself.
  absl::Status CheckAlive();
  // User and system time so far, all threads; 0 where the system does not tell.
  double CpuSeconds() const;

 private:
  ChildProcess() = default;

  std::string name_;
  std::string log_path_;
  pid_t pid_ = -1;
};

// A loopback port that was free a moment ago.
absl::StatusOr<int> FreePort();

}  // namespace blockserve

#endif  // BLOCKSERVE_BENCH_PROCESSES_H_
