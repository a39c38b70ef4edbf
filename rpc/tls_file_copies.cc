#include "rpc/tls_file_copies.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "common/logging.h"
#include "common/read_file.h"

namespace blockserve {
namespace {

// Of what cannot be read it is empty, and then it is not used either.
std::string ContentOf(const std::string& path) { return ReadFile(path).value_or(""); }

std::string PathOf(int descriptor) { return absl::StrCat("/proc/self/fd/", descriptor); }

// A file in memory that only this process can read.
absl::StatusOr<int> MakeCopy(const std::string& content) {
  const int descriptor = memfd_create("tls", MFD_CLOEXEC);
  if (descriptor < 0) {
    return absl::InternalError(absl::StrCat("a file in memory: ", std::strerror(errno)));
  }
  for (size_t at = 0; at < content.size();) {
    const ssize_t n = write(descriptor, content.data() + at, content.size() - at);
    if (n < 0) {
      const int error = errno;
      close(descriptor);
      return absl::InternalError(absl::StrCat("a file in memory: ", std::strerror(error)));
    }
    at += static_cast<size_t>(n);
  }
  return descriptor;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsFileCopies>> TlsFileCopies::Make(std::vector<std::string> files,
                                                                   Check check) {
  // With the names that people know, before there are others.
  if (absl::Status status = check(files); !status.ok()) return status;
  std::unique_ptr<TlsFileCopies> copies(new TlsFileCopies(std::move(files), std::move(check)));
  for (const std::string& file : copies->files_) copies->last_.push_back(ContentOf(file));
  if (absl::Status status = copies->TakeOver(copies->last_); !status.ok()) return status;
  return copies;
}

TlsFileCopies::~TlsFileCopies() {
  {
    MutexLock lock(&mutex_);
    ends_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
  for (const int descriptor : descriptors_) {
    if (descriptor >= 0) close(descriptor);
  }
}

absl::Status TlsFileCopies::TakeOver(const std::vector<std::string>& contents) {
  std::vector<int> fresh(files_.size(), -1);
  std::vector<std::string> fresh_paths(files_.size());
  absl::Status status;
  for (size_t i = 0; i < files_.size() && status.ok(); ++i) {
    if (files_[i].empty()) continue;
    absl::StatusOr<int> copy = MakeCopy(contents[i]);
    status = copy.status();
    if (!copy.ok()) break;
    fresh[i] = *copy;
    fresh_paths[i] = PathOf(*copy);
  }
  if (status.ok()) status = check_(fresh_paths);
  if (status.ok() && descriptors_.empty()) {
    descriptors_ = std::move(fresh);
    paths_ = std::move(fresh_paths);
    return absl::OkStatus();
  }
  for (size_t i = 0; i < fresh.size(); ++i) {
    if (fresh[i] < 0) continue;
    // The same path is the new file from here on.
    if (status.ok()) dup3(fresh[i], descriptors_[i], O_CLOEXEC);
    close(fresh[i]);
  }
  if (status.ok()) return status;
  std::vector<std::pair<std::string, std::string>> names;
  for (size_t i = 0; i < fresh.size(); ++i) {
    if (fresh[i] >= 0) names.emplace_back(fresh_paths[i], files_[i]);
  }
  return absl::Status(status.code(), absl::StrReplaceAll(status.message(), names));
}

void TlsFileCopies::Look() {
  std::vector<std::string> contents;
  for (const std::string& file : files_) contents.push_back(ContentOf(file));
  if (contents == last_) return;
  last_ = std::move(contents);
  if (absl::Status status = TakeOver(last_); !status.ok()) {
    LogWarning(absl::StrCat("the TLS files have changed and cannot be used: ", status.message()));
  } else {
    std::vector<std::string> names = files_;
    names.erase(std::remove(names.begin(), names.end(), ""), names.end());
    LogInfo(
        absl::StrCat("the TLS files have changed and are in use: ", absl::StrJoin(names, ", ")));
  }
}

void TlsFileCopies::LookEvery(absl::Duration interval, Remark remark) {
  thread_ = std::thread([this, interval, remark = std::move(remark)] {
    std::string told;
    MutexLock lock(&mutex_);
    while (!ends_) {
      if (std::string now = remark(paths_); now != told) {
        if (!now.empty()) LogWarning(now);
        told = std::move(now);
      }
      changed_.WaitWithTimeout(&mutex_, interval);
      if (!ends_) Look();
    }
  });
}

}  // namespace blockserve
