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
#include "rpc/tls.h"

namespace blockserve {

struct SourceOptions {
  std::optional<std::string> model;
  std::optional<std::string> server;
  std::string device = "auto";
  std::string arithmetic = "auto";
  int32_t threads = 0;
  absl::Duration timeout = absl::Minutes(10);
  // Of --server: TLS files and the file that holds the API key.
  ClientTlsFiles tls;
  std::string api_key_file;

  void AddFlags(FlagTable& flags);
  // INVALID_ARGUMENT unless exactly one of --model and --server is given.
  absl::Status Validate() const;
};

// INVALID_ARGUMENT naming --server where an address of the list by commas is not host:port.
absl::Status CheckServerFlag(const std::string& list);

// Both cases go through the client library, the first over an in-process channel.
class Source {
 public:
  static absl::StatusOr<std::unique_ptr<Source>> Open(const SourceOptions& options);

  Client& client() { return *client_; }
  CallOptions call_options() const { return {timeout_}; }
  // Puts the server's address before an error of a call, where there is a server.
  absl::Status Explain(const absl::Status& status) const;

 private:
  Source() = default;

  std::unique_ptr<Embedded> embedded_;  // null with --server
  std::unique_ptr<Client> client_;
  std::string server_;
  absl::Duration timeout_;
};

}  // namespace blockserve

#endif  // BLOCKSERVE_APP_SOURCE_H_
