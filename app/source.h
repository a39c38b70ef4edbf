// Where a command finds its model: in this process (--model) or on a server (--server).
#ifndef BLOCKSERVE_APP_SOURCE_H_
#define BLOCKSERVE_APP_SOURCE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "app/embedded.h"
#include "client/client.h"
#include "common/flag_table.h"
#include "rpc/server.h"
#include "rpc/tls.h"

namespace blockserve {

// Of what is tokenized as one text: it fits into one message, with room for what is around it.
inline constexpr int64_t kMostTextBytes = kMaxTierMessageBytes - (64 << 10);

// --server and what goes with it.
struct ServerFlags {
  std::optional<std::string> addresses;  // by commas
  ClientTlsFiles tls;
  std::string api_key_file;

  void AddFlags(FlagTable& flags);
  // INVALID_ARGUMENT naming the flag: an address that is not host:port, a file that is of no use.
  absl::Status Validate() const;
  // Needs `addresses`. Errors: a file that cannot be read.
  absl::StatusOr<std::unique_ptr<Client>> Connect() const;
  // Puts `addresses` before an error of a call, where there are any, and names the flag that is
  // missing or wrong where the error tells.
  absl::Status Explain(const absl::Status& status) const;
};

struct SourceOptions {
  std::optional<std::string> model;
  ServerFlags server;
  std::string device = "auto";
  std::string arithmetic = "auto";
  int32_t threads = 0;
  absl::Duration timeout = absl::Minutes(10);

  void AddFlags(FlagTable& flags);
  // INVALID_ARGUMENT unless exactly one of --model and --server is given.
  absl::Status Validate() const;
};

// Both cases go through the client library, the first over an in-process channel.
class Source {
 public:
  static absl::StatusOr<std::unique_ptr<Source>> Open(const SourceOptions& options);

  Client& client() { return *client_; }
  CallOptions call_options() const { return {timeout_}; }
  // As ServerFlags::Explain, and names --timeout.
  absl::Status Explain(const absl::Status& status) const;

 private:
  Source() = default;

  std::unique_ptr<Embedded> embedded_;  // null with --server
  std::unique_ptr<Client> client_;
  ServerFlags server_;
  absl::Duration timeout_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_APP_SOURCE_H_
