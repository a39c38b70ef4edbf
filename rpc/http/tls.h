// TLS of the HTTP front, from the PEM files that the gRPC port has, read again when they change.
#ifndef BLOCKSERVE_RPC_HTTP_TLS_H_
#define BLOCKSERVE_RPC_HTTP_TLS_H_

#include <boost/asio/ssl/context.hpp>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "rpc/tls.h"

namespace blockserve {

// Thread-safe.
class HttpTls {
 public:
  // `files` are enabled. Errors: those of CheckTlsFiles, naming flag and file.
  static absl::StatusOr<std::shared_ptr<HttpTls>> Load(const ServerTlsFiles& files);

  // For a new connection: files that have changed are read first (looked at once a second at most);
  // while they cannot be used, what was read last holds.
  std::shared_ptr<boost::asio::ssl::context> Current();

 private:
  explicit HttpTls(const ServerTlsFiles& files) : files_(files) {}
  // What the files hold; nothing of those that cannot be read.
  std::vector<std::string> Contents() const;

  const ServerTlsFiles files_;
  Mutex mutex_;
  std::shared_ptr<boost::asio::ssl::context> context_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::string> contents_ ABSL_GUARDED_BY(mutex_);
  absl::Time looked_at_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_HTTP_TLS_H_
