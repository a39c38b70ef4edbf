// TLS of the HTTP front: Boost.Asio's context, made anew when its files change.
#ifndef BLOCKSERVE_GATEWAY_TLS_CONTEXT_H_
#define BLOCKSERVE_GATEWAY_TLS_CONTEXT_H_

#include <array>
#include <boost/asio/ssl/context.hpp>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "rpc/tls.h"

namespace blockserve {

class TlsContext {
 public:
  using Ptr = std::shared_ptr<boost::asio::ssl::context>;

  // `files` are enabled. Errors: those of CheckTlsFiles.
  static absl::StatusOr<std::unique_ptr<TlsContext>> Create(const ServerTlsFiles& files);

  // For a new connection. Thread-safe; looks at the files once a second at most. While they cannot
  // be used, what was read last holds, and the log says why.
  Ptr Current();

 private:
  using Times = std::array<std::filesystem::file_time_type, 3>;

  explicit TlsContext(const ServerTlsFiles& files) : files_(files) {}
  absl::StatusOr<Ptr> Read() const;
  Times ChangeTimes() const;

  const ServerTlsFiles files_;
  Mutex mutex_;
  Ptr context_ ABSL_GUARDED_BY(mutex_);
  Times changed_ ABSL_GUARDED_BY(mutex_);
  absl::Time looked_at_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace blockserve

#endif  // BLOCKSERVE_GATEWAY_TLS_CONTEXT_H_
