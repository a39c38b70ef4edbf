// Copies of PEM files that are always whole and always usable.
//
// gRPC reads its files again when they change, and believes what it reads: a certificate that is
// just being written breaks the port off, and an empty one ends the process. So it is shown copies,
// in memory, which are replaced only by what has been looked at.
#ifndef BLOCKSERVE_RPC_TLS_FILE_COPIES_H_
#define BLOCKSERVE_RPC_TLS_FILE_COPIES_H_

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"

namespace blockserve {

class TlsFileCopies {
 public:
  // Says whether files of these paths, in the order of Make's, can be used together.
  using Check = std::function<absl::Status(const std::vector<std::string>& paths)>;
  // What there is to say of files that can be used: it goes into the log when it changes. Empty:
  // nothing.
  using Remark = std::function<std::string(const std::vector<std::string>& paths)>;

  // `files`: paths; empty ones are left out of everything. Errors: those of `check`, and of the
  // system.
  static absl::StatusOr<std::unique_ptr<TlsFileCopies>> Make(std::vector<std::string> files,
                                                             Check check);
  // Ends the thread, if there is one, and takes the copies away.
  ~TlsFileCopies();
  TlsFileCopies(const TlsFileCopies&) = delete;
  TlsFileCopies& operator=(const TlsFileCopies&) = delete;

  // Of the copies, for as long as this lives; empty where the file's path is.
  const std::vector<std::string>& paths() const { return paths_; }

  // Takes over what has changed, if it can be used. What cannot is logged once, and the copies stay
  // as they are.
  void Look();
  // Looks again and again, on a thread of its own, and asks `remark` each time.
  void LookEvery(absl::Duration interval, Remark remark);

 private:
  TlsFileCopies(std::vector<std::string> files, Check check)
      : files_(std::move(files)), check_(std::move(check)) {}
  absl::Status TakeOver(const std::vector<std::string>& contents);

  const std::vector<std::string> files_;
  const Check check_;
  std::vector<int> descriptors_;  // of the copies; -1: left out
  std::vector<std::string> paths_;
  std::vector<std::string> last_;  // contents when they were last looked at

  Mutex mutex_;
  CondVar changed_;
  bool ends_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TLS_FILE_COPIES_H_
