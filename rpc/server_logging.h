// The log of a program that serves gRPC: its own lines, and the library's in the same form.
#ifndef BLOCKSERVE_RPC_SERVER_LOGGING_H_
#define BLOCKSERVE_RPC_SERVER_LOGGING_H_

#include "absl/status/status.h"
#include "common/logging.h"

namespace blockserve {

// ConfigureLogging, with queued lines; and gRPC writes there what it would write to standard error
// by itself (failed handshakes, say): as warnings, what it calls information as debug lines. Which
// of its lines there are at all is GRPC_VERBOSITY's to tell.
absl::Status ConfigureServerLogging(const LoggingOptions& options);

}  // namespace blockserve

#endif  // BLOCKSERVE_RPC_SERVER_LOGGING_H_
