// TLS of gRPC servers and channels, from PEM files that are read again when they change: a new
// certificate is put in place without a restart, and connections that stand keep theirs.
#ifndef BLOCKSERVE_RPC_TLS_H_
#define BLOCKSERVE_RPC_TLS_H_

#include <grpcpp/security/credentials.h>
#include <grpcpp/security/server_credentials.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace blockserve {

// Between two looks at the files, seconds; a change is taken over after two at most.
inline constexpr unsigned kTlsReloadSeconds = 1;

// Paths of PEM files. All empty: plaintext.
struct ServerTlsFiles {
  std::string certificate;  // the server's, then those between it and its CA
  std::string key;
  // Callers must show a certificate of one of these CAs; empty: callers are not asked for one.
  std::string client_ca;
  // What messages call the fields: FLAGS-cert, FLAGS-key and FLAGS-client-ca.
  std::string flags = "--tls";

  bool enabled() const { return !certificate.empty(); }
  // Which files go together. INVALID_ARGUMENT naming the flag.
  absl::Status Validate() const;
};

struct ClientTlsFiles {
  std::string ca;           // whose servers are trusted; "system": the CAs that this machine trusts
  std::string certificate;  // shown to servers that ask; may be empty, with `key`
  std::string key;
  std::string server_name;      // in the servers' certificates; empty: the host of the address
  std::string flags = "--tls";  // FLAGS-ca, FLAGS-cert, FLAGS-key, FLAGS-name

  bool enabled() const { return !ca.empty(); }
  absl::Status Validate() const;
};

// Whether the files can be used: INVALID_ARGUMENT naming flag and file where one cannot be read,
// holds no certificate or key, or where certificate and key do not belong together.
absl::Status CheckTlsFiles(const ServerTlsFiles& files);
absl::Status CheckTlsFiles(const ClientTlsFiles& files);

// Plaintext credentials where TLS is not enabled. Errors: those of Validate and CheckTlsFiles;
// later the files may be broken or gone for a while, and what was read last stays in use. They are
// read anew for as long as the credentials are held: a server's or channel's user keeps them.
absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> MakeServerCredentials(
    const ServerTlsFiles& files);
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeChannelCredentials(
    const ClientTlsFiles& files);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_TLS_H_
